"""Keep the past of a mirror: before-images in front of each change, pruned by time and size.

What is saved is durable before the first byte of the mirror changes. A file that is applied
again after a crash keeps the undo file that was made first: by now the mirror may be a mixture,
and its bytes no before-images. What cannot be saved, for want of room or because it is not
wanted, raises the *floor*, durably and in front of the change: the past begins anew behind it.
History gives way before it could fill the store's disk.
"""

import contextlib
import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable

from aimfuse.config.store import StoreConfig, load_store
from aimfuse.errors import OUT_OF_SPACE, ConfigError, JournalError
from aimfuse.journal.names import GoneName, JournalName, UndoName, parse
from aimfuse.journal.reader import AimFile, read_header
from aimfuse.replay.audience import Audience
from aimfuse.replay.kept import (
    FLOOR,
    Floor,
    KeptSet,
    find_first,
    find_reach,
    floor_slots,
    list_kept,
    read_floor,
    with_file,
)
from aimfuse.replay.pins import GATE, PREFIX, unpinned
from aimfuse.replay.plan import Plan
from aimfuse.replay.readers import Readers
from aimfuse.replay.state import HistoryBroken, Json, Phase
from aimfuse.replay.store import Store
from aimfuse.replay.undo import (
    Undo,
    Unreadable,
    link_gone,
    names_of,
    needed_bytes,
    read_undo,
    survey,
    write_undo,
)
from aimfuse.units import SECOND_NS, format_bytes

log = logging.getLogger(__name__)

LOOK_EVERY_NS = SECOND_NS
"""Time between two looks at what is to be pruned."""

READERS_SIZE_FACTOR = 2
"""So many times `keep_size` history may become for the sake of who reads it from afar."""


