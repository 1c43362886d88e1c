"""The status of a real store, with and without a running replayer."""

import json
import os
import time
from pathlib import Path

import pytest
import trio

from aimfuse.disk import Disk
from aimfuse.manager.far import store_status
from aimfuse.replay.pins import Pin
from aimfuse.replay.replayer import Replayer
from aimfuse.units import SECOND_NS
from tests.replay.source import Source, deliver, inbox_of
from tests.replay.stores import begun, catch_up, made_source, until


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return made_source(tmp_path / "spool")


@pytest.fixture
def store(tmp_path: Path, source: Source) -> Path:
    return begun(tmp_path / "store", source)


def next_file(source: Source) -> Path:
    source.write(1, 0, b"data")
    return source.roll()


def heartbeat(store: Path, source: Source) -> None:
    said = {
        "group": source.group.hex(),
        "time_ns": time.time_ns() - 3 * SECOND_NS,
        "newest": {"epoch": 1, "number": source.number},
    }
    (inbox_of(store) / "source.json").write_text(json.dumps(said))


def test_an_idle_store_has_no_lag(source: Source, store: Path) -> None:
    heartbeat(store, source)
    status = store_status(store)
    assert status["lag"] == {"seconds": 0.0, "files": 0}
    assert status["phase"] == "consistent"
    assert status["replayer"] is None
    assert status["volumes"] == [{"id": 1, "name": "v.img", "size": 5000}]
    assert json.loads(json.dumps(status)) == status


def test_what_waits_here_and_at_the_source_counts_as_lag(source: Source, store: Path) -> None:
    files = [next_file(source) for _number in range(4)]
    deliver(store, files[1])
    catch_up(store)
    heartbeat(store, source)
    status = store_status(store)
    assert status["lag"]["files"] == 4
    assert status["missing"] == [2]
    assert status["work"]["files"] == 1


@pytest.mark.expects_warnings
def test_what_was_set_aside_is_told_with_its_reason(store: Path) -> None:
    (inbox_of(store) / "\x1b[2Jevil").mkdir()
    catch_up(store)
    quarantine = store_status(store)["quarantine"]
    assert quarantine["files"] == 1
    (entry,) = quarantine["shown"]
    assert entry["reason"] == "not the name of an AIM file"


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"newest": 7, "spool": [], "time_ns": "x"}', "[" * 100_000]
)
def test_a_senseless_heartbeat_is_borne(store: Path, content: str) -> None:
    (inbox_of(store) / "source.json").write_text(content)
    assert not store_status(store)["lag"]["files"]


def test_damaged_state_is_reported_and_not_raised(store: Path) -> None:
    for slot in ("state.0", "state.1"):
        (store / slot).write_bytes(b"rubbish")
    assert "neither slot" in store_status(store)["error"]


def test_a_halt_that_only_the_ack_tells_of_is_shown(store: Path) -> None:
    ack = json.loads((store / "ack.json").read_text())
    (store / "ack.json").write_text(json.dumps({**ack, "phase": "halted", "error": "a fault"}))
    status = store_status(store)
    assert (status["phase"], status["error"]) == ("halted", "a fault")


async def test_a_running_replayer_is_seen_and_not_disturbed(source: Source, store: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(store).run)
        await until(lambda: store_status(store)["replayer"])
        deliver(store, next_file(source))
        await until(lambda: store_status(store)["head"]["number"] == source.number)
        nursery.cancel_scope.cancel()
    assert store_status(store)["replayer"] is None
    assert store_status(store)["applied"]["number"] == source.number


def test_when_the_source_was_heard_goes_by_the_clock_of_the_store(
    source: Source, store: Path
) -> None:
    before_ns = time.time_ns() - SECOND_NS  # File systems look at the clock now and then.
    heartbeat(store, source)
    said = store_status(store)
    assert before_ns < said["heard_ns"] <= time.time_ns()
    assert said["source"]["time_ns"] < said["heard_ns"]


def test_what_a_source_before_this_one_said_is_no_measure_of_the_mirror(
    source: Source, store: Path
) -> None:
    deliver(store, next_file(source))
    catch_up(store)
    note = {"newest": {"epoch": 0, "number": 99}, "time_ns": 1}
    (inbox_of(store) / "source.json").write_text(json.dumps(note))
    assert store_status(store)["lag"] == {"seconds": None, "files": None}


def test_who_reads_the_past_is_named_while_he_does(store: Path) -> None:
    pin = Pin(Disk(), store / "history")
    assert store_status(store)["readers"] == [{"pid": os.getpid()}]
    pin.release()
    assert store_status(store)["readers"] == []


def test_a_distant_reader_that_was_not_heard_of_for_long_is_shown_no_more(store: Path) -> None:
    ack = json.loads((store / "ack.json").read_text())
    now_ns = time.time_ns()
    told = {"who": None, "owner": 5, "since_ns": 1, "first": 2, "last": 3, "bytes": 4}
    readers = [{**told, "heard_ns": now_ns}, {**told, "heard_ns": now_ns - 200 * SECOND_NS}, "x"]
    (store / "ack.json").write_text(json.dumps({**ack, "readers": readers}))
    assert store_status(store)["far_readers"] == [{**told, "heard_ns": now_ns}]
