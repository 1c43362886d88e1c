"""One store's directory: its layout, its lock, and its durable state.

STORE/inbox        files as they arrive; belongs to the sender, only read and emptied here
STORE/work         private durable copies of received files, until they are applied
STORE/staging      a copy of extents for the mirror, until it is switched in
STORE/volumes      the mirror's data by volume id: ``00000001``
STORE/mirror       hard links to them under the volumes' names, once they are consistent
STORE/history      applied files and what they overwrote: the way back
STORE/quarantine   what was refused, each with a reason
STORE/source       once promoted: the state of the source that the store has become
STORE/state.0, .1  the state slots; STORE/lock the one replayer; STORE/ack.json the report
"""

import contextlib
import errno
import logging
import os
from pathlib import Path

from aimfuse.disk import Disk, note_owner, try_lock
from aimfuse.errors import BusyError, StateLost, StoreError
from aimfuse.journal.locks import STORE_LOCK
from aimfuse.journal.names import JournalName, parse
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.rewound import REWOUND
from aimfuse.journal.slots import Slots
from aimfuse.replay.doubt import COPIED, DIFFERS, REJOINED, Place, doubted, is_doubtful
from aimfuse.replay.kept import is_whole
from aimfuse.replay.look import Look
from aimfuse.replay.state import Json, Phase, StoreState
from aimfuse.units import VolumeId

log = logging.getLogger(__name__)

INBOX = "inbox"
ACK = "ack.json"
HEARTBEAT = "source.json"
REQUEST = "switchover.json"
_OWN_DIRECTORIES = ("work", "staging", "volumes", "mirror", "history", "quarantine")
_PID_BYTES_MAX = 20
LINK_SUFFIX = ".link"


