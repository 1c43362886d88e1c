"""A point of the past that can be read at once, while a replayer goes on. Nothing is copied.

A byte as it was at the point is, in this order: what the records of the files in front of the
point, up to it, wrote (of one file, or of those that the mirror has yet to come to); else what
the first undo file behind it has; else what the mirror has. The mirror is read first, then
whoever reads asks which undo files came to be meanwhile: what the mirror may have had of later
files is in them. Only a staged copy, a floor and a promotion change the mirror without undo
files; all are written down before, so they are seen in time, and from then on every read is
refused.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError, CorruptRecord, OutOfReach, StoreError
from aimfuse.journal.names import UndoName, parse_kept
from aimfuse.replay.kept import KeptSet, floor_slots, is_whole, list_names, read_floor
from aimfuse.replay.look import Look
from aimfuse.replay.open_files import OpenFiles
from aimfuse.replay.past import Past, read_state
from aimfuse.replay.point import Point
from aimfuse.replay.rebuild import Rebuild
from aimfuse.replay.redo import Redo
from aimfuse.replay.state import Phase, StoreState
from aimfuse.replay.undo_index import Loaded, UndoIndex
from aimfuse.replay.watch import Watch
from aimfuse.units import GIB, VolumeId, format_bytes

log = logging.getLogger(__name__)


AHEAD_BYTES_MAX = GIB
"""Files between the mirror and a point that it has not come to: they are held in memory."""


class PastLost(StoreError):
    """What was the past cannot be read any more: the mirror changed without undo files."""

    hint = "Unmount the view and mount it again, if the point is still in reach."


@dataclass(frozen=True, slots=True)
class FrozenVolume:
    """One volume as it was at the point; of `base_bytes` the records in front left the rest."""

    volume: VolumeId
    name: str
    size_bytes: int
    base_bytes: int


class Frozen:
    """One point of one store's past. Whoever uses it holds a pin on that point's base.

    `lost` says why nothing can be read any more, or ""; `store` is how errors name the store.
    """

    def __init__(
        self, disk: Disk, past: Past, point: Point, watch: Watch, look: Look | None = None
    ) -> None:
        """Index the undo files behind *point*. *watch* was begun before the *past* was looked at.

        Raises:
            JournalError: a file of the history is damaged.
            StoreError: an undo file is missing.
            OutOfReach: the mirror is too far behind the point.
            OSError: one could not be read.
        """
        self.lost = ""
        self.store = past.path
        self.point = point
        self._disk = disk
        self._past = past
        self._look = look or Look()
        self._watch = watch
        self._floor_slots = floor_slots(disk, past.history)
        self._sources = OpenFiles(disk, "view:source")
        rebuild = Rebuild(disk, past, point, look)
        self.is_newest = rebuild.is_newest
        base = {entry.volume: entry.size_bytes for entry in rebuild.then.volumes}
        self.volumes = tuple(
            FrozenVolume(one.volume, one.name, one.size_bytes, base.get(one.volume, 0))
            for one in rebuild.plan.table()
        )
        self._redo = _changes_of(rebuild, {one.volume for one in self.volumes})
        self._index = UndoIndex(disk, past.history)
        self._newest: Loaded | None = None
        self._known_head = point.base
        self._base_digest = rebuild.then.head.digest if rebuild.then.head else b""
        self._redo_digest = rebuild.redo.seal.digest if rebuild.redo else None
        try:
            self._take_stock(past)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close what is open of mirror and history."""
        self._index.close()
        self._sources.close()

    # Reading.

    def read(self, volume: FrozenVolume, offset: int, length: int) -> bytes:
        """Return up to *length* bytes of a volume at *offset*, fewer at its end.

        Raises:
            PastLost: the mirror changed in a way that cannot be taken back.
            JournalError: what is needed of the history is damaged.
            OSError: a disk failed.
        """
        with named_as(self._past.path, self.store):
            self._check()
            return self._read(volume, offset, length)

    def refresh(self) -> None:
        """Take note of what the replayer did since; errors as for `read`."""
        with named_as(self._past.path, self.store):
            self._check()
            self._hear()

    def _read(self, volume: FrozenVolume, offset: int, length: int) -> bytes:
        end = min(offset + length, volume.size_bytes)
        if end <= offset:
            return b""
        found = memoryview(bytearray(end - offset))
        at = offset
        for one in self._redo[volume.volume].find(offset, end):
            self._read_base(volume, at, one.start, found[at - offset :])
            if one.data is not None:
                found[one.start - offset : one.end - offset] = one.data
            at = one.end
        self._read_base(volume, at, end, found[at - offset :])
        return bytes(found)

    def _check(self) -> None:
        if self.lost:
            raise PastLost(self.lost)

    def _read_base(self, volume: FrozenVolume, start: int, end: int, into: memoryview) -> None:
        """Put bytes *start* to *end* of the file boundary into *into*; behind its end are zeros."""
        end = min(end, volume.base_bytes)
        if start >= end:
            return
        number, at, known = volume.volume, start, len(self._index)
        missing: list[tuple[int, int]] = []
        for piece in sorted(self._index.find(number, start, end)):
            if at < piece.start:
                missing.append((at, piece.start))
            data = self._index.read(number, piece)
            if data is not None:
                into[piece.start - start : piece.end - start] = data
            at = piece.end
        if at < end:
            missing.append((at, end))
        if missing:
            self._read_mirror(number, missing, start, into, known)

    def _read_mirror(
        self,
        volume: VolumeId,
        missing: list[tuple[int, int]],
        start: int,
        into: memoryview,
        known: int,
    ) -> None:
        """Read what none of the *known* layers has; then ask for those that came to be since."""
        fd = self._source(volume)
        got = [
            self._disk.pread_into(fd, into[low - start : high - start], low)
            for low, high in missing
        ]
        self._hear()
        for (low, high), count in zip(missing, got, strict=True):
            covered: list[tuple[int, int]] = []
            for piece in self._index.find(volume, low, high, known):
                data = self._index.read(volume, piece)
                into[piece.start - start : piece.end - start] = data or bytes(
                    piece.end - piece.start
                )
                covered.append((piece.start, piece.end))
            if count < high - low:
                self._check_end(volume, low + count, high, covered)

    def _check_end(
        self, volume: VolumeId, at: int, end: int, covered: list[tuple[int, int]]
    ) -> None:
        """Make sure that what the mirror no longer has, somebody cut off and saved."""
        for low, high in sorted(covered):
            if low <= at:
                at = max(at, high)
        if at < end:
            text = f"volume {volume} of the mirror ends at byte {at}, and no undo file has the rest"
            raise StoreError(text, hint="Somebody changed the mirror by hand; verify the store.")

    def _source(self, volume: VolumeId) -> int:
        """Return where the bytes of a volume are: in the mirror, or kept since its removal."""
        in_mirror = self._past.path / "volumes" / f"{volume:08d}"
        path = self._index.gone.get(volume) or in_mirror
        try:
            return self._sources.get(path)
        except FileNotFoundError:
            if self._past.state.phase is Phase.PROMOTED:  # It came back with what was gone over.
                return self._sources.get(in_mirror)
            self._hear()
            if volume not in self._index.gone:
                raise
            return self._sources.get(self._index.gone[volume])

    # Following the replayer.

    def _hear(self) -> None:
        """Take note of everything that what was read so far can have been changed by."""
        self.lost = "what the replayer did could not be followed"  # Unless this is done.
        try:
            is_written = self._note_news()
            number = self._look_at_state() if is_written else 0
            while number > self._known_head:
                # It is newer than what was told, and of what led to it was told before it.
                self._note_news()
                if number > self._known_head:
                    raise _gone(self._known_head + 1)
                number = self._look_at_state()
        except (AimfuseError, OSError) as exc:
            self._lose(str(exc).replace(str(self._past.path), str(self.store)))
            raise PastLost(self.lost) from exc
        self.lost = ""

    def _lose(self, why: str) -> None:
        """Refuse every read from now on."""
        self.lost = why
        log.error("%s: the view has ended: %s", self.store, why)

    def _note_news(self) -> bool:
        """Index undo files that came to be; return whether the state is to be looked at."""
        news = self._watch.news()
        if news is None:
            behind = max(0, self._known_head - 1)  # The newest may be another one by now.
            self._take_note(list_names(self._look, self._past.history, behind))
            return True
        if news.names:
            self._take_note(_named(news.names))
        return news.is_written

    def _take_stock(self, past: Past) -> None:
        """Index what is there at the beginning, and make sure that nothing is missing."""
        head = past.state.head
        assert head is not None
        self._take_note(past.kept)
        if head.number > self._known_head:
            raise _gone(self._known_head + 1)
        self._check_head(past.state)

    def _take_note(self, sets: dict[int, KeptSet]) -> None:
        """Index the undo files in *sets* that are behind those known."""
        for number in sorted(sets):
            one = sets[number]
            if not one.has_undo or number <= self._known_head:
                self._check_same(one)
                continue
            if number != self._known_head + 1:
                raise _gone(self._known_head + 1)
            self._add(self._index.load(one.name))

    def _add(self, loaded: Loaded) -> None:
        path, mark = self._past.history / str(UndoName(loaded.name)), loaded.mark
        if mark.sync_id != _sync_id(self._past.state):
            return  # Left from in front of a switch: its file will get another.
        before = self._newest.mark.of if self._newest else self._base_digest
        if mark.head.digest != before:
            raise CorruptRecord(path, 0, "it leads back to another file than the one before")
        if self._newest is None and self._redo_digest not in {None, mark.of}:
            raise CorruptRecord(path, 0, "it takes back another file than the one that is here")
        self._index.add(loaded)
        self._newest = loaded
        self._known_head += 1

    def _check_same(self, one: KeptSet) -> None:
        """Notice an undo file that takes the place of the newest one known."""
        newest = self._newest and self._newest.name
        if one.has_undo and newest and one.name.number == newest.number and one.name != newest:
            raise StoreError(f"file {one.name.number} was applied again, as another one")

    def _look_at_state(self) -> int:
        """Return the file that the mirror is at, once it is sure that it was changed as ever."""
        state, then = read_state(self._disk, self._past.path, self._look), self._past.state
        floor, before = read_floor(self._floor_slots, state), self._past.floor
        assert then.head is not None
        if then.phase is Phase.PROMOTED and (state.phase, state.promoted, state.doubt) == (
            then.phase, then.promoted, "",
        ):  # fmt: skip
            return then.head.number  # What a promotion has left of the past stays as it is.
        if not is_whole(state) or state.sync != then.sync:
            why = f"the mirror changed in a way that cannot be taken back: {state.phase.value}"
            raise StoreError(why)
        if floor.is_off != before.is_off or (floor != before and floor.number > then.head.number):
            raise StoreError(f"history began anew: {floor.why}")
        self._check_head(state)
        assert state.head is not None
        return state.head.number

    def _check_head(self, state: StoreState) -> None:
        """Make sure that what was indexed last takes back what the mirror has."""
        head, newest = state.head, self._newest
        assert head is not None
        is_left = state.phase is Phase.PROMOTED  # What was gone back over is indexed, too.
        if head.number < self._known_head - 1 and not is_left:
            raise StoreError(f"the mirror went back to file {head.number}")
        if newest and head.number == newest.name.number and newest.mark.of != head.digest:
            raise StoreError(f"file {head.number} is another one than its undo file takes back")


