"""Build volumes of the past: copy the mirror, take back what came later, go forward again.

The copy is made while a replayer may be at work on the mirror, so it is a mixture of times. All
that it can have caught of later files is in their undo files, which were durable before the
mirror changed: they are listed once the copy is complete, and every one behind the point is
executed on it, the newest first. No lock holds the replayer up.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from aimfuse.disk import Disk
from aimfuse.errors import BusyError, CorruptRecord, JournalError, StoreError
from aimfuse.journal.reader import AimFile, read_sealed
from aimfuse.journal.records import Iocb
from aimfuse.replay.apply import execute, set_size
from aimfuse.replay.kept import KeptSet
from aimfuse.replay.look import Look
from aimfuse.replay.past import Past, look_at
from aimfuse.replay.plan import Plan, plan_until, start
from aimfuse.replay.point import Point
from aimfuse.replay.state import StoreState
from aimfuse.replay.undo import Undo, parts_of, read_undo
from aimfuse.units import MIB, VolumeId

T = TypeVar("T")

COPY_BYTES = 16 * MIB
"""Bytes that one call copies, and between two reports of progress."""

_AGAIN = "Run it again: it begins from what the mirror is now."

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

    def __init__(self, disk: Disk, past: Past, point: Point, look: Look | None = None) -> None:
        """Find out what was there; nothing is copied yet.

        Raises:
            JournalError: a file of the history is damaged.
            OSError: one could not be read, or the mirror could not.
        """
        self.point = point
        self._disk = disk
        self._past = past
        self._look = look
        self._fds: list[int] = []
        self.then = self._state_at(point.base)
        self.redo: AimFile | None = None
        if point.redo is None:
            self.plan: Plan = start(self.then)
        else:
            self.redo = self._read_redo(point.redo)
            self.plan = plan_until(self.then, self.redo, point.seq)
        self._done = 0
        self._total = 0

    def close(self) -> None:
        """Close what is open of the mirror."""
        for fd in self._fds:
            self._disk.close(fd)
        self._fds.clear()

    @property
    def is_newest(self) -> bool:
        """Tell whether the point is where the mirror was: nothing behind it is here."""
        head = self._past.state.head
        return head is not None and self.point.redo is None and self.point.base == head.number

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
        return [*found, *(one for one in reach.sets if one.name.number > self.point.base)]

    def build(self, pieces: list[Piece], targets: list[int], report: Report) -> None:
        """Write each piece into the empty file *targets* has open for it; nothing is synced.

        Raises:
            BusyError: the mirror got a staged copy meanwhile, or its history began anew.
            JournalError: a file of the history is damaged. What was written is of no use.
            OSError: a disk failed or is full; as above.
        """
        undo_bytes = sum(one.size_bytes for one in self.undo_sets())
        self._total = sum(piece.source_bytes for piece in pieces) + undo_bytes
        files = dict(zip((piece.volume for piece in pieces), targets, strict=True))
        for piece in pieces:
            if piece.source >= 0:
                self._copy(piece, files[piece.volume], report)
        # What the records in front of the point create was not there when they began.
        old = {piece.volume: files[piece.volume] for piece in pieces if piece.source >= 0}
        self._take_back(old, report)
        self._go_forward(files, report)

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

    def _read_undo(self, one: KeptSet) -> Undo:
        return self._checked(lambda: read_undo(self._disk, self._past.history, one.name))

    def _checked(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except JournalError as exc:
            exc.hint = DAMAGED_HINT
            raise

    def _piece(self, volume: VolumeId, name: str, size: int) -> Piece:
        if volume in self.plan.created:
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
        disk, what = self._disk, f"copying {piece.name}"
        begun = self._done
        if not disk.clone("restore:clone", piece.source, target):
            for low, high in disk.data_ranges(piece.source, 0, disk.size(piece.source)):
                at = low
                while at < high:
                    wanted = min(COPY_BYTES, high - at)
                    got = disk.copy_range("restore:copy", piece.source, target, at, wanted)
                    if not got:  # The replayer has cut it; what was there is in an undo file.
                        break
                    at += got
                    self._done += got
                    report(what, self._done, self._total)
        self._done = begun + piece.source_bytes
        report(what, self._done, self._total)

    def _take_back(self, files: dict[VolumeId, int], report: Report) -> None:
        """Execute every undo file behind the point that is there now, the newest first."""
        past = self._look_again()
        behind: Undo | None = None
        for one in self._later_sets(past):
            undo = self._read_undo(one)
            self._check_place(past, undo, behind)
            if behind is None and undo.mark.sync_id != _sync_id(past.state):
                continue  # Left from in front of a switch: its file will get another.
            for entry in undo.table:
                if entry.volume in files:
                    set_size(self._disk, "restore:size", files[entry.volume], entry.size_bytes)
            for part in parts_of(self._disk, past.history, undo):
                self._execute(part, files)
            behind = undo
            self._done += one.size_bytes
            report(f"taking back file {undo.name.number}", self._done, self._total)

    def _look_again(self) -> Past:
        past, then = look_at(self._disk, self._past.path, self._look), self._past
        assert then.state.head is not None
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

    def _go_forward(self, files: dict[VolumeId, int], report: Report) -> None:
        for volume, fd in files.items():
            if self.redo is not None and volume in self.plan.changes:
                execute(self._disk, fd, self.redo, self.plan.changes[volume])
            set_size(self._disk, "restore:size", fd, self.plan.sizes[volume])
        report("writing", self._total, self._total)

    def _execute(self, part: AimFile, files: dict[VolumeId, int]) -> None:
        changes: dict[VolumeId, list[Iocb]] = {}
        for iocb in part.records():
            if iocb.volume in files:
                changes.setdefault(iocb.volume, []).append(iocb)
        for volume, found in changes.items():
            execute(self._disk, files[volume], part, found)


def _sync_id(state: StoreState) -> int:
    return state.sync.sync_id if state.sync else 0


DAMAGED_HINT = "The history is damaged there. Points behind that file can be had; look at the disk."


def _damaged(path: Path, reason: str) -> CorruptRecord:
    return CorruptRecord(path, 0, reason, hint=DAMAGED_HINT)
