"""What a copy still has to bring over: a map beside the cursor, a new one for each round.

It is durable before the cursor speaks of its round. All of this is done under the retention
lock, where the driver neither folds nor releases; it blocks.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from aimfuse.coordinator.acks import Position
from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.cursor import SyncState, SyncVolume
from aimfuse.coordinator.route import Rule
from aimfuse.coordinator.source import SourceCheckpoint
from aimfuse.disk import Disk
from aimfuse.errors import JournalError, Unavailable
from aimfuse.journal.contents import fold_into, read_contents
from aimfuse.journal.dirty import DirtyMap, Extent, read_map, write_map
from aimfuse.journal.fold import Fold, FoldFile, FoldMaps
from aimfuse.journal.journal import Head
from aimfuse.journal.records import VolumeEntry

TODO = "todo-"


class CheckpointAwaited(Unavailable):
    """A copy can begin once the image's checkpoint is newer."""


class NotCovered(Exception):
    """The fold does not hold all that the mirror lacks: only a copy of everything helps."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Which volumes a destination gets, and which it had so far; without a rule, all."""

    rule: Rule | None
    members: frozenset[int]

    def takes(self, entry: VolumeEntry) -> bool:
        """Tell whether the volume is sent: by its present name, unless it is sent already."""
        return self.rule is None or entry.volume in self.members or self.rule.takes(entry.name)

    def is_new(self, entry: VolumeEntry) -> bool:
        """Tell whether the mirror has nothing of it: what it held before must be copied, too."""
        return self.rule is not None and entry.volume not in self.members


class Todo:
    """The maps of one destination's copies."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        """Keep them in the destination's *directory*."""
        self._disk = disk
        self._directory = directory
        self._fold = FoldFile(disk, directory)

    def read(self, sync: SyncState) -> DirtyMap | None:
        """Return the map that *sync* goes by, None for a first one in its first round.

        Raises:
            NotCovered: it is damaged or gone.
            OSError: it could not be read.
        """
        if not sync.is_mapped:
            return None
        try:
            return read_map(self._disk, self._path(sync.sync_id, sync.round))
        except (JournalError, FileNotFoundError) as exc:
            raise NotCovered(str(exc)) from exc

    def write(self, sync: SyncState, todo: DirtyMap) -> None:
        """Make the map of *sync* durable, before a cursor speaks of it."""
        write_map(self._disk, self._path(sync.sync_id, sync.round), todo)

    def forget_others(self, sync: SyncState | None) -> None:
        """Remove the maps that no cursor speaks of any more."""
        kept = self._path(sync.sync_id, sync.round).name if sync else ""
        for name in self._disk.listdir(self._directory):
            if name.startswith(TODO) and name != kept:
                with contextlib.suppress(OSError):  # It is only in the way.
                    self._disk.unlink("todo:unlink", self._directory / name)

    def of_fold(self, confirmed: int) -> tuple[Fold, DirtyMap]:
        """Return the fold, and what a mirror at file *confirmed* lacks up to it.

        Raises:
            NotCovered: the maps are not of all that.
            OSError: they could not be read.
        """
        fold, maps = self._read_fold()
        if not fold.covers(confirmed):
            raise NotCovered(f"the maps begin behind file {fold.since}")
        if confirmed < fold.mid:
            maps.recent.add_all(maps.old)
        return fold, maps.recent

    def overtaken(
        self, sync: SyncState, at: Position, membership: Membership
    ) -> tuple[Fold, DirtyMap]:
        """Return the fold, and what *sync* has still to bring over now that it was overtaken.

        That is what it had not brought over before the place *at*, and what is in the files
        that left the spool behind its origin.

        Raises:
            NotCovered: the map is not of all of these.
            OSError: a map could not be read.
        """
        fold, maps = self._read_fold()
        if fold.head is None or fold.mid > sync.head.number:
            raise NotCovered(f"the map begins behind file {fold.mid}")
        left = self.read(sync)
        if left is None:
            left = whole(one.entry for one in sync.volumes)
        left.drop_before(*at)
        left.add_all(maps.recent)
        kept = [one for one in fold.volumes if membership.takes(one)]
        _keep_only(left, kept, membership)
        return fold, left

    def _read_fold(self) -> tuple[Fold, FoldMaps]:
        fold = self._fold.read()
        try:
            return fold, self._fold.read_maps(fold)
        except (JournalError, FileNotFoundError) as exc:
            raise NotCovered(str(exc)) from exc

    def _path(self, sync_id: int, round_number: int) -> Path:
        return self._directory / f"{TODO}{sync_id:016x}-{round_number}.map"


