"""Which point of the past is meant: a time, an age, a position, a bookmark."""

import contextlib
from datetime import timedelta
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.errors import (
    AimfuseError,
    CorruptRecord,
    OutOfReach,
    UsageError,
)
from aimfuse.replay.past import describe, look_at
from aimfuse.replay.point import CLOCK_FILES, Finder, Wanted, parse_at
from aimfuse.units import SECOND_NS
from tests.replay.many_files import Counting, many_files
from tests.replay.recorder import (
    NOW,
    Recorder,
    position,
    recorded,
    restored,
)
from tests.replay.source import deliver
from tests.replay.stores import begin, catch_up

pytestmark = pytest.mark.expects_warnings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5 minutes ago", -300),
        ("90s ago", -90),
        ("1 h 30 min ago", -5400),
        ("2 days ago", -2 * 86400),
        ("1 week ago", -7 * 86400),
        ("2026-11-23 13:00:00+00:00", -3600),
        ("2026-11-23T13:00:00.5Z", -3599.5),
        ("13:59:00", -60),
        ("14:00:01", 1 - 86400),
    ],
)
def test_times_and_ages_are_understood(text: str, seconds: float) -> None:
    wanted = parse_at(text, NOW)
    expected_ns = int((NOW + timedelta(seconds=seconds)).timestamp() * SECOND_NS)
    assert wanted.time_ns == expected_ns


@pytest.mark.parametrize(
    "text", ["", "2026-13-01", "2026-11-24", "25:00:00", "five minutes ago", "ago ago"]
)
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_at(text, NOW)


def test_a_label_that_looks_like_something_else_can_be_named(tmp_path: Path) -> None:
    assert parse_at("bookmark:1:5", NOW).label == "1:5"
    assert parse_at("1:5", NOW).position == (1, 5)
    assert parse_at("before upgrade", NOW).label == "before upgrade"
    assert parse_at(" now ", NOW).is_newest
    del tmp_path


def test_a_time_means_the_last_record_made_until_then(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    for seq in (5, 9, 12, 20):
        until = Wanted("then", time_ns=1_000_000 + seq)
        before = Wanted("then", time_ns=1_000_000 + seq, before=True)
        found = restored(store, until, tmp_path / f"until-{seq}")
        assert found == source.states[1, seq]
        assert restored(store, before, tmp_path / f"before-{seq}") == source.states[1, seq - 1]
    with pytest.raises(OutOfReach, match="a copy made the mirror"):
        restored(store, Wanted("then", time_ns=1000), tmp_path / "none")


def test_a_copy_behind_which_nothing_was_written_has_no_time(tmp_path: Path) -> None:
    source, store = Recorder(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 100)
    source.roll()
    begin(store, source)
    with pytest.raises(OutOfReach, match="nothing has been written since the copy"):
        restored(store, parse_at("5 minutes ago", NOW), tmp_path / "out")
    assert restored(store, parse_at(None, NOW), tmp_path / "out") == source.snapshot()


def point_at(store: Path, time_ns: int, disk: Disk) -> tuple[int, int]:
    past = look_at(disk, store)
    return Finder(disk, past).find(Wanted("then", time_ns=time_ns)).position


def test_a_time_is_found_by_halves(tmp_path: Path) -> None:
    source, store = many_files(tmp_path, 64)
    for seq in range(3, source.seq + 1):
        disk = Counting()
        assert point_at(store, 1_000_000 + seq, disk) == (1, seq)
        # By halves, those near, three further on, the file itself.
        assert disk.opened[".aim"] <= 6 + CLOCK_FILES + 3 + 2


@pytest.mark.parametrize("back", [1, 2, 5])
def test_where_the_clock_was_set_back_a_little_the_last_record_counts(
    tmp_path: Path, back: int
) -> None:
    _source, store = many_files(tmp_path, 32, back)
    times = {seq: 1_000_000 + seq - back * (seq > 36) for seq in range(3, 67)}
    for time_ns in range(1_000_003, times[66] + 1):
        last = max(seq for seq, made_ns in times.items() if made_ns <= time_ns)
        assert point_at(store, time_ns, Disk()) == (1, last)


@pytest.mark.parametrize(("files", "ahead"), [(1, 40), (5, 40), (20, 10**9)])
def test_what_was_made_after_the_clock_was_ahead_for_a_while_is_found_by_its_time(
    tmp_path: Path, files: int, ahead: int
) -> None:
    source, store = Recorder(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 30000)
    source.roll()
    begin(store, source)
    made, times = [], {}
    for index in range(64):
        source.clock_ns += ahead * (index == 32)
        source.write(1, index, b"%d" % index)
        made.append(source.roll())
        times[source.seq] = source.clock_ns + source.seq
        source.clock_ns -= ahead * (index == 31 + files)
    deliver(store, *made)
    catch_up(store)
    after = sorted(times)[32 + files :]
    assert times[after[0]] < times[after[0] - 1]
    for seq in after:
        assert point_at(store, times[seq], Disk()) == (1, seq)


def test_a_damaged_file_hides_no_time_behind_it(tmp_path: Path) -> None:
    source, store = many_files(tmp_path, 31)
    newest = source.seq
    for path in sorted((store / "history").glob("*.aim"))[:16]:
        path.write_bytes(b"damaged")
    assert point_at(store, 1_000_000 + newest - 3, Disk()) == (1, newest - 3)
    with pytest.raises(CorruptRecord):
        point_at(store, 1_000_000 + 8, Disk())


def test_a_bookmark_is_found_by_its_label(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    found = restored(store, parse_at("mark 1", NOW), tmp_path / "out")
    said = describe(Disk(), store)["bookmarks"][1]
    assert said["label"] == "mark 1"
    assert found == source.states[position(said["position"])]
    with pytest.raises(OutOfReach, match="no bookmark"):
        restored(store, parse_at("mark 9", NOW), tmp_path / "none")


def test_a_label_that_was_used_twice_is_not_guessed_at(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    source.pending.clear()
    source.mark_bookmark("mark 1")
    with contextlib.suppress(AimfuseError):
        deliver(store, *_waiting)
        deliver(store, source.roll())
    catch_up(store)
    with pytest.raises(UsageError, match="several bookmarks"):
        restored(store, parse_at("mark 1", NOW), tmp_path / "out")


def test_before_leaves_the_record_out(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    wanted = parse_at("1:4", NOW, before=True)
    assert restored(store, wanted, tmp_path / "out") == source.states[1, 3]


def test_what_has_not_come_yet_and_what_is_gone_is_out_of_reach(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    for text, why in (("1:9999", "not here yet"), ("1:1", "a copy made"), ("7:1", "not here")):
        with pytest.raises(OutOfReach, match=why):
            restored(store, parse_at(text, NOW), tmp_path / "out")
