"""Read what others put into a store's inbox, trusting none of it.

Only names of the strict forms count. A file is opened without following links and without
waiting, must be regular, of an acceptable owner and size, is read whole into memory, and what
was read is checked, not the file: its writer may still have it open. Everything else is left
to the quarantine. Listing keeps a bounded number of names, however many there are.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

from aimfuse.errors import JournalError, TornRecord
from aimfuse.journal.header import FileKind, Identity
from aimfuse.journal.names import PART, JournalName, SyncName, parse
from aimfuse.journal.reader import FILE_BYTES_MAX, AimFile, check_sealed
from aimfuse.replay.look import Entry
from aimfuse.replay.readers import is_reader
from aimfuse.replay.state import UnfitFile
from aimfuse.replay.store import HEARTBEAT, REQUEST, Store
from aimfuse.units import SECOND_NS

NAMES_MAX = 256
JUNK_MAX = 10_000
FRESH_NS = 2 * SECOND_NS
"""A file that changed less than this ago may still be on its way, whatever its name."""

PART_AGE_NS = 24 * 3600 * SECOND_NS
"""A temporary file that nobody touched for so long will not be finished."""

RESCAN_NS = SECOND_NS
"""Even a directory that seems unchanged is listed this often."""

Name = TypeVar("Name", JournalName, SyncName)

_NOTES = {HEARTBEAT, HEARTBEAT + PART, REQUEST, REQUEST + PART}
"""What a source sends besides AIM files."""

_MTIME_GRAIN_NS = SECOND_NS // 20


@dataclass(slots=True)
class Listing:
    """What lies in the inbox: the lowest journal and sync names, some of the rest, counts."""

    journal: list[JournalName] = field(default_factory=list)
    sync: list[SyncName] = field(default_factory=list)
    junk: list[str] = field(default_factory=list)
    files: int = 0
    more: bool = False


class Later(Enum):
    """Why a file was not read now."""

    GONE = "gone"
    FRESH = "fresh"


class DamagedFile(UnfitFile):
    """A file of ours that arrived broken: it must be sent again."""


class Inbox:
    """One store's inbox, seen by its replayer."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        """*clock* gives the time in Unix ns, to be held against the files' own times."""
        self._store = store
        self._clock = clock
        self._owner = -1
        self._seen = (-1, -1)
        self._listed_ns = 0

    def changed(self) -> bool:
        """Tell whether listing it may bring anything new; costs one look."""
        now_ns = self._clock()
        entry = self._directory()
        seen = (entry.inode, entry.mtime_ns)
        settled = self._listed_ns - entry.mtime_ns > _MTIME_GRAIN_NS
        recent = 0 <= now_ns - self._listed_ns < RESCAN_NS
        return not (seen == self._seen and settled and recent)

    def list(self) -> Listing:
        """Return what is there; memory and result are bounded, the time is not."""
        entry = self._directory()
        self._seen = (entry.inode, entry.mtime_ns)
        self._owner = entry.owner
        self._listed_ns = self._clock()
        listing = Listing()
        for text in self._store.look.scan(self._store.inbox):
            name = parse(text)
            if isinstance(name, JournalName):
                listing.files += 1
                _keep_lowest(listing.journal, name, _journal_order)
            elif isinstance(name, SyncName):
                listing.files += 1
                _keep_lowest(listing.sync, name, _sync_order)
            elif not is_small_talk(text) and len(listing.junk) < JUNK_MAX:
                if self._is_junk(text):
                    listing.junk.append(text)
            else:
                listing.more = listing.more or not is_small_talk(text)
        listing.journal = sorted(listing.journal, key=_journal_order)[:NAMES_MAX]
        listing.sync = sorted(listing.sync, key=_sync_order)[:NAMES_MAX]
        listing.more = listing.more or listing.files > len(listing.journal) + len(listing.sync)
        return listing

    def size(self, name: JournalName | SyncName) -> int:
        """Return the bytes that a file has now, 0 if it is gone."""
        entry = self._store.look.entry(self.path(name))
        return entry.size if entry and entry.is_file else 0

    def path(self, name: JournalName | SyncName) -> Path:
        """Return where the file lies."""
        return self._store.inbox / name.sealed

    def read(self, name: JournalName | SyncName) -> AimFile | Later:
        """Read a file into memory and check the copy.

        Raises:
            UnfitFile: it is not to be used, ever; `DamagedFile`: send it again.
            OSError: the disk failed.
        """
        path = self.path(name)
        entry = self._store.look.entry(path)
        if entry is None:
            return Later.GONE
        fresh = self._is_fresh(entry)
        if problem := self._problem(entry):
            if entry.is_file and entry.links > 1 and fresh:
                return Later.FRESH  # Some servers rename by linking; the old name goes soon.
            raise UnfitFile(problem)
        data = self._read_whole(path, entry)
        if data is None:
            return Later.GONE
        try:
            return check_sealed(path, data)
        except TornRecord as exc:
            if fresh:
                return Later.FRESH
            raise DamagedFile(str(exc)) from exc
        except JournalError as exc:
            raise DamagedFile(str(exc)) from exc

    def _directory(self) -> Entry:
        entry = self._store.look.entry(self._store.inbox)
        if entry is None or entry.kind != "directory":
            raise NotADirectoryError(f"{self._store.inbox} is gone, or no plain directory")
        return entry

    def _problem(self, entry: Entry) -> str:
        """Return why an entry under an AIM file's name is not read, or nothing."""
        if not entry.is_file:
            return f"a {entry.kind} and no file"
        if entry.links != 1:
            return f"a file with {entry.links} names: whoever holds the others could change it"
        if entry.owner not in {self._owner, self._store.look.own_uid(), 0}:
            return f"it belongs to user {entry.owner}, not to the inbox's owner"
        if entry.size > FILE_BYTES_MAX:
            return f"{entry.size} bytes, more than any AIM file has"
        return ""

    def _read_whole(self, path: Path, entry: Entry) -> bytes | None:
        """Return the file's bytes, or None if another file has taken its place."""
        disk = self._store.disk
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = disk.open("inbox:open", path, flags)
        except FileNotFoundError:
            return None
        except PermissionError as exc:
            raise UnfitFile("it cannot be read: permission denied") from exc
        try:
            if disk.inode(fd) != entry.inode:
                return None
            return disk.pread(fd, min(disk.size(fd), FILE_BYTES_MAX + 1), 0)
        finally:
            disk.close(fd)

    def _is_fresh(self, entry: Entry) -> bool:
        return abs(self._clock() - entry.mtime_ns) < FRESH_NS

    def _is_junk(self, text: str) -> bool:
        """Tell whether a name that is none of ours is to be set aside: not while it is new."""
        entry = self._store.look.entry(self._store.inbox / text)
        if entry is None:
            return False
        age_ns = self._clock() - entry.mtime_ns
        if text.endswith(PART) and entry.is_file:
            return age_ns > PART_AGE_NS
        return not entry.is_file or not 0 <= age_ns < FRESH_NS


def _journal_order(name: JournalName) -> tuple[int, int]:
    return (name.number, name.epoch)


def _sync_order(name: SyncName) -> tuple[int, int]:
    return (name.index, name.sync_id)


def _keep_lowest(names: list[Name], name: Name, order: Callable[[Name], tuple[int, int]]) -> None:
    names.append(name)
    if len(names) >= 4 * NAMES_MAX:  # Sorting now and then is cheaper than a heap each time.
        names.sort(key=order)
        del names[NAMES_MAX:]


def is_small_talk(text: str) -> bool:
    """Tell whether a name is that of a small file that its sender writes again and again."""
    return text in _NOTES or is_reader(text)


def check_name(name: JournalName | SyncName, identity: Identity) -> None:
    """Compare the name of a file that came with what it says itself.

    Raises:
        UnfitFile: they differ, or it is of a kind that no source sends.
    """
    said: JournalName | SyncName | None = None
    if identity.kind is FileKind.JOURNAL:
        said = JournalName(identity.epoch, identity.number)
    elif identity.kind is FileKind.SYNC:
        said = SyncName(identity.sync_id, identity.number - 1)
    if said != name:
        raise UnfitFile("its header names another file than its name does")