def whole(entries: Iterable[VolumeEntry]) -> DirtyMap:
    """Return the map of everything."""
    everything = DirtyMap()
    for entry in entries:
        everything.add(entry.volume, 0, entry.size_bytes)
    return everything


def limited(todo: DirtyMap, volumes: Iterable[VolumeEntry], membership: Membership) -> DirtyMap:
    """Return *todo* without what the destination does not get."""
    _keep_only(todo, [one for one in volumes if membership.takes(one)], membership)
    return todo


def behind(backlog: Backlog, disk: Disk, after: int, through: int) -> DirtyMap:
    """Return what the spool's files behind *after* up to *through* change.

    Raises:
        NotCovered: one of them is gone or damaged.
        OSError: one could not be read.
    """
    found = DirtyMap()
    try:
        for number in range(after + 1, through + 1):
            name = backlog.name(number)
            if name is None:
                raise NotCovered(f"file {number} has left the spool")
            contents = read_contents(disk, backlog.path(name))
            if contents.is_broken:
                raise NotCovered(f"history is broken in file {number}")
            fold_into(found, [contents])
    except (JournalError, FileNotFoundError) as exc:
        raise NotCovered(str(exc)) from exc
    return found


def checked_checkpoint(checkpoint: SourceCheckpoint, least: int) -> SourceCheckpoint:
    """Return *checkpoint* if a copy of a mirror at file *least* may begin there.

    Raises:
        CheckpointAwaited: not yet: the mirror is ahead of it, or history is broken behind it.
    """
    hint = "It begins by itself, once the image is mounted and has been written to."
    if checkpoint.gap is not None:  # The store would meet the GAP record behind it.
        why = f"the copy waits for the next checkpoint: {checkpoint.gap}"
        raise CheckpointAwaited(why, hint=hint)
    if checkpoint.head.number < least:
        raise CheckpointAwaited(
            f"the copy waits for a checkpoint behind file {least}, the newest one is at "
            f"{checkpoint.head.number}", hint=hint,
        )  # fmt: skip
    return checkpoint


def placed(
    entries: Iterable[VolumeEntry], checkpoint: SourceCheckpoint, membership: Membership
) -> tuple[SyncVolume, ...]:
    """Return the volumes that are sent, with the inodes by which they are found."""
    inodes = {one.entry.volume: one.inode for one in checkpoint.volumes}
    return tuple(
        SyncVolume(entry, inodes.get(entry.volume, 0))
        for entry in entries
        if membership.takes(entry)
    )


def begun(
    sync_id: int, head: Head, volumes: tuple[SyncVolume, ...], next_volume: int, why: str
) -> SyncState:
    """Return a staged copy that begins."""
    return SyncState(sync_id, head, volumes, next_volume, staged=True, why=why)


def next_round(
    sync: SyncState, fold: Fold, volumes: tuple[SyncVolume, ...], total_bytes: int
) -> SyncState:
    """Return *sync* as it goes on from the fold's position, with what was overtaken."""
    assert fold.head is not None
    return replace(
        sync, head=fold.head, volumes=volumes, next_volume=0, total_bytes=total_bytes,
        done_bytes=0, next=(0, 0), to=None, round=sync.round + 1,
    )  # fmt: skip


def add_ranges(todo: DirtyMap, volumes: Iterable[SyncVolume], ranges: Iterable[Extent]) -> None:
    """Add *ranges* as far as they are of *volumes*."""
    known = {int(one.entry.volume) for one in volumes}
    for one in ranges:
        if one.volume in known:
            todo.add(*one)


def _keep_only(todo: DirtyMap, kept: list[VolumeEntry], membership: Membership) -> None:
    for volume in todo.volumes() - {int(one.volume) for one in kept}:
        todo.forget(volume)
    for one in kept:
        if membership.is_new(one):
            todo.add(one.volume, 0, one.size_bytes)
