"""Files that go unsent leave behind what they changed, whatever state they and the fold are in."""

import contextlib
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.driver.folding import fold_files, folded_through, forget_fold
from aimfuse.journal.fold import FoldFile
from aimfuse.journal.names import JournalName
from aimfuse.journal.records import RecordType
from aimfuse.journal.spool import release, sealed_names
from aimfuse.units import FileNumber
from tests.disks.cuts import keep_all, keep_none, keep_random
from tests.disks.faults import Crash
from tests.disks.simdisk import SimDisk
from tests.replay.source import Source

BLOCK = 4096


class Rig:
    """A source's spool with a file for each block, and a destination's directory."""

    def __init__(self, root: Path, files: int = 6) -> None:
        self.source = Source(root / "spool")
        self.directory = root / "far"
        self.directory.mkdir()
        self.source.create("v", 64 * BLOCK)
        self.source.roll()
        for block in range(1, files):
            self.source.write(1, block * BLOCK, b"x")
            self.source.roll()

    @property
    def names(self) -> list[JournalName]:
        return sealed_names(Disk(), self.source.spool)

    def fold(self, pin: int, first: int, last: int) -> None:
        names = [one for one in self.names if first <= one.number <= last]
        fold_files(Disk(), self.source.spool, self.directory, pin, names)

    def state(self) -> tuple[int, int, int, bool]:
        fold = FoldFile(Disk(), self.directory).read()
        return int(fold.since), int(fold.mid), int(fold.through), fold.head is not None

    def blocks(self) -> tuple[set[int], set[int]]:
        file = FoldFile(Disk(), self.directory)
        maps = file.read_maps(file.read())
        return tuple(
            {one.offset // BLOCK + n for one in dirty.extents() for n in range(one.length // BLOCK)}
            for dirty in (maps.old, maps.recent)
        )  # type: ignore[return-value]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_folding_goes_on_where_it_was(rig: Rig) -> None:
    rig.fold(1, 2, 3)
    rig.fold(1, 4, 5)
    assert rig.state() == (1, 1, 5, True)
    assert rig.blocks() == (set(), {1, 2, 3, 4})


def test_a_copy_that_took_the_map_over_is_told_the_rest_apart(rig: Rig) -> None:
    rig.fold(1, 2, 3)
    rig.fold(3, 4, 5)
    assert rig.state() == (1, 3, 5, True)
    assert rig.blocks() == ({1, 2}, {3, 4})


@pytest.mark.expects_warnings
def test_behind_a_damaged_file_the_map_begins_anew(rig: Rig) -> None:
    damaged = rig.source.spool / rig.names[2].sealed
    damaged.write_bytes(damaged.read_bytes()[:600])
    rig.fold(1, 2, 5)
    assert rig.state() == (3, 3, 5, True)
    assert rig.blocks() == (set(), {3, 4})


@pytest.mark.expects_warnings
def test_where_the_last_one_is_damaged_nothing_is_covered(rig: Rig) -> None:
    damaged = rig.source.spool / rig.names[4].sealed
    damaged.write_bytes(damaged.read_bytes()[:600])
    rig.fold(1, 2, 5)
    assert rig.state() == (5, 5, 5, False)
    assert not FoldFile(Disk(), rig.directory).read().covers(5)


def test_a_file_that_says_that_history_is_broken_breaks_the_row(rig: Rig) -> None:
    source, number = rig.source, len(rig.names)
    source.mark(RecordType.GAP, b'{"reason":"--resync"}')
    source.write(1, 9 * BLOCK, b"x")
    source.roll()
    source.write(1, 11 * BLOCK, b"x")
    source.roll()
    rig.fold(1, 2, number + 2)
    assert rig.state() == (number + 1, number + 1, number + 2, True)
    assert rig.blocks() == (set(), {11})
    assert not FoldFile(Disk(), rig.directory).read().covers(number)


def test_files_that_are_missing_break_the_row(rig: Rig) -> None:
    (rig.source.spool / rig.names[2].sealed).unlink()
    rig.fold(1, 2, 5)
    assert rig.state() == (3, 3, 5, True)


@pytest.mark.expects_warnings
@pytest.mark.parametrize("spoiled", ["fold-*.map", "fold.[01]"])
def test_an_unreadable_fold_covers_nothing_that_came_before(rig: Rig, spoiled: str) -> None:
    rig.fold(1, 2, 3)
    for path in rig.directory.glob(spoiled):
        path.write_bytes(b"spoiled")
    rig.fold(1, 4, 5)
    assert rig.state() == (3, 3, 5, True)
    assert rig.blocks() == (set(), {3, 4})


def test_a_fold_that_nobody_needs_is_forgotten(rig: Rig) -> None:
    rig.fold(1, 2, 3)
    forget_fold(Disk(), rig.directory, 2)
    assert folded_through(Disk(), rig.directory) == 3
    forget_fold(Disk(), rig.directory, 3)
    assert folded_through(Disk(), rig.directory) == 0
    rig.fold(3, 4, 5)
    assert rig.state() == (3, 3, 5, True)


def test_whenever_the_power_fails_a_file_is_there_or_folded(tmp_path: Path) -> None:
    """Fold and release with a cut before every step: nothing is ever in neither place."""
    rig = Rig(tmp_path)
    spool, directory = Path("/spool"), Path("/far")
    ready = SimDisk(spool, directory)
    for name in rig.names:
        ready.plant(spool / name.sealed, (rig.source.spool / name.sealed).read_bytes())

    def fold_and_release(disk: SimDisk) -> None:
        for last in (3, 5):
            behind = max(1, folded_through(disk, directory))
            names = [one for one in sealed_names(disk, spool) if behind < one.number <= last]
            if names:
                fold_files(disk, spool, directory, 1, names)
            release(disk, spool, FileNumber(last))

    rehearsal = ready.kill()
    fold_and_release(rehearsal)
    assert {"dirty:sync", "fold:sync", "spool:recycle"} <= set(rehearsal.labels)
    for stop_at in range(len(rehearsal.labels)):
        disk = ready.kill()
        disk.stop_at(stop_at, after_bytes=stop_at * 37 % 1500)
        with contextlib.suppress(Crash):
            fold_and_release(disk)
        for choice in (keep_none, keep_all, keep_random(stop_at)):
            left = disk.power_cut(choice)
            there = {int(one.number) for one in sealed_names(left, spool)}
            through = folded_through(left, directory)
            assert {number for number in range(2, 7) if number > through} <= there
            fold_and_release(left)
            file = FoldFile(left, directory)
            fold = file.read()
            assert (fold.since, fold.through) == (1, 5)
            dirty = file.read_maps(fold).recent
            assert [(one.offset, one.length) for one in dirty.extents()] == [(BLOCK, 4 * BLOCK)]