class History:
    """The history of one open store. `problem` is what is wrong with its settings, or ""."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        """Take up what the last run left; what leads nowhere is removed. *clock*: Unix ns.

        Raises:
            OSError: the disk failed; try again with a new object.
        """
        self.problem = ""
        self._store = store
        self._clock = clock
        self._settings = StoreConfig()
        self._load_settings()
        self._slots = floor_slots(store.disk, store.history)
        if not self._slots.exists():
            self._begin()
        self._floor = read_floor(self._slots, store.state)
        self._sets: deque[KeptSet] = deque()
        self._held_bytes = 0
        self._made_ns: dict[int, int] = {}
        self._looked_ns = 0
        self._readers = Readers(store, clock)
        self._audience = Audience(clock)
        self._take_stock()

    def _begin(self) -> None:
        """Write the first floor, into both slots: they have to be there when the disk is full.

        A file that is here already, though nothing is known of a history, may be half applied.
        """
        store, floor = self._store, Floor()
        number = self._head() + 1
        names = map(parse, store.disk.listdir(store.work))
        if any(isinstance(one, JournalName) and one.number == number for one in names):
            floor = Floor(number, "no history had been kept")
        with contextlib.suppress(*(() if floor.number else (OSError,))):
            self._slots.write(floor.to_json())
            self._slots.write(floor.to_json())

    def kept(self) -> tuple[KeptSet, ...]:
        """Return the sets that are kept, the oldest first."""
        return tuple(self._sets)

    def summary(self) -> Json | None:
        """Return what whoever shows the history need not list it for; None without one."""
        oldest = self._sets[0].name if self._sets else None
        if oldest is None or oldest.number > self._head():
            return None
        return {"epoch": oldest.epoch, "oldest": oldest.number, "bytes": self._held_bytes}

    def readers(self) -> list[Json]:
        """Return what the report says of who reads from afar; see audience.py."""
        return self._audience.report(self._readers.known(), self._sets, self._head())

    def readers_key(self) -> object:
        """Return something that differs whenever somebody comes or goes, or needs less."""
        return [(one.who, one.owner, one.behind) for one in self._readers.known()]

    @property
    def settings(self) -> StoreConfig:
        """Return the store's settings that are in force."""
        return self._settings

    # Saving.

    def save(self, aim: AimFile, plan: Plan) -> None:
        """Keep what *plan* will overwrite, and *aim*, durably, before the first byte changes.

        Raises:
            HistoryBroken: another file of this number had been begun.
            OSError: the disk failed, or is full and somebody reads the past. Nothing of the
                mirror was changed; calling again goes on.
        """
        number = aim.identity.number
        if self._store.state.phase is not Phase.CONSISTENT:
            return  # A mixture of times: there is no past yet.
        if self._settings.keep_s == 0:
            if not self._floor.is_off:
                self._raise_floor(Floor(number, "history was switched off", is_off=True))
            return
        if self._floor.is_off:
            self._raise_floor(Floor(number, "history had been switched off"))
        if self._floor.number >= number:
            return
        name = JournalName(aim.identity.epoch, number)
        if not self._take_up(name, aim):
            self._save_new(name, aim, plan)

    def _take_up(self, name: JournalName, aim: AimFile) -> bool:
        """Go on with the undo file that an interrupted attempt made, if there is one."""
        store = self._store
        path = store.history / str(UndoName(name))
        if not store.disk.exists(path):
            return False
        try:
            undo = read_undo(store.disk, store.history, name)
        except JournalError as exc:
            problem = store.shown(str(exc))
            self._raise_floor(Floor(name.number, f"an undo file was damaged: {problem}"))
            return True
        if undo.mark.sync_id != self._sync_id():
            store.disk.unlink("history:unlink_stale", path)  # Of the mirror before a switch.
            return False
        if undo.mark.of != aim.seal.digest:
            raise HistoryBroken(
                f"fork: {aim.path.name} is another one than the file of its number whose "
                "application was begun here"
            )
        self._complete(name, undo)
        return True

    def _complete(self, name: JournalName, undo: Undo) -> None:
        """Make names durable that the interrupted attempt may not have got to."""
        for volume in undo.mark.gone:
            link_gone(self._store, name, volume)
        self._link_redo(name)
        self._store.disk.sync_dir("history:sync_dir", self._store.history)
        self._note(name, names_of(name, undo.mark), undo.aim.identity.created_ns)

    def _save_new(self, name: JournalName, aim: AimFile, plan: Plan) -> None:
        store, now_ns = self._store, self._clock()
        found = survey(store, plan)
        why = self._make_room(needed_bytes(found))
        if not why:
            try:
                self._link_redo(name)
                self._note(name, write_undo(store, aim, plan, found, now_ns), now_ns)
            except Unreadable as exc:
                why = f"the mirror could not be read: {store.shown(str(exc))}"
            except OSError as exc:
                if exc.errno not in OUT_OF_SPACE or self._sets:
                    raise  # What is kept makes room for the next attempt.
                why = "the disk was full"
        if why:
            self._raise_floor(Floor(name.number, why))
            self._drop_incomplete(name)

    def _link_redo(self, name: JournalName) -> None:
        """Keep the file itself; an attempt before may have left one that was damaged since."""
        target = self._store.history / name.sealed
        if self._store.disk.exists(target):
            self._store.disk.unlink("history:unlink_left", target)
        self._store.disk.link("history:link", self._store.work / name.sealed, target)

    def _make_room(self, need: int) -> str:
        """Prune for an undo file of *need* bytes; return why it is not to be made, or "".

        Raises:
            OSError: ENOSPC. There would be room, but somebody reads the past.
        """
        settings, store = self._settings, self._store
        short = need + settings.keep_free_bytes - store.disk.free_bytes(store.home)
        if short > 0:
            freed = self._prune_for(short)
            if freed is None:
                text = f"{format_bytes(need)} of history have no room while the past is read"
                raise OSError(errno.ENOSPC, text, str(store.path))
            short -= freed
        if need > settings.keep_bytes_max:
            return "one file overwrote more than keep_size"
        return "the disk was full" if short > 0 else ""

    def _prune_for(self, short: int) -> int | None:
        """Prune until about *short* bytes more are free; None if a pin forbids it.

        The mirror does not wait for who reads from afar: he may be anybody.
        """
        victims: list[KeptSet] = []
        freed, is_pinned = 0, False
        with unpinned(self._store.disk, self._store.history) as limit:
            for one in self._sets:
                if freed >= short or one.name.number > self._head():
                    break
                is_pinned = limit is not None and one.name.number > limit
                if is_pinned:
                    break
                victims.append(one)
                freed += one.size_bytes
            self._remove(victims)
        return None if is_pinned else freed

    def _drop_incomplete(self, name: JournalName) -> None:
        """Remove what there is of a set that was given up."""
        disk, history = self._store.disk, self._store.history
        for text in disk.listdir(history):
            if text.startswith(str(name)):
                disk.unlink("history:unlink_given_up", history / text)

    def _raise_floor(self, floor: Floor) -> None:
        """Let the past begin anew, durably, before the mirror changes."""
        again = (floor.why, floor.number) == (self._floor.why, self._floor.number + 1)
        self._slots.write(floor.to_json())
        self._floor = floor
        if again:  # A disk that stays full does not fill the log.
            return
        log.info("%s: history begins anew behind file %s: %s",
                 self._store.path, floor.number, floor.why)  # fmt: skip

    def _note(self, name: JournalName, files: Iterable[GoneName | UndoName], made_ns: int) -> None:
        one = KeptSet(name)
        for file in (name, *files):
            text = file.sealed if isinstance(file, JournalName) else str(file)
            entry = self._store.look.entry(self._store.history / text)
            one = with_file(one, file, entry.size if entry else 0)
        if self._sets and self._sets[-1].name.number >= name.number:  # Of an attempt before.
            self._held_bytes -= self._sets.pop().size_bytes
        self._sets.append(one)
        self._held_bytes += one.size_bytes
        self._made_ns[name.number] = made_ns

    # Pruning.

    def prune(self, *, urgent: bool = False) -> None:
        """Remove what is older, or more, than is to be kept, if it is time to look.

        Raises:
            OSError: the disk failed; what is left goes the next time.
        """
        self._readers.tend()
        now_ns = self._clock()
        if not urgent and 0 <= now_ns - self._looked_ns < LOOK_EVERY_NS:
            return
        self._looked_ns = now_ns
        self._load_settings()
        settings = self._settings
        victims = self._due(now_ns, settings.keep_s, settings.keep_bytes_max)
        if not victims:
            return
        with unpinned(self._store.disk, self._store.history) as limit:
            far = self._far_limit(now_ns)
            limits = [one for one in (limit, far) if one is not None]
            allowed = min(limits, default=victims[-1].name.number)
            self._remove([one for one in victims if one.name.number <= allowed])

    def _far_limit(self, now_ns: int) -> int | None:
        """Return the highest number whose set may go for all distant readers; None: any.

        However many there are and whatever they say, they keep history so much longer than it
        would be kept, so much more of it, and nothing where the disk is short.
        """
        wanted = self._readers.lowest()
        if wanted is None:
            return None
        keep_s = self._settings.keep_s + self._settings.reader_s_max
        most = READERS_SIZE_FACTOR * self._settings.keep_bytes_max
        overdue = self._due(now_ns, keep_s, most if self._settings.reader_s_max else 0)
        return max(wanted, int(overdue[-1].name.number) if overdue else 0)

    def _due(self, now_ns: int, keep_s: float, keep_bytes_max: int) -> list[KeptSet]:
        """Return what is not to be kept by those limits, the oldest first."""
        settings, disk = self._settings, self._store.disk
        state, held = self._store.state, self._held_bytes
        first = find_first(state, self._floor)[0]
        short = settings.keep_free_bytes - disk.free_bytes(self._store.home)
        oldest_ns = now_ns - int(keep_s * SECOND_NS)
        due: list[KeptSet] = []
        for one in self._sets:
            if one.name.number > self._head():
                break
            is_due = one.name.number <= first or held > keep_bytes_max or short > 0
            if not is_due and self._made(one, now_ns) >= oldest_ns:
                break
            due.append(one)
            held -= one.size_bytes
            short -= one.size_bytes
        return due

    def _made(self, one: KeptSet, now_ns: int) -> int:
        """Return when the file was applied here, by the clock of then."""
        number = one.name.number
        if number not in self._made_ns:
            path = self._store.history / str(UndoName(one.name))
            try:
                self._made_ns[number] = read_header(self._store.disk, path)[0].created_ns
            except JournalError:  # It is as young as can be.
                self._made_ns[number] = now_ns
        return self._made_ns[number]

    def _remove(self, sets: list[KeptSet]) -> None:
        """Remove the oldest *sets*. A crash anywhere leaves each whole, or of no use.

        Part 0 goes first, durably: without it the rest of a set is litter, with it all of it
        has to be there.
        """
        disk, history = self._store.disk, self._store.history
        for one in sets:
            path = history / str(UndoName(one.name))
            if disk.exists(path):
                disk.unlink("history:prune", path)
        if sets:
            disk.sync_dir("history:prune_sync_dir", history)
        for one in sets:
            for name in one.files()[1:]:
                if disk.exists(history / name):
                    disk.unlink("history:prune_rest", history / name)
            self._made_ns.pop(one.name.number, None)
            if self._sets and self._sets[0] is one:
                self._held_bytes -= self._sets.popleft().size_bytes

    def _take_stock(self) -> None:
        """Note what is of use, and remove what leads nowhere: litter, and sets before a hole."""
        store = self._store
        if store.state.head is None:
            return
        kept = list_kept(store.look, store.history)
        if store.state.promoted is not None:  # What was rewound over is a branch, and is kept.
            self._sets.extend(kept.values())
            self._held_bytes = sum(one.size_bytes for one in self._sets)
            return
        reach = find_reach(store.state, kept, self._floor)
        self._sets.extend(reversed(reach.sets))
        if reach.open_set:
            self._sets.append(reach.open_set)
        self._held_bytes = sum(one.size_bytes for one in self._sets)
        useful = {name for one in self._sets for name in one.files()}
        litter = [
            name
            for name in store.disk.listdir(store.history)
            if name not in useful and name != GATE and not name.startswith((PREFIX, f"{FLOOR}."))
        ]
        if litter:
            with unpinned(store.disk, store.history) as limit:
                is_read = limit is not None or self._readers.lowest() is not None
                for name in () if is_read else litter:
                    store.disk.unlink("history:tidy", store.history / name)

    # What is known.

    def _load_settings(self) -> None:
        """Read the settings; as long as they are wrong those before them count."""
        try:
            self._settings = load_store(self._store.home, self._store.disk)
        except ConfigError as exc:
            problem = self._store.shown(f"{exc}. {exc.hint}")
            if problem != self.problem:
                log.warning("%s", problem)
            self.problem = problem
        else:
            self.problem = ""

    def _head(self) -> int:
        """Return the last file whose set may be pruned."""
        head, promoted = self._store.state.head, self._store.state.promoted
        return max(head.number if head else 0, promoted.newest.number if promoted else 0)

    def _sync_id(self) -> int:
        sync = self._store.state.sync
        return sync.sync_id if sync else 0
