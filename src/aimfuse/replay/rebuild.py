"""Build volumes of the past: copy the mirror, take back what came later, go forward again.

The copy is made while a replayer may be at work on the mirror, so it is a mixture of times. All
that it can have caught of later files is in their undo files, which were durable before the
mirror changed: they are listed once the copy is complete, and every one behind the point is
executed on it, the newest first. No lock holds the replayer up.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, TypeVar

from aimfuse.disk import Disk
from aimfuse.errors import BusyError, CorruptRecord, JournalError, StoreError, TransportError
from aimfuse.journal.excerpt import read_front
from aimfuse.journal.names import JournalName
from aimfuse.journal.reader import AimFile, read_sealed
from aimfuse.replay.ahead import results_of
from aimfuse.replay.apply import execute, set_size
from aimfuse.replay.copying import Copying
from aimfuse.replay.kept import KeptSet, measured
from aimfuse.replay.look import Look
from aimfuse.replay.onward import go
from aimfuse.replay.past import Past, look_at, promoted_tail
from aimfuse.replay.plan import Plan, plan_until, start
from aimfuse.replay.point import Point
from aimfuse.replay.resume import Resume, Stage
from aimfuse.replay.state import StoreState
from aimfuse.replay.taken_back import Ranges, ranges_of, take_back
from aimfuse.replay.undo import Read, Undo, further_parts, read_undo
from aimfuse.units import VolumeId

T = TypeVar("T")

HELD_MAX = 3
"""Undo files in memory: one is executed, one is read or waits; and one for good measure."""

_AGAIN = "Run it again: it begins from what the mirror is now."


class Reads(NamedTuple):
    """How part 0 of an undo file is read that is executed, and how further parts are."""

    first: Read
    further: Read = read_sealed


Reading = Callable[[Collection[int]], Reads]
"""Says how undo files are read of which the records of some volumes are needed."""


def read_whole(_volumes: Collection[int]) -> Reads:
    """Read all of them, whatever is needed."""
    return Reads(read_sealed)


Report = Callable[[str, int, int], None]
"""Gets what is being done, and bytes done and in all."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One volume to build; *source* is open on where its bytes are now, or -1 for none."""

    volume: VolumeId
    name: str
    size_bytes: int
    source: int
    source_bytes: int