class Store:
    """An open store: held by this process alone until `close`.

    `state` is always what the slots hold; only `save` changes it.
    """

    def __init__(self, disk: Disk, path: Path, look: Look | None = None) -> None:
        """Name the places; nothing is touched before `lock` and `open`."""
        self.disk = disk
        self.look = look or Look()
        self.path = path
        self.state = StoreState()
        self._lock_fd = -1
        self._home_fd = -1
        self._is_noted = False
        self._begun = 0
        self._name_places(path)

    def _name_places(self, home: Path) -> None:
        self.home = home
        self.inbox = home / INBOX
        self.work = home / "work"
        self.staging = home / "staging"
        self.volumes = home / "volumes"
        self.mirror = home / "mirror"
        self.history = home / "history"
        self.quarantine = home / "quarantine"
        self._slots = Slots(self.disk, home / "state", "store-state")

    def lock(self) -> None:
        """Take the lock that makes this process the store's one replayer.

        From here on every place is reached by way of the directory's descriptor: a store that is
        moved in the middle of a file gets the rest of it, and not what lies at its path then.

        Raises:
            BusyError: another one has it. Nothing was changed.
            OSError: as the disk gave it.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._home_fd = self.disk.open("store:hold", self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._name_places(Path(f"/proc/self/fd/{self._home_fd}"))
            self._lock_fd = self.disk.open("store:lock", self.home / STORE_LOCK, flags)
            self._take_lock()
            note_owner(self.disk, "store:lock_pid", self._lock_fd)
        except (BusyError, OSError) as exc:
            if isinstance(exc, OSError) and exc.filename == str(self.home / STORE_LOCK):
                exc.filename = str(self.path / STORE_LOCK)  # People know no descriptors.
            self.close()
            raise

    def _take_lock(self) -> None:
        if not try_lock(self._lock_fd):
            pid = self.disk.pread(self._lock_fd, _PID_BYTES_MAX, 0).decode("ascii", "replace")
            raise BusyError(
                f"{self.path} has a replayer already, process {pid.strip() or 'unknown'}",
                hint="One replayer per store: stop the other one first.",
            )

    def is_here(self) -> bool:
        """Tell whether the path still leads to the store that was locked.

        Asked of the lock file: as long as it is open, no other file gets its inode number.
        """
        if self._lock_fd < 0:
            return True
        try:
            entry = self.look.entry(self.path / STORE_LOCK)
        except NotADirectoryError:
            return False
        return entry is not None and entry.inode == self.disk.inode(self._lock_fd)

    def shown(self, text: str) -> str:
        """Return *text* with the store's path in it as people know it."""
        return text.replace(str(self.home), str(self.path))

    def open(self) -> None:
        """Make what is missing, read the state, finish what a crash left; repeatable.

        Raises:
            StateLost: both state slots are damaged.
            StoreError: a directory of the store is not a plain directory, or data is gone.
            OSError: as the disk gave it.
        """
        for name in (INBOX, *_OWN_DIRECTORIES):
            self._make_directory(self.home / name)
        data = self._read_slots()
        self.state = self._read_state(data)
        self._begun = self._number_at_work(is_open=bool((data or {}).get("open")))
        self._settle(data)
        self._tidy()

    def close(self) -> None:
        """Let the lock go, and note that it was an orderly end; the store may be opened again."""
        try:
            with contextlib.suppress(OSError):
                if self._is_noted and self.is_here():
                    self._write(self.state, is_open=False)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._is_noted = False
        for fd in (self._lock_fd, self._home_fd):
            if fd >= 0:
                self.disk.close(fd)
        self._lock_fd = self._home_fd = -1
        self._name_places(self.path)

    def save(self, state: StoreState) -> None:
        """Make *state* durable, then current. After an `OSError` the old one still counts.

        One that was moved away in the middle of its work must not give its state to the store
        that took its place.
        """
        if not self.is_here():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path))
        self._write(state, is_open=True)
        self._is_noted = True
        self.state = state

    def is_begun(self, number: int) -> bool:
        """Tell whether file *number* may have been executed in parts; from now on it may."""
        before, self._begun = self._begun, number
        return before == number

    def _number_at_work(self, *, is_open: bool) -> int:
        """Return the file that the run before may have been at, 0 if it was at none.

        Its private copy is here. Without an orderly end the state may even be the one in front
        of a file that is in the mirror: should the newest slot be damaged.
        """
        number = self.state.head.number + 1 if self.state.head else 0
        if is_open:
            return number
        names = map(parse, self.disk.listdir(self.work))
        is_here = any(isinstance(one, JournalName) and one.number == number for one in names)
        return number if is_here else 0

    def volume_path(self, volume: VolumeId) -> Path:
        """Return where the data of *volume* lies."""
        return self.volumes / f"{volume:08d}"

    def derive_links(self, old: tuple[VolumeEntry, ...], new: tuple[VolumeEntry, ...]) -> None:
        """Turn the names of table *old* into those of *new*, durably.

        Repeating it after a crash at any step gives the same names. Names that are in
        neither table belong to somebody else and stay.
        """
        before = {entry.name: entry.volume for entry in old}
        after = {entry.name: entry.volume for entry in new}
        if before == after:
            return
        for name, volume in after.items():
            if before.get(name) != volume:
                self._link(name, volume)
        for name in before.keys() - after.keys():
            if self.disk.exists(self.mirror / name):
                self.disk.unlink("mirror:unlink", self.mirror / name)
        self.disk.sync_dir("mirror:sync_dir", self.mirror)

    def remove_volumes(self, gone: set[VolumeId]) -> None:
        """Remove data that no table names any more; a crash leaves the rest to `open`."""
        for volume in gone:
            path = self.volume_path(volume)
            if self.disk.exists(path):
                self.disk.unlink("volumes:unlink", path)

    def _make_directory(self, path: Path) -> None:
        if not self.disk.exists(path):
            self.disk.mkdir("store:mkdir", path)
        entry = self.look.entry(path)
        if entry is None or entry.kind != "directory":
            raise StoreError(
                f"{path} is not a plain directory", hint="Remove it; the store makes its own."
            )

    def _place(self) -> Place | None:
        """Return what tells this store from every copy of it; None without the lock."""
        if self._lock_fd < 0:
            return None
        return self.disk.inode(self._home_fd), self.disk.inode(self._lock_fd)

    def _settle(self, data: Json | None) -> None:
        """Note durably that the store is in use here, before anything of it changes."""
        place = self._place()
        if data is None or place is None:
            return
        state = doubted(self.state) if is_doubtful(data, place) else self.state
        if state != self.state:
            log.warning("%s: %s", self.path, COPIED)
        self.save(state)

    def _write(self, state: StoreState, *, is_open: bool) -> None:
        self._slots.write({**state.to_json(), "place": self._place(), "open": is_open})

    def _read_slots(self) -> Json | None:
        try:
            return self._slots.read()
        except StateLost:
            if all(map(self.disk.exists, self._slot_paths())):
                raise
        return None  # A crash in the very first write: nothing was promised yet.

    def _read_state(self, data: Json | None) -> StoreState:
        if data is None:
            return StoreState()
        try:
            return StoreState.from_json(data)
        except (KeyError, TypeError, ValueError) as exc:
            raise StoreError(
                f"{self.path}: the state is of another version: {exc!r}",
                hint="Use the aimfuse version that last ran here, or a newer one.",
            ) from exc

    def _slot_paths(self) -> tuple[Path, Path]:
        return self.home / "state.0", self.home / "state.1"

    def _tidy(self) -> None:
        """Remove what a crash left over, and make the names right that it left wrong."""
        if self.state.doubt != REJOINED and self.disk.exists(self.home / DIFFERS):
            self.disk.unlink("differs:tidy", self.home / DIFFERS)
        if self.state.promoted is None and self.disk.exists(self.home / REWOUND):
            self.disk.unlink("rewound:tidy", self.home / REWOUND)  # Of when it was a source.
        if self.state.phase is Phase.PROMOTED:  # What is here belongs to the source, or the past.
            return
        known = {f"{entry.volume:08d}" for entry in self.state.volumes}
        for name in self.disk.listdir(self.volumes):
            if name not in known:
                self.disk.unlink("volumes:tidy", self.volumes / name)
        if self.state.phase in {Phase.CATCHING_UP, Phase.SWITCHING, Phase.CONSISTENT}:
            self._check_data()
        named = self.state.volumes if self._links_promised() else self.state.shown
        wrong = [entry for entry in named if not self._is_linked(entry)]
        self.derive_links((), tuple(wrong))

    def _check_data(self) -> None:
        for entry in self.state.volumes:
            path = self.volume_path(entry.volume)
            if not self.disk.exists(path):
                raise StoreError(
                    f"{path}, the data of {entry.name!r}, is gone",
                    hint="Put it back as it was, or move the store away for a new first sync.",
                )

    def _links_promised(self) -> bool:
        if self.state.phase is Phase.HALTED:  # Halting changes no data: look where it was.
            return is_whole(self.state)
        return self.state.phase is Phase.CONSISTENT

    def _is_linked(self, entry: VolumeEntry) -> bool:
        link, data = self.mirror / entry.name, self.volume_path(entry.volume)
        if not (self.disk.exists(link) and self.disk.exists(data)):
            return not self.disk.exists(data)  # Without data there is nothing to link.
        return self._inode(link) == self._inode(data)

    def _inode(self, path: Path) -> int:
        try:
            fd = self.disk.open("mirror:inode", path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # A link or the like that somebody put there: surely not our file.
            return -1
        try:
            return self.disk.inode(fd)
        finally:
            self.disk.close(fd)

    def _link(self, name: str, volume: VolumeId) -> None:
        data = self.volume_path(volume)
        beside = data.with_name(data.name + LINK_SUFFIX)
        if self.disk.exists(beside):
            self.disk.unlink("mirror:unlink_left", beside)
        self.disk.link("mirror:link", data, beside)
        self.disk.rename("mirror:rename", beside, self.mirror / name)
        if self.disk.exists(beside):  # Renaming onto another link of the same file does nothing.
            self.disk.unlink("mirror:unlink_beside", beside)
