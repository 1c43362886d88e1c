"""What the far side says about a store, with and without a running replayer."""

import json
import time
from pathlib import Path

import pytest
import trio

from aimfuse.disk import Disk
from aimfuse.replay.replayer import Replayer
from aimfuse.replay.report import find_stores, store_status
from aimfuse.replay.session import Session
from aimfuse.units import SECOND_NS
from tests.replay.source import Source, deliver, inbox_of
from tests.replay.stores import begin, catch_up, exhaust, opened, until

NOW_NS = 2_000_000_000 * SECOND_NS


@pytest.fixture
def source(tmp_path: Path) -> Source:
    made = Source(tmp_path / "spool")
    made.create("v.img", 3000)
    made.roll()
    return made


@pytest.fixture
def store(tmp_path: Path, source: Source) -> Path:
    path = tmp_path / "store"
    begin(path, source)
    return path


def next_file(source: Source) -> Path:
    source.write(1, 0, b"data")
    return source.roll()


def heartbeat(store: Path, source: Source, files: int, size: int) -> None:
    said = {
        "group": source.group.hex(),
        "time_ns": NOW_NS - 3 * SECOND_NS,
        "newest": {"epoch": 1, "number": source.number},
        "spool": {"files": files, "bytes": size},
    }
    (inbox_of(store) / "source.json").write_text(json.dumps(said))


def test_an_idle_store_has_no_lag(source: Source, store: Path) -> None:
    heartbeat(store, source, 0, 0)
    status = store_status(store, NOW_NS)
    assert status["lag"] == {"seconds": 0.0, "bytes": 0, "files": 0}
    assert status["phase"] == "consistent"
    assert status["running"] is False
    assert status["stuck"] is False
    assert status["volumes"] == [{"id": 1, "name": "v.img", "size": 3000}]
    assert status["heartbeat_age_s"] == 3.0
    assert json.loads(json.dumps(status)) == status


def test_what_waits_here_and_at_the_source_counts_as_lag(source: Source, store: Path) -> None:
    files = [next_file(source) for _number in range(4)]
    deliver(store, files[1])
    catch_up(store)
    heartbeat(store, source, 4, 4000)
    status = store_status(store, NOW_NS)
    assert status["lag"]["files"] == 4
    assert status["lag"]["bytes"] == files[1].stat().st_size + 3000
    assert status["lag"]["seconds"] > 0
    assert status["missing"] == [2]
    assert status["queue"] == {"files": 1, "bytes": files[1].stat().st_size}


def test_work_without_progress_is_called_stuck(source: Source, store: Path) -> None:
    _first, second = next_file(source), next_file(source)
    deliver(store, second)
    catch_up(store)
    assert store_status(store)["stuck"] is False
    assert store_status(store, time.time_ns() + 120 * SECOND_NS)["stuck"] is True


@pytest.mark.expects_warnings
def test_the_reasons_of_the_quarantine_are_told_without_their_control_characters(
    store: Path,
) -> None:
    (inbox_of(store) / "\x1b[2Jevil").mkdir()
    catch_up(store)
    quarantine = store_status(store)["quarantine"]
    assert quarantine["count"] == 1
    (entry,) = quarantine["recent"]
    assert entry["name"].isprintable()
    assert entry["reason"] == "not the name of an AIM file"


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"newest": 7, "spool": [], "time_ns": "x"}', "[" * 100_000]
)
def test_a_senseless_heartbeat_is_borne(store: Path, content: str) -> None:
    (inbox_of(store) / "source.json").write_text(content)
    assert store_status(store)["lag"]["files"] == 0


def test_a_heartbeat_that_is_a_link_is_not_followed(store: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (inbox_of(store) / "source.json").symlink_to(tmp_path / "elsewhere")
    assert store_status(store)["source"] is None


def test_damaged_state_is_reported_and_not_raised(store: Path) -> None:
    for slot in ("state.0", "state.1"):
        (store / slot).write_bytes(b"rubbish")
    assert "neither slot" in store_status(store)["problem"]


async def test_a_running_replayer_is_seen_and_not_disturbed(source: Source, store: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(store).run)
        await until(lambda: store_status(store)["running"])
        deliver(store, next_file(source))
        await until(lambda: store_status(store)["applied"]["number"] == source.number)
        nursery.cancel_scope.cancel()
    assert store_status(store)["running"] is False
    assert store_status(store)["ack"]["applied"]["number"] == source.number


def test_stores_are_found_beneath_a_directory_and_at_it(store: Path, tmp_path: Path) -> None:
    assert find_stores(store) == [store]
    assert find_stores(tmp_path) == [store]


def test_the_ack_is_written_after_every_advance_but_not_ten_times_a_second(
    source: Source, store: Path
) -> None:
    now_ns = time.time_ns()
    session = Session(Disk(), store, clock=lambda: now_ns)
    exhaust(session)
    generation = json.loads((store / "ack.json").read_text())["generation"]
    for _number in range(5):
        deliver(store, next_file(source))
        session._again = True  # noqa: SLF001 - all within one tick of the clock
        session.round()
    said = json.loads((store / "ack.json").read_text())
    assert said["generation"] == generation
    now_ns += SECOND_NS // 10
    session.round()
    said = json.loads((store / "ack.json").read_text())
    assert said["generation"] == generation + 1
    assert said["applied"]["number"] == source.number
    session.close()


def test_the_generation_of_the_ack_rises_over_restarts_even_if_it_was_lost(store: Path) -> None:
    before = json.loads((store / "ack.json").read_text())["generation"]
    (store / "ack.json").write_text("")
    with opened(store) as session:
        exhaust(session)
    assert json.loads((store / "ack.json").read_text())["generation"] > before