class Rebuild:
    """One point of one store's past. Holds the volumes' files open until `close`.

    `then` is the state behind the file in front of it, `plan` what the records of `redo` up to
    the point do to that.
    """

    def __init__(
        self,
        disk: Disk,
        past: Past,
        point: Point,
        look: Look | None = None,
        *,
        copiers: int = 0,
        reading: Reading = read_whole,
    ) -> None:
        """Find out what was there; nothing is copied yet.

        So many threads copy as *copiers* says, and one reads and checks what is executed next;
        with 0 all of it is done by the caller's. Undo files are read as *reading* says.

        Raises:
            JournalError: a file of the history is damaged.
            OSError: one could not be read, or the mirror could not.
        """
        self.point = point
        self._disk = disk
        self._past = past
        self._look = look
        self._fds: list[int] = []
        self._sizes: dict[JournalName, int] = {}
        self.then = self._state_at(point.base)
        self.redo: AimFile | None = None
        self._made: set[VolumeId] = set()
        if point.redo is None:
            self.plan: Plan = start(self.then)
            for _aim, plan in self._onward():
                self.plan = plan
                self._made |= plan.created
        else:
            self.redo = self._read_redo(point.redo)
            self.plan = plan_until(self.then, self.redo, point.seq)
        self._done = 0
        self._total = 0
        self._readers = 1 if copiers else 0
        self._reading = reading
        self._copiers = max(1, copiers)
        self._resume: Resume | None = None
        self._targets: list[int] = []
        self._stage: Stage | None = None

    def close(self) -> None:
        """Close what is open of the mirror."""
        for fd in self._fds:
            self._disk.close(fd)
        self._fds.clear()

    @property
    def is_newest(self) -> bool:
        """Tell whether the point is where the mirror was: nothing behind it is here."""
        head = self._past.state.head
        point = self.point
        one, seq = promoted_tail(self._past)
        if one is not None:
            return point.redo is not None and (point.redo.name, point.seq) == (one.name, seq)
        at_end = point.redo is None and not point.onward
        return head is not None and at_end and point.base == head.number

    @property
    def is_promoted(self) -> bool:
        """Tell whether the store was promoted: its mirror has gone on as a source."""
        return self._past.state.promoted is not None

    def names(self) -> list[str]:
        """Return the volumes that were there, by name."""
        return sorted(self.plan.names.values())

    def pieces(self, wanted: str | None) -> list[Piece]:
        """Return the volumes that were there, or the one called *wanted*, and open them.

        Raises:
            FileNotFoundError: the replayer has just removed one. Begin again.
            OSError: the mirror could not be opened.
        """
        return [
            self._piece(entry.volume, entry.name, entry.size_bytes)
            for entry in self.plan.table()
            if wanted in {None, entry.name}
        ]

    def undo_sets(self) -> list[KeptSet]:
        """Return the sets that, as far as is known now, have to be taken back."""
        reach = self._past.reach
        assert reach is not None
        found = [reach.open_set] if reach.open_set else []
        sets = takewhile(lambda one: one.name.number > self.point.base, reach.sets)
        return self._measured([*found, *sets])

    def _measured(self, sets: list[KeptSet]) -> list[KeptSet]:
        """Return *sets* with their sizes, each looked at once."""
        new = [one for one in sets if one.name not in self._sizes]
        for one in measured(self._look or Look(), self._past.history, new):
            self._sizes[one.name] = one.size_bytes
        return [one._replace(size_bytes=self._sizes[one.name]) for one in sets]

    def build(
        self,
        pieces: list[Piece],
        targets: list[int],
        report: Report,
        resume: Resume | None = None,
    ) -> None:
        """Write each piece into the file that *targets* has open for it; nothing is synced.

        What is in the files already counts for as much as *resume* knows of it.

        Raises:
            BusyError: the mirror got a staged copy meanwhile, or its history began anew.
            JournalError: a file of the history is damaged. What was written is of no use.
            OSError: a disk failed or is full; as above.
        """
        undo_bytes = sum(one.size_bytes for one in self.undo_sets())
        self._total = sum(piece.source_bytes for piece in pieces) + undo_bytes
        files = dict(zip((piece.volume for piece in pieces), targets, strict=True))
        # What the records in front of the point create was not there when they began.
        names = {piece.volume: piece.name for piece in pieces if piece.source >= 0}
        old = {volume: files[volume] for volume in names}
        self._resume, self._targets = resume, targets
        self._stage = self._found_stage(names)
        for volume, fd in files.items():
            if self._stage is None or volume not in old:
                self._disk.truncate("restore:empty", fd, 0)
        self._stage = self._stage or self._new_stage(names)
        try:
            for piece in pieces:
                if piece.source >= 0 and self._stage.back_to is None:
                    self._copy(piece, files[piece.volume], report)
            self._take_back(old, report)
            self._go_forward(files, report)
        except (TransportError, KeyboardInterrupt):
            self._note_stage(now=True)
            raise

    def _new_stage(self, names: Mapping[VolumeId, str]) -> Stage:
        state = self._past.state
        assert state.head is not None
        assert state.group is not None
        return Stage(
            state.group.hex(), _sync_id(state), state.head.number,
            dict.fromkeys(map(int, names), 0), {int(one): names[one] for one in names},
            digest=state.head.digest.hex(),
        )  # fmt: skip

    def _found_stage(self, names: Mapping[VolumeId, str]) -> Stage | None:
        """Return how far the files are already, or None if they are of no use."""
        stage = self._resume.load() if self._resume else None
        if stage is None:
            return None
        is_of_use = stage.serves(self._new_stage(names), self.point.base, self._forward())
        return stage if is_of_use and self._digest_of(stage.end) == stage.digest else None

    def _digest_of(self, number: int) -> str:
        """Return the digest of a file at or behind the point, "" where that is not known."""
        past, behind, own = self._past, self._past.kept.get(number + 1), self._past.kept.get(number)
        assert past.state.head is not None
        if number == past.state.head.number:
            return past.state.head.digest.hex()
        if behind is not None and behind.has_undo:
            return self._read_undo(behind).mark.head.digest.hex()
        if own is not None and own.has_undo:
            return self._read_undo(own).mark.of.hex()
        return ""

    def _forward(self) -> tuple[int, int] | None:
        point = self.point
        last = point.onward[-1] if point.onward else point.redo
        return (last.name.number, point.seq) if last else None

    def _note_stage(self, *, now: bool = False) -> None:
        if self._resume and self._stage:
            self._resume.note(self._stage, self._targets, now=now)

    # What was there.

    def _state_at(self, base: int) -> StoreState:
        """Return the table behind file *base*, in the form in which a file is planned on it."""
        state = self._past.state
        assert state.head is not None
        if base == state.head.number:
            return state
        undo = self._read_undo(self._past.kept[base + 1])
        mark = undo.mark
        return replace(
            state, head=mark.head, volumes=undo.table,
            volume_id_max=mark.id_max, volume_ids_exact=mark.ids_exact,
        )  # fmt: skip

    def _read_redo(self, one: KeptSet) -> AimFile:
        path = self._past.history / one.name.sealed
        aim = self._checked(lambda: read_sealed(self._disk, path))
        if aim.seal.digest != self._read_undo(one).mark.of:
            raise _damaged(path, "it is not the file that its undo file takes back")
        return aim

    def _read_undo(self, one: KeptSet, read: Read = read_front) -> Undo:
        return self._checked(lambda: read_undo(self._disk, self._past.history, one.name, read))

    def _checked(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except JournalError as exc:
            exc.hint = DAMAGED_HINT
            raise

    def _piece(self, volume: VolumeId, name: str, size: int) -> Piece:
        if volume in self.plan.created | self._made:
            return Piece(volume, name, size, -1, 0)
        path = self._past.path / "volumes" / f"{volume:08d}"
        for number, one in self._past.kept.items():
            if number > self.point.base and volume in one.gone():
                path = self._past.history / one.gone()[volume]
                break
        fd = self._disk.open("restore:source", path, os.O_RDONLY | os.O_NOFOLLOW)
        self._fds.append(fd)
        return Piece(volume, name, size, fd, self._disk.allocated(fd))

    # Building.

    def _copy(self, piece: Piece, target: int, report: Report) -> None:
        what, begun, stage = f"copying {piece.name}", self._done, self._stage
        assert stage is not None

        def told(got: int, at: int) -> None:
            self._done += got
            report(what, self._done, self._total)
            if self._resume:
                stage.copied[piece.volume] = at
                self._note_stage()

        if not self._disk.clone("restore:clone", piece.source, target):
            begin = stage.copied[piece.volume]
            Copying(self._disk, piece.source, target, begin, told).run(self._copiers)
            if self._resume:
                stage.copied[piece.volume] = max(begin, self._disk.size(piece.source))
        self._done = begun + piece.source_bytes
        report(what, self._done, self._total)

    def _take_back(self, files: dict[VolumeId, int], report: Report) -> None:
        """Execute every undo file behind the point that is there now, the newest first."""
        past = self._look_again()
        behind: Undo | None = None
        assert self._stage is not None
        end = self._stage.back_to
        later = [one for one in self._later_sets(past) if end is None or one.name.number <= end]
        reads = self._reading(files.keys())
        calls = (partial(self._read_ahead, one, reads.first) for one in later)
        with closing(results_of(calls, self._readers)) as undos:
            for one, (undo, ranges) in zip(later, undos, strict=True):
                self._check_place(past, undo, behind)
                self._check_stage(undo)
                if behind is None and undo.mark.sync_id != _sync_id(past.state):
                    continue  # Left from in front of a switch: its file will get another.
                self._take_back_one(undo, ranges, files, reads.further)
                behind = undo
                self._done += one.size_bytes
                report(f"taking back file {undo.name.number}", self._done, self._total)

    def _read_ahead(self, one: KeptSet, read: Read) -> tuple[Undo, list[Ranges]]:
        undo = self._read_undo(one, read)
        return undo, self._checked(lambda: ranges_of(undo.aim))

    def _take_back_one(
        self, undo: Undo, ranges: list[Ranges], files: dict[VolumeId, int], further: Read
    ) -> None:
        assert self._stage is not None
        for entry in undo.table:
            if entry.volume in files:
                set_size(self._disk, "restore:size", files[entry.volume], entry.size_bytes)
        take_back(self._disk, undo.aim, ranges, files, "restore")
        for part in further_parts(self._disk, self._past.history, undo, further):
            take_back(self._disk, part, ranges_of(part), files, "restore")
        self._stage.back_to = undo.name.number - 1
        self._stage.digest = undo.mark.head.digest.hex()
        self._note_stage()

    def _look_again(self) -> Past:
        then = self._past
        past = look_at(self._disk, then.path, self._look, self.point.base)
        assert then.state.head is not None
        if past.state.promoted != then.state.promoted:
            raise BusyError("the store was promoted while it was read", hint=_AGAIN)
        if past.reach is None or past.state.sync != then.state.sync:
            raise BusyError("the mirror got a staged copy while it was read", hint=_AGAIN)
        is_raised = past.floor != then.floor and past.floor.number > then.state.head.number
        if is_raised or past.floor.is_off != then.floor.is_off:
            raise BusyError("history began anew while it was read", hint=_AGAIN)
        return past

    def _later_sets(self, past: Past) -> list[KeptSet]:
        """Return the sets behind the point, the newest first."""
        assert past.state.head is not None
        found: list[KeptSet] = []
        number = self.point.base + 1
        while (one := past.kept.get(number)) is not None and one.has_undo:
            found.append(one)
            number += 1
        if number <= past.state.head.number:
            raise StoreError(
                f"the undo file of file {number} is gone", hint="Somebody removed it by hand."
            )
        found = self._measured(found)
        added = sum(one.size_bytes for one in found) - sum(
            one.size_bytes for one in self.undo_sets()
        )
        self._total += max(0, added)
        return found[::-1]

    def _check_place(self, past: Past, undo: Undo, behind: Undo | None) -> None:
        """Make sure that *undo* is of this history, and continues what was taken back."""
        head, mark = past.state.head, undo.mark
        assert head is not None
        is_open = undo.name.number == head.number + 1
        if mark.sync_id != _sync_id(past.state) and not is_open:
            raise _damaged(undo.aim.path, "it belongs to another copy")
        after = behind.mark.head.digest if behind else None
        if after is None and undo.name.number == head.number:
            after = head.digest
        if after is not None and mark.of != after:
            raise _damaged(undo.aim.path, "it takes back another file than the one that was here")

    def _check_stage(self, undo: Undo) -> None:
        """Make sure that *undo* goes on from what an interrupted restore had taken back."""
        stage = self._stage
        if stage and stage.back_to == undo.name.number and undo.mark.of.hex() != stage.digest:
            raise _damaged(undo.aim.path, "it takes back another file than before")

    def _go_forward(self, files: dict[VolumeId, int], report: Report) -> None:
        if self._stage and self._forward():
            self._stage.forward = self._forward()
            self._note_stage(now=True)
            for entry in self.then.volumes:  # An interrupted attempt may have left more.
                if self._resume and entry.volume in files:
                    set_size(self._disk, "restore:size", files[entry.volume], entry.size_bytes)
        for volume, fd in files.items():
            if self.redo is not None and volume in self.plan.changes:
                execute(self._disk, fd, self.redo, self.plan.changes[volume])
            if not self.point.onward:
                set_size(self._disk, "restore:size", fd, self.plan.sizes[volume])
        for aim, plan in self._onward():
            for volume in files.keys() & plan.sizes.keys():
                execute(self._disk, files[volume], aim, plan.changes.get(volume, ()))
                set_size(self._disk, "restore:size", files[volume], plan.sizes[volume])
        report("writing", self._total, self._total)

    def changes(self) -> Iterator[tuple[AimFile, Plan]]:
        """Yield the files between the base and the point, and what each does up to it."""
        if self.redo is not None:
            yield self.redo, self.plan
        yield from self._onward()

    def _onward(self) -> Iterator[tuple[AimFile, Plan]]:
        """Yield the files between the mirror and the point, and what each does."""
        point = self.point
        steps = go(self._disk, self._past.path, self.then, point.onward, point.seq)
        while (step := self._checked(lambda: next(steps, None))) is not None:
            yield step


def _sync_id(state: StoreState) -> int:
    return state.sync.sync_id if state.sync else 0


DAMAGED_HINT = "The history is damaged there. Points behind that file can be had; look at the disk."


def _damaged(path: Path, reason: str) -> CorruptRecord:
    return CorruptRecord(path, 0, reason, hint=DAMAGED_HINT)