def _changes_of(rebuild: Rebuild, volumes: set[VolumeId]) -> dict[VolumeId, Redo]:
    found = {volume: Redo() for volume in volumes}
    held = 0
    for aim, plan in rebuild.changes():
        held += len(aim.data)
        if held > AHEAD_BYTES_MAX:
            text = f"the mirror has more than {format_bytes(AHEAD_BYTES_MAX)} to apply up to there"
            raise OutOfReach(text, hint="Wait until it has, or use `aimfuse restore`.")
        for volume in volumes & plan.changes.keys():
            found[volume].add(aim, plan.changes[volume])
    return found


@contextmanager
def named_as(home: Path, store: Path) -> Iterator[None]:
    """Have errors of the block name *store* where they name *home*, the way that is taken there."""
    try:
        yield
    except AimfuseError as exc:
        exc.args = tuple(str(one).replace(str(home), str(store)) for one in exc.args)
        raise
    except OSError as exc:
        if exc.filename is not None:
            exc.filename = os.fsdecode(exc.filename).replace(str(home), str(store))
        raise


def _gone(number: int) -> StoreError:
    return StoreError(
        f"the undo file of file {number} is gone", hint="Somebody removed it by hand."
    )


def _named(names: tuple[str, ...]) -> dict[int, KeptSet]:
    """Return the sets whose undo files have just got their names."""
    found: dict[int, KeptSet] = {}
    for text in names:
        name = parse_kept(text)
        if isinstance(name, UndoName) and name.part == 0:
            found[name.file.number] = KeptSet(name.file, has_undo=True)
    return found


def _sync_id(state: StoreState) -> int:
    return state.sync.sync_id if state.sync else 0
