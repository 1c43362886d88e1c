"""A search finds the exact record, whatever lies between; a check that cannot tell ends it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError, OutOfReach, UsageError
from aimfuse.journal.records import RecordType
from aimfuse.replay.bisect import Found, Search
from aimfuse.replay.look import Look
from aimfuse.replay.past import look_at
from aimfuse.replay.point import Wanted
from aimfuse.replay.timeline import Spot, Timeline
from aimfuse.replay.trial import Trial, check_command
from tests.replay.recorder import Position, Recorder, at, recorded
from tests.replay.source import deliver
from tests.replay.stores import begin, catch_up

pytestmark = pytest.mark.expects_warnings


def timeline_of(store: Path) -> Timeline:
    return Timeline(Disk(), look_at(Disk(), store, Look()))


def passing_until(last: Position, seen: list[Spot]) -> Callable[[Spot], bool]:
    def check(spot: Spot) -> bool:
        seen.append(spot)
        return (spot.epoch, spot.seq) <= last

    return check


def where(spot: Spot | None) -> Position | None:
    return None if spot is None else (spot.epoch, spot.seq)


def with_epochs(scratch: Path) -> tuple[Path, list[Position]]:
    """Return a store and its positions: files with and without FLUSHes, an epoch, empty files."""
    source, store = Recorder(scratch / "spool"), scratch / "store"
    source.create("v.img", 9000)
    source.roll()
    begin(store, source)
    known = {(1, source.seq)}
    for index in range(9):
        for again in range(index % 4):
            source.write(1, 100 * again, b"x" * 50)
            if (index + again) % 3 == 0:
                source.mark(RecordType.FLUSH)
        if index == 4:
            source.branch()
        if index == 6:
            source.mark_bookmark("mark")
        before = source.seq
        deliver(store, source.roll())
        known |= {(source.epoch, seq) for seq in range(before + 1, source.seq + 1)}
    assert not catch_up(store).halted
    return store, sorted(known)


def test_the_last_good_record_is_found_wherever_it_is(tmp_path: Path) -> None:
    store, positions = with_epochs(tmp_path)
    line = timeline_of(store)
    for good, bad in zip(positions, [*positions[1:], None], strict=True):
        seen: list[Spot] = []
        found = Search(line, passing_until(good, seen)).run(None, None)
        assert (where(found.good), where(found.bad)) == (good, bad)
        assert found.checks == len(seen) == len(set(seen))


def test_every_position_is_a_spot_that_can_be_described(tmp_path: Path) -> None:
    store, positions = with_epochs(tmp_path)
    line = timeline_of(store)
    for one in positions:
        spot = line.spot(at(one))
        assert where(spot) == one
        said = line.describe(spot)
        assert said["position"] == f"{one[0]}:{one[1]}"
        assert (said["type"] is None) == (spot == line.oldest)
    assert line.spot(Wanted("now")) == line.newest


def test_what_was_saved_is_tried_first(tmp_path: Path) -> None:
    store, positions = with_epochs(tmp_path)
    line, seen = timeline_of(store), list[Spot]()
    Search(line, passing_until(positions[len(positions) // 2], seen)).run(None, None)
    kinds = [line.describe(spot)["type"] for spot in seen[2:]]
    saved = [kind in {"FLUSH", "BOOKMARK"} for kind in kinds]
    assert saved == sorted(saved, reverse=True)
    assert saved[0]


def test_a_search_keeps_between_the_points_that_it_was_given(tmp_path: Path) -> None:
    store, positions = with_epochs(tmp_path)
    line, seen = timeline_of(store), list[Spot]()
    low, high = positions[3], positions[9]
    ends = [line.spot(at(low)), line.spot(at(high))]
    found = Search(line, passing_until(positions[5], seen)).run(*ends)
    assert where(found.good) == positions[5]
    assert {low, high} <= {where(spot) for spot in seen} <= set(positions[3:10])


def test_a_point_that_is_not_what_it_should_be_is_refused(tmp_path: Path) -> None:
    store, positions = with_epochs(tmp_path)
    line = timeline_of(store)
    low, high = line.spot(at(positions[3])), line.spot(at(positions[9]))

    def run(good: Spot | None, bad: Spot | None, last: Position) -> Found:
        return Search(line, passing_until(last, [])).run(good, bad)

    with pytest.raises(OutOfReach, match="already"):
        run(low, high, positions[2])
    with pytest.raises(UsageError, match="should be bad"):
        run(low, high, positions[10])
    with pytest.raises(UsageError, match="in front of"):
        run(high, low, positions[5])


def test_a_store_without_history_has_nothing_to_search(tmp_path: Path) -> None:
    source, store = Recorder(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 9000)
    source.roll()
    begin(store, source)
    with pytest.raises(OutOfReach, match="one state only"):
        timeline_of(store)


def test_a_spot_says_what_was_done_there(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    line = timeline_of(store)
    said = line.describe(line.spot(Wanted("mark 1", label="mark 1")))
    assert (said["type"], said["label"]) == ("BOOKMARK", "mark 1")
    written = line.describe(line.records_in(0)[0])
    assert (written["type"], written["name"], written["length"]) == ("WRITE", "v.img", 9000)


@pytest.mark.fuse
@pytest.mark.usefixtures("require_fuse")
@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("no-such-command {}", "could not be run"),
        ("sh -c 'kill -TERM $$'; exit $?; : {}", "signal 15"),
    ],
)
def test_a_check_that_cannot_tell_ends_the_search(
    tmp_path: Path, command: str, problem: str
) -> None:
    _source, store, _waiting = recorded(tmp_path)
    with pytest.raises(AimfuseError, match=problem):
        Trial(store, command, tmp_path, as_directory=True).run("1:10")


def test_a_check_has_to_say_where_the_volume_goes() -> None:
    with pytest.raises(UsageError, match="names no volume"):
        check_command("e2fsck -fn")
