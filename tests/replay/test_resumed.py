"""A restore from afar that was cut off goes on from what has come only where that is of use."""

from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.errors import Unavailable
from aimfuse.replay.access import Access
from aimfuse.replay.restore import Request, restore_from
from aimfuse.units import KIB
from tests.replay.promotions import promoted
from tests.replay.recorder import Position, Recorder, Snapshot, at, silent
from tests.replay.source import deliver
from tests.replay.stores import begin, catch_up


class CutOff(Disk):
    """Loses its line when a restore takes the *nth* step that begins with *label*."""

    def __init__(self, label: str, nth: int) -> None:
        super().__init__()
        self.label, self.left = label, nth

    def step(self, label: str) -> None:
        if label.startswith(self.label):
            self.left -= 1
            if not self.left:
                raise Unavailable("the line is down")


class Cloning(Disk):
    """A disk that can clone files: a promoted store goes on having its past then."""

    def clone(self, label: str, source: int, target: int) -> bool:
        self.step(label)
        self.pwrite(label, target, [self.pread(source, self.size(source), 0)], 0)
        return True


def lived(scratch: Path, files: int = 4) -> tuple[Recorder, Path, list[Position]]:
    """Return a source with two volumes, its store, and the positions behind its files.

    Each file writes a place of its own in both.
    """
    source, store = Recorder(scratch / "spool"), scratch / "store"
    first, second = source.create("a"), source.create("b")
    source.write(first, 0, b"a" * 64 * KIB)
    source.write(second, 0, b"b" * 64 * KIB)
    source.roll()
    begin(store, source)
    ends = []
    for number in range(files):
        for volume in (first, second):
            source.write(volume, 4 * KIB * (number + 1), bytes([number + 1]) * 4 * KIB)
        deliver(store, source.roll())
        ends.append((source.epoch, source.seq))
    catch_up(store)
    return source, store, ends


def cut_off(store: Path, output: Path, where: Position, label: str, nth: int) -> None:
    access = replace(Access.here(store), disk=CutOff(label, nth), copiers=0, is_far=True)
    with pytest.raises(Unavailable):
        restore_from(access, Request(output, at(where)), silent)
    assert output.with_name(output.name + ".part.stage").exists()


def restored(store: Path, output: Path, where: Position) -> Snapshot:
    access = replace(Access.here(store), is_far=True)
    said = restore_from(access, Request(output, at(where)), silent)
    return {one["name"]: (output / one["name"]).read_bytes() for one in said["volumes"]}


def test_names_that_two_volumes_have_swapped_are_not_mixed_up(tmp_path: Path) -> None:
    source, store, (_first, early) = lived(tmp_path, files=2)
    first, second = source.volumes
    source.rename(first, "c")
    source.rename(second, "a")
    source.rename(first, "b")
    deliver(store, source.roll())
    for _ in range(2):
        source.write(first, 0, b"x" * 4 * KIB)
        deliver(store, source.roll())
    catch_up(store)
    late = (source.epoch, source.seq)
    cut_off(store, tmp_path / "out", late, "restore:copy", 2)
    assert restored(store, tmp_path / "out", early) == source.states[early]


@pytest.mark.parametrize(
    ("label", "nth"),
    [("restore:copy", 2), ("restore:write", 2), ("restore:write", 4), ("apply:write", 1)],
)
@pytest.mark.parametrize("is_pruned", [False, True])
def test_what_came_of_a_branch_that_a_promotion_left_is_taken_back_or_not_used(
    tmp_path: Path, label: str, nth: int, *, is_pruned: bool
) -> None:
    source, store, (first, second, third, _last) = lived(tmp_path)
    cut_off(store, tmp_path / "out", (third[0], third[1] - 1), label, nth)
    promoted(store, at(second), Cloning(), force=True)
    if is_pruned:
        for path in (store / "history").glob(f"*-{source.number:012d}*"):
            path.unlink()
    assert restored(store, tmp_path / "out", first) == source.states[first]
