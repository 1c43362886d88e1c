"""What an old source touched behind the fork: everything that differs is named, and little else."""

from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.coordinator.cursor import Cursor, CursorFile
from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import Checkpoint, CheckpointFile
from aimfuse.driver.folding import fold_files
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.journal import Head
from aimfuse.journal.rewound import Rewound
from aimfuse.journal.spool import release, sealed_names
from aimfuse.takeover.tail import Tail, survey
from aimfuse.units import Epoch, FileNumber
from tests.coordinator.samples import make_dice
from tests.takeover.old_source import BLOCK, BLOCKS, OldSource


def checkpoint(source: OldSource) -> Checkpoint:
    found = CheckpointFile(Disk(), source.config.state_dir).read()
    assert found is not None
    return found


def look(source: OldSource, rewound: Rewound | None = None) -> Tail:
    at = checkpoint(source)
    return survey(Disk(), source.config, at, source.head, rewound=rewound)


def covered(differs: DirtyMap, volume: int, size: int) -> bytearray:
    found = bytearray(size)
    for one in differs.extents():
        if one.volume == volume:
            end = min(size, one.offset + one.length)
            found[one.offset : end] = b"\1" * max(0, end - one.offset)
    return found


@pytest.mark.parametrize("names", [(), ("a", "b", "c")], ids=["image", "directory"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_differs_from_the_fork_is_named(
    tmp_path: Path, names: tuple[str, ...], seed: int
) -> None:
    dice = make_dice(seed)
    source = OldSource(tmp_path, names)
    source.live(dice, 10)
    source.fork()
    source.live(dice, 12)
    check_named(source, look(source))


@pytest.mark.parametrize("names", [(), ("a", "b", "c")], ids=["image", "directory"])
@pytest.mark.parametrize("seed", range(3))
def test_what_the_other_side_went_back_over_is_named_with_what_was_written_since(
    tmp_path: Path, names: tuple[str, ...], seed: int
) -> None:
    dice = make_dice(seed)
    source = OldSource(tmp_path, names)
    source.live(dice, 10)
    fork = source.fork()
    source.live(dice, 10)
    rewound = source.go_back(fork)
    source.live(dice, 10)
    assert look(source).differs is None
    tail = look(source, rewound)
    assert (tail.is_cut, tail.is_counted) == (True, False)
    check_named(source, tail)


def check_named(source: OldSource, tail: Tail) -> None:
    """Check that all is named that the images hold otherwise than at the fork."""
    assert tail.differs is not None, tail.why_all
    present = {one.entry.volume: one for one in checkpoint(source).volumes}
    now = source.contents()
    assert {one.name: one.size_bytes for one in tail.volumes} == {
        name: len(data) for name, data in source.at_fork.items()
    }
    for entry in tail.volumes:
        before = source.at_fork[entry.name]
        named = covered(tail.differs, entry.volume, len(before))
        if entry.volume not in present:
            assert all(named)
            continue
        after = now[present[entry.volume].entry.name].ljust(len(before), b"\0")
        lost = [
            at for at, (one, other) in enumerate(zip(before, after, strict=False))
            if one != other and not named[at]
        ]  # fmt: skip
        assert not lost


def test_a_side_that_wrote_nothing_behind_the_fork_has_no_tail(tmp_path: Path) -> None:
    source = OldSource(tmp_path)
    source.write(1, 2)
    source.fork()
    assert look(source).is_empty
    with source.served() as engine:
        engine.flush(next(iter(engine.volumes)))
    assert look(source).is_empty


def test_only_what_was_written_counts_and_not_what_was_there_before(tmp_path: Path) -> None:
    source = OldSource(tmp_path)
    source.write(*range(40))
    source.fork()
    source.write(7, byte=2)
    tail = look(source)
    assert (tail.writes, tail.differing_bytes) == (1, BLOCK)


def confirm(place: Path, head: Head) -> None:
    """Let the destination have said that it has everything up to *head*."""
    cursor = Cursor(
        "dir:///far", b"\0" * 16, int(head.number), head.epoch, head.number, head.digest
    )
    CursorFile(Disk(), place, cursor.url).write(cursor)


@pytest.mark.parametrize("names", [(), ("a",)], ids=["image", "directory"])
def test_what_left_a_full_spool_is_known_from_the_fold_for_any_destination(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    source = OldSource(tmp_path, names)
    source.write(1)
    fork = source.fork()
    for block in (2, 3, 4):
        source.write(block, byte=2)
    spool, place = source.paths.spool, source.config.state_dir / "destinations" / "other"
    behind = [one for one in sealed_names(Disk(), spool) if one.number > fork.number]
    place.mkdir(parents=True)
    confirm(place, fork)
    fold_files(Disk(), spool, place, int(fork.number), behind[:2])
    release(Disk(), spool, behind[1].number)
    tail = look(source)
    if names:  # Ids may have been given away since: then it is not enough.
        assert tail.differs is None
        return
    assert tail.differs is not None
    assert [one.offset // BLOCK for one in tail.differs.extents()] == [2]
    assert tail.differing_bytes == 3 * BLOCK


@pytest.mark.parametrize(
    ("confirmed", "epochs", "is_ours"),
    [(0, 0, True), (1, 0, True), (0, 1, False), (1, 1, False), (None, 0, False)],
)
def test_a_fork_that_left_a_full_spool_counts_only_if_it_was_this_sides(
    tmp_path: Path, confirmed: int | None, epochs: int, *, is_ours: bool
) -> None:
    """The mirror of a mirror goes on at a file of which only the number is like one of ours."""
    source = OldSource(tmp_path)
    source.write(1)
    heads = [source.fork()]
    for block in (2, 3, 4):
        source.write(block, byte=2)
        heads.append(source.fork())
    spool, place = source.paths.spool, source.config.state_dir / "destinations" / "other"
    behind = [one for one in sealed_names(Disk(), spool) if one.number > heads[0].number]
    place.mkdir(parents=True)
    if confirmed is not None:
        confirm(place, heads[confirmed])
    fold_files(Disk(), spool, place, int(heads[0].number), behind[:2])
    release(Disk(), spool, behind[1].number)
    ours = heads[1]
    digest = ours.digest if is_ours else b"\7" * 32
    source.head = Head(Epoch(ours.epoch + epochs), ours.number, ours.seq, digest)
    assert (look(source).differs is not None) == is_ours


@pytest.mark.parametrize("names", [(), ("a",)], ids=["image", "directory"])
def test_behind_what_was_gone_back_over_a_fold_serves_as_well_as_the_spool(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    source = OldSource(tmp_path, names)
    source.write(1)
    fork = source.fork()
    source.write(2, byte=2)
    rewound = source.go_back(fork)
    for block in (3, 4, 5):
        source.write(block, byte=2)
    spool, place = source.paths.spool, source.config.state_dir / "destinations" / "far"
    place.mkdir(parents=True)
    confirm(place, rewound.newest)
    behind = sealed_names(Disk(), spool)
    fold_files(Disk(), spool, place, int(rewound.newest.number), behind[:2])
    release(Disk(), spool, behind[1].number)
    tail = look(source, rewound)
    assert tail.differs is not None, tail.why_all
    extents = [(one.offset // BLOCK, one.length // BLOCK) for one in tail.differs.extents()]
    assert extents == [(2, 4)]


@pytest.mark.parametrize("wrong", ["fork", "newest", "ahead", "hole"])
def test_what_another_history_went_back_over_is_not_believed(tmp_path: Path, wrong: str) -> None:
    source = OldSource(tmp_path)
    source.write(1)
    fork = source.fork()
    source.write(2, byte=2)
    rewound = source.go_back(fork)
    source.write(3, byte=2)
    source.write(4, byte=2)
    newest = rewound.newest
    if wrong == "fork":
        rewound = replace(rewound, fork=replace(fork, digest=b"\7" * 32))
    elif wrong == "newest":
        rewound = replace(rewound, newest=replace(newest, digest=b"\7" * 32))
    elif wrong == "ahead":
        rewound = replace(rewound, newest=replace(newest, number=FileNumber(newest.number + 9)))
    else:
        names = sealed_names(Disk(), source.paths.spool)
        release(Disk(), source.paths.spool, names[0].number)
    assert look(source, rewound).differs is None


@pytest.mark.parametrize("harm", ["released", "damaged", "other-fork", "behind"])
def test_where_the_tail_cannot_be_told_everything_differs(tmp_path: Path, harm: str) -> None:
    source = OldSource(tmp_path)
    source.write(1)
    fork = source.fork()
    for block in (2, 3):
        source.write(block)
    names = [one for one in sealed_names(Disk(), source.paths.spool) if one.number > fork.number]
    if harm == "released":
        release(Disk(), source.paths.spool, FileNumber(names[0].number))
    elif harm == "damaged":
        path = source.paths.spool / names[0].sealed
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    elif harm == "other-fork":
        source.head = type(fork)(fork.epoch, fork.number, fork.seq, b"\7" * 32)
    else:
        source.head = type(fork)(fork.epoch, FileNumber(99), fork.seq, fork.digest)
    tail = look(source)
    assert tail.differs is None
    assert tail.why_all
    assert tail.differing_bytes == BLOCKS * BLOCK
    assert not tail.is_empty
