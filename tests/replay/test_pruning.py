"""History is pruned by time, size and room, never under a reader, and gives way to the mirror."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.replay.past import describe, look_at
from aimfuse.replay.pins import Pin
from aimfuse.replay.readers import Wish, reader_name
from aimfuse.replay.session import Session
from aimfuse.units import SECOND_NS
from tests.disks.faults import Crash
from tests.replay.backwards import Snapshot, states_of
from tests.replay.crashes import copy_store
from tests.replay.faults import Steps, dying, failing_at
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import busy_files, catch_up, exhaust, opened, report, synced

pytestmark = pytest.mark.expects_warnings

DAY_NS = 86400 * SECOND_NS


def at(now_ns: int, store: Path, disk: Disk | None = None) -> Session:
    """Open the store at a time of its own clock and let it rest again."""
    session = Session(disk or Disk(), store, clock=lambda: now_ns)
    try:
        return exhaust(session)
    finally:
        session.close()


def a_file_each_day(scratch: Path, days: int) -> tuple[Source, Path, dict[int, Snapshot]]:
    source, store, right = synced(scratch)
    for day in range(1, days + 1):
        source.write(1, day, b"%d" % day * 100)
        if day == 2:
            source.unlink(source.create("short"))
            source.create("gone later", 5000)
        if day == 3:
            source.unlink(3)
        deliver(store, source.roll())
        at(day * DAY_NS, store)
        right[source.number] = source.snapshot()
    return source, store, right


def test_what_is_older_than_keep_goes_and_the_rest_stays(tmp_path: Path) -> None:
    _source, store, right = a_file_each_day(tmp_path, 5)
    (store / "store.toml").write_text('keep = "2d"\n')
    at(5 * DAY_NS + 1, store)
    assert states_of(store) == {number: right[number] for number in (4, 5, 6)}
    assert describe(Disk(), store)["gaps"] == [
        {"behind": 4, "why": "what was older has been pruned"}
    ]


def test_a_history_larger_than_keep_size_gives_its_oldest(tmp_path: Path) -> None:
    _source, store, right = a_file_each_day(tmp_path, 5)
    size = describe(Disk(), store)["bytes"]
    (store / "store.toml").write_text(f"keep_size = {size - 1}\n")
    at(5 * DAY_NS, store)
    assert states_of(store) == {number: right[number] for number in (2, 3, 4, 5, 6)}
    assert describe(Disk(), store)["bytes"] < size


def test_whoever_is_killed_while_pruning_leaves_each_set_whole_or_gone(tmp_path: Path) -> None:
    _source, prepared, right = a_file_each_day(tmp_path, 5)
    (prepared / "store.toml").write_text('keep = "1d"\n')
    rehearsal = tmp_path / "rehearsal"
    copy_store(prepared, rehearsal)
    counter = failing_at("none")
    at(5 * DAY_NS, rehearsal, counter)
    assert {"history:prune", "history:prune_rest"} <= set(counter.labels)
    for die_at, label in enumerate(counter.labels):
        store = tmp_path / f"killed-{die_at}"
        copy_store(prepared, store)
        with contextlib.suppress(Crash):
            at(5 * DAY_NS, store, dying(die_at))
        found = states_of(store)
        assert {5, 6} <= found.keys(), label
        assert all(right[number] == state for number, state in found.items()), label
        at(5 * DAY_NS, store)
        assert states_of(store) == {number: right[number] for number in (4, 5, 6)}, label
        assert len(list((store / "history").glob("*-*"))) == 4, label
        shutil.rmtree(store)


def test_nothing_is_pruned_that_somebody_reads(tmp_path: Path) -> None:
    _source, store, right = a_file_each_day(tmp_path, 5)
    (store / "store.toml").write_text('keep = "1s"\n')
    pin = Pin(Disk(), store / "history")
    pin.move(3)
    at(9 * DAY_NS, store)
    assert states_of(store) == {number: right[number] for number in (3, 4, 5, 6)}
    pin.release()
    at(9 * DAY_NS, store)
    assert states_of(store) == {6: right[6]}


def test_a_pin_ends_with_its_holder(tmp_path: Path) -> None:
    _source, store, right = a_file_each_day(tmp_path, 3)
    (store / "store.toml").write_text('keep = "1s"\n')
    (store / "history" / "pin-1-left").write_text("0")
    at(9 * DAY_NS, store)
    assert states_of(store) == {4: right[4]}
    assert not list((store / "history").glob("pin-*"))


class Small(Disk):
    """A disk on which *free* bytes are left."""

    def __init__(self, free: int) -> None:
        self.free = free

    def free_bytes(self, path: Path) -> int:
        del path
        return self.free


def test_history_gives_way_before_the_disk_is_full(tmp_path: Path) -> None:
    source, store, right = a_file_each_day(tmp_path, 4)
    source.write(1, 0, b"more")
    deliver(store, source.roll())
    right[6] = source.snapshot()
    session = at(4 * DAY_NS, store, Small(1000))
    assert not session.error
    assert mirror_of(store) == right[6]
    assert states_of(store) == {6: right[6]}
    said = describe(Disk(), store)
    assert said["gaps"] == [{"behind": 6, "why": "the disk was full"}]
    source.write(1, 0, b"again")
    deliver(store, source.roll())
    catch_up(store)
    assert states_of(store) == {6: right[6], 7: source.snapshot()}


def test_while_the_past_is_read_a_full_disk_holds_the_mirror_up(tmp_path: Path) -> None:
    source, store, right = a_file_each_day(tmp_path, 2)
    source.write(1, 0, b"more")
    deliver(store, source.roll())
    pin = Pin(Disk(), store / "history")
    session = at(2 * DAY_NS, store, Small(1000))
    assert "while the past is read" in session.error
    assert states_of(store) == right
    pin.release()
    assert not at(2 * DAY_NS, store, Small(1000)).error
    assert mirror_of(store) == source.snapshot()


def read_from_afar(store: Path, now_ns: int, token: str = "0" * 16) -> None:
    """Let somebody say, just now, that he needs all of the past."""
    path = store / "inbox" / reader_name(token)
    path.write_text(json.dumps(Wish().to_json()))
    os.utime(path, ns=(now_ns, now_ns))


def test_who_reads_from_afar_keeps_history_so_much_longer_and_no_more(tmp_path: Path) -> None:
    _source, store, right = a_file_each_day(tmp_path, 5)
    (store / "store.toml").write_text('keep = "2d"\nreader_max = "1d"\n')
    last_ns = 5 * DAY_NS + 23 * 3600 * SECOND_NS
    for number, now_ns in enumerate((5 * DAY_NS, 5 * DAY_NS + DAY_NS // 2, last_ns)):
        read_from_afar(store, now_ns, f"{number:016x}")  # Whoever he says that he is.
        at(now_ns, store)
    assert states_of(store) == {number: right[number] for number in (3, 4, 5, 6)}
    at(last_ns + 120 * SECOND_NS + 1, store)  # He is not heard of any more.
    assert states_of(store) == {number: right[number] for number in (4, 5, 6)}


def test_who_reads_from_afar_keeps_no_more_than_twice_keep_size(tmp_path: Path) -> None:
    _source, store, right = a_file_each_day(tmp_path, 5)
    size = describe(Disk(), store)["bytes"]
    read_from_afar(store, 5 * DAY_NS)
    (store / "store.toml").write_text(f"keep_size = {size // 2 + 1}\n")
    at(5 * DAY_NS, store)
    assert states_of(store) == right
    (store / "store.toml").write_text(f"keep_size = {size // 2 - 1}\n")
    at(5 * DAY_NS, store)
    assert states_of(store) == {number: right[number] for number in (2, 3, 4, 5, 6)}


def test_the_report_says_who_reads_from_afar_and_what_is_kept_for_him(tmp_path: Path) -> None:
    _source, store, _right = a_file_each_day(tmp_path, 5)
    now_ns = 5 * DAY_NS
    sayings = {"0" * 16: Wish(3, who="a\x1b[2Jb" * 50, age_s=3600), "1" * 16: Wish()}
    for token, wish in sayings.items():
        path = store / "inbox" / reader_name(token)
        path.write_text(json.dumps(wish.to_json()))
        os.utime(path, ns=(now_ns, now_ns))
    first, second = report(at(now_ns, store))["readers"]
    assert first["who"] == ("a?[2Jb" * 50)[:100]
    assert first["since_ns"] == now_ns - 3600 * SECOND_NS
    assert (first["heard_ns"], first["first"], first["last"]) == (now_ns, 4, 6)
    kept = [
        path for path in (store / "history").glob("0*") if path.name[:21] > f"00000001-{3:012d}"
    ]
    assert first["bytes"] == sum(path.stat().st_size for path in kept)
    assert second["who"] is None
    assert (second["since_ns"], second["first"], second["last"]) == (now_ns, 2, 6)
    assert second["bytes"] == describe(Disk(), store)["bytes"]
    assert describe(Disk(), store)["readers"] == [first, second]
    assert report(at(now_ns + 121 * SECOND_NS, store))["readers"] == []


@pytest.mark.parametrize(
    "said", [None, 7, {}, [7], [{}], [{"who": "x", "owner": -1}], [{"who": None}] * 3]
)
def test_a_report_that_says_nothing_of_use_of_readers_names_none(
    tmp_path: Path, said: object
) -> None:
    _source, store, _right = a_file_each_day(tmp_path, 1)
    ack = json.loads((store / "ack.json").read_text())
    (store / "ack.json").write_text(json.dumps({**ack, "readers": said}))
    assert describe(Disk(), store)["readers"] == []


def test_where_readers_are_given_no_time_they_hold_nothing(tmp_path: Path) -> None:
    _source, store, right = a_file_each_day(tmp_path, 5)
    read_from_afar(store, 5 * DAY_NS)
    (store / "store.toml").write_text('keep = "2d"\nreader_max = 0\n')
    at(5 * DAY_NS + 1, store)
    assert states_of(store) == {number: right[number] for number in (4, 5, 6)}


def test_the_mirror_does_not_wait_for_who_reads_from_afar(tmp_path: Path) -> None:
    source, store, _right = a_file_each_day(tmp_path, 2)
    source.write(1, 0, b"more")
    deliver(store, source.roll())
    read_from_afar(store, 2 * DAY_NS)
    assert not at(2 * DAY_NS, store, Small(1000)).error
    assert mirror_of(store) == source.snapshot()


def test_a_view_of_the_operators_own_holds_whatever_distant_readers_may(tmp_path: Path) -> None:
    _source, store, right = a_file_each_day(tmp_path, 5)
    (store / "store.toml").write_text('keep = "1s"\nreader_max = "1s"\n')
    pin = Pin(Disk(), store / "history")
    pin.move(3)
    read_from_afar(store, 9 * DAY_NS)
    at(9 * DAY_NS, store)
    assert states_of(store) == {number: right[number] for number in (3, 4, 5, 6)}
    pin.release()


def test_what_a_killed_reader_was_writing_goes_after_a_while(tmp_path: Path) -> None:
    _source, store, _right = a_file_each_day(tmp_path, 1)
    left = store / "inbox" / (reader_name("0" * 16) + ".part")
    for age_s, is_left in ((100, True), (121, False)):
        left.write_text('{"beh')
        os.utime(left, ns=(DAY_NS, DAY_NS))
        at(DAY_NS + age_s * SECOND_NS, store)
        assert left.exists() is is_left


def test_a_change_larger_than_keep_size_begins_history_anew(tmp_path: Path) -> None:
    source, store, _right = synced(tmp_path)
    (store / "store.toml").write_text("keep_size = 5000\n")
    source.truncate(1, 0)
    source.write(1, 0, b"x" * 9000)
    deliver(store, source.roll())
    catch_up(store)
    source.write(1, 0, b"y")
    deliver(store, source.roll())
    assert describe(Disk(), store)["gaps"] == [
        {"behind": 2, "why": "one file overwrote more than keep_size"}
    ]


def test_a_disk_that_is_full_all_the_same_does_not_stop_the_mirror(tmp_path: Path) -> None:
    source, store, _right = synced(tmp_path)
    source.write(1, 0, b"more")
    deliver(store, source.roll())
    session = catch_up(store, failing_at("undo:write", errno.ENOSPC, times=10))
    assert not session.error
    assert mirror_of(store) == source.snapshot()
    assert describe(Disk(), store)["gaps"][0]["why"] == "the disk was full"
    assert [p.name for p in (store / "history").iterdir() if p.name[0] == "0"] == []


def test_a_disk_without_a_free_byte_does_not_stop_the_mirror(tmp_path: Path) -> None:
    source, store, _right = synced(tmp_path)
    source.write(1, 0, b"more")
    deliver(store, source.roll())

    def before(_at: int, label: str) -> None:
        if label in {"undo:create", "history:link", "undo:write"} or label.endswith(".part"):
            raise OSError(errno.ENOSPC, "No space left on device", label)

    session = catch_up(store, Steps(before))
    assert not session.error
    assert mirror_of(store) == source.snapshot()
    assert describe(Disk(), store)["gaps"] == [{"behind": 2, "why": "the disk was full"}]


def test_history_can_be_switched_off_and_on(tmp_path: Path) -> None:
    source, store, right = synced(tmp_path)
    deliver(store, *busy_files(source, right))
    (store / "store.toml").write_text("keep = 0\n")
    catch_up(store)
    assert mirror_of(store) == right[3]
    assert look_at(Disk(), store).floor.is_off
    assert states_of(store) == {3: right[3]}
    (store / "store.toml").unlink()
    for _file in range(2):
        source.write(3, 0, b"on again")
        deliver(store, source.roll())
        right[source.number] = source.snapshot()
    catch_up(store)
    assert states_of(store) == {number: right[number] for number in (4, 5)}
    assert "switched off" in describe(Disk(), store)["gaps"][0]["why"]


def test_wrong_settings_are_named_and_hold_nothing_up(tmp_path: Path) -> None:
    source, store, right = synced(tmp_path)
    deliver(store, *busy_files(source, right))
    (store / "store.toml").write_text('keap = "1d"\n')
    with opened(store) as session:
        exhaust(session)
    ack = json.loads((store / "ack.json").read_text())
    assert "store.toml: keap: is no setting" in ack["error"]
    assert "Did you mean keep?" in ack["error"]
    assert states_of(store) == right
