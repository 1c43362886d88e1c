"""Shipping over links and to stores that misbehave, on a simulated clock."""

# ruff: noqa: ARG001 - a test asks for the simulated clock by naming it

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from aimfuse.config import DestinationConfig, load
from aimfuse.coordinator.report import REPORT_NAME
from aimfuse.coordinator.run import run_ship
from aimfuse.errors import BusyError, Refused, StoreError, Unavailable
from aimfuse.units import SECOND_NS
from tests.coordinator.fakes import FakeStore, Link, dead, refusing, tools_for, unreliable
from tests.coordinator.samples import SampleSource, make_dice
from tests.coordinator.shipping import A, B, shipping, status, until


async def test_a_new_store_gets_the_image_and_then_the_journal(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    source.fill(1, 3, 5)
    source.write(0, 9)
    source.checkpoint()
    await run_ship(
        source.state_dir, until_empty=True, tools=tools_for(source, make_dice(1), a=link)
    )
    assert link.store.ack() is not None
    assert bytes(link.store.mirror) == source.contents()
    for block in range(8):
        source.write(block, 50 + block)
    source.checkpoint()
    await run_ship(
        source.state_dir, until_empty=True, tools=tools_for(source, make_dice(1), a=link)
    )
    link.store.ack()
    assert bytes(link.store.mirror) == source.contents()
    assert source.cursor("a")["pin"] == source.head.number


async def test_new_files_are_followed_across_epochs_while_it_runs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    async with shipping(source, tools_for(source, make_dice(2), a=link)):
        await until(lambda: link.store.phase == "consistent")
        for step in range(6):
            if step % 2:
                source.next_epoch()
            source.write(step, step + 1)
            await until(lambda: link.store.number == source.head.number)
        open_file = source.leave_open_file()
        await trio.sleep(120)
    assert bytes(link.store.mirror) == source.contents()
    assert open_file.exists()
    assert not [name for name in link.store.deliveries if not name.endswith(".aim")]


@pytest.mark.parametrize("seed", range(6))
async def test_after_random_faults_everything_arrives_and_no_cursor_was_ever_ahead(
    autojump_clock: MockClock, tmp_path: Path, seed: int
) -> None:
    dice = make_dice(seed)
    source, link = SampleSource(tmp_path, A), Link()
    source.fill(2, 4)
    link.plan = unreliable(dice, 0.25)

    def check_cursor() -> None:
        cursor = source.cursor("a")
        if cursor.get("state") == "shipping":
            ack = link.store.ack() or {}
            received: Any = ack["received"]
            assert cursor["pin"] <= received["number"]
            assert cursor["number"] == cursor["pin"]

    async with shipping(source, tools_for(source, dice, a=link)):
        for step in range(40):
            if dice.random() < 0.1:
                source.next_epoch()
            source.write(dice.randrange(16), 1 + step, records=dice.randrange(1, 4))
            await trio.sleep(dice.random())
            check_cursor()
        link.plan = lambda _call, _name: None
        await until(lambda: source.cursor("a").get("pin") == source.head.number, 3 * 3600)
        check_cursor()
    link.store.ack()
    assert bytes(link.store.mirror) == source.contents()
    assert not list((source.state_dir / "destinations/a/sync").iterdir())


@pytest.mark.parametrize("calls", [*range(1, 40, 3), 45, 60, 75])
async def test_a_restart_at_any_point_loses_and_repeats_nothing_that_matters(
    autojump_clock: MockClock, tmp_path: Path, calls: int
) -> None:
    source, link = SampleSource(tmp_path, A, blocks=1600), Link()
    source.fill(*range(1500))
    for block in range(4):
        source.write(block, 200 + block)
    source.checkpoint()
    tools = tools_for(source, make_dice(calls), sync_file_bytes=1 << 20, a=link)
    async with shipping(source, tools):
        await until(lambda: link.calls >= calls)
    source.write(5, 99)
    source.checkpoint()
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    link.store.ack()
    assert bytes(link.store.mirror) == source.contents()
    indices = [name for name in link.store.deliveries if name.startswith("sync")]
    assert len(indices) <= len(set(indices)) + 5  # What was in flight, not all from the start.


async def test_a_delivery_that_got_lost_is_sent_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    lost: list[str] = []

    def lose_each_once(call: str, name: str) -> str | None:
        if call == "put" and name not in lost:
            lost.append(name)
            return "lose"
        return None

    async with shipping(source, tools_for(source, make_dice(3), a=link)):
        await until(lambda: link.store.phase == "consistent")
        link.plan = lose_each_once
        for block in range(3):
            source.write(block, 7)
        await until(lambda: link.store.number == 3)
    assert len(lost) == 3


async def test_a_file_that_arrived_damaged_is_sent_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    spoilt: list[str] = []

    def spoil_once(call: str, name: str) -> str | None:
        if call == "put" and name not in spoilt:
            spoilt.append(name)
            return "spoil"
        return None

    async with shipping(source, tools_for(source, make_dice(4), a=link)):
        await until(lambda: link.store.phase == "consistent")
        link.plan = spoil_once
        source.write(1, 7)
        await until(lambda: link.store.number == 1)
    assert bytes(link.store.mirror) == source.contents()


@pytest.mark.expects_warnings
async def test_a_file_damaged_in_the_spool_is_not_shipped_and_a_copy_begins(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    async with shipping(source, tools_for(source, make_dice(5), a=link)):
        await until(lambda: link.store.phase == "consistent")
        hidden = source.state_dir / "hidden"
        path = source.spool / source.write(1, 7).sealed
        path.rename(hidden)
        data = bytearray(hidden.read_bytes())
        data[20] ^= 1  # In the identity.
        path.write_bytes(bytes(data))
        await until(lambda: "checkpoint behind file 1" in str(status(source).get("error")), 100)
        assert link.store.number == 0
        source.checkpoint()
        await until(lambda: any(one.startswith("sync-") for one in link.store.inbox), 100)
    cursor = source.cursor("a")
    assert cursor["state"] == "syncing"
    assert cursor["pin"] == 1
    assert link.store.number == 0


@pytest.mark.expects_warnings
async def test_a_changed_host_key_is_loud_and_no_retry_storm(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link(plan=refusing)
    async with shipping(source, tools_for(source, make_dice(6), a=link)):
        await until(lambda: link.opens)
        await trio.sleep(1900)
        assert status(source)["state"] == "refused"
        assert "host key" in status(source)["error"]
    assert 2 <= link.opens <= 4


async def test_who_asks_for_it_has_the_next_try_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link(plan=dead)
    async with shipping(source, tools_for(source, make_dice(8), a=link)):
        await until(lambda: (status(source).get("retry_in_s") or 0) > 20, 600)
        opens = link.opens
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: link.opens > opens, 1)


async def test_a_dead_destination_is_retried_with_backoff_and_harms_no_other(
    autojump_clock: MockClock,
    tmp_path: Path,
) -> None:
    source = SampleSource(tmp_path, A, B)
    good, bad = Link(), Link(plan=dead)
    async with shipping(source, tools_for(source, make_dice(7), a=good, b=bad)):
        for block in range(10):
            source.write(block, 3)
            await trio.sleep(1)
        await until(lambda: good.store.number == 10, 10)
        await trio.sleep(1200)
        assert status(source, "b")["state"] == "retrying"
        assert status(source, "b")["retry_in_s"] > 0
    assert 20 <= bad.opens <= 60
    assert source.cursor("b") == {}


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        pytest.param({"group": "ff" * 16}, "another group", id="another group"),
        pytest.param({"digest": b"\1" * 32}, "not the one", id="another history"),
        pytest.param({"number": 99}, "back in time", id="ahead of us"),
        pytest.param({"phase": "halted", "error": "fork: x"}, "fork", id="halted there"),
    ],
)
async def test_a_store_that_contradicts_our_history_halts_and_stays_untouched(
    autojump_clock: MockClock, tmp_path: Path, spoil: dict[str, Any], word: str
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    source.write(1, 1)
    source.checkpoint()
    tools = tools_for(source, make_dice(8), a=link)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    for name, value in spoil.items():
        setattr(link.store, name, value)
    before = list(link.store.deliveries)
    source.write(2, 2)
    source.checkpoint()
    with pytest.raises(StoreError, match=word):
        await run_ship(source.state_dir, until_empty=True, tools=tools)
    assert link.store.deliveries == before
    assert status(source)["state"] == "halted"
    assert source.cursor("a")["state"] == "halted"
    assert source.cursor("a")["pin"] == 1


async def test_a_store_without_a_replayer_gets_nothing_and_pins_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    link.store.has_replayer = False
    source.write(1, 1)
    async with shipping(source, tools_for(source, make_dice(9), a=link)):
        await until(lambda: "aimfuse replay" in str(status(source).get("error")))
        assert source.cursor("a") == {}
        link.store.has_replayer = True
        await until(lambda: link.store.number == 1, 60)


async def test_what_is_sent_ahead_of_a_dead_replayer_is_bounded(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    config = DestinationConfig("a", "sftp://a/s", inbox_bytes_max=1 << 20)
    source, link = SampleSource(tmp_path, config), Link()
    async with shipping(source, tools_for(source, make_dice(10), a=link)):
        await until(lambda: link.store.phase == "consistent")
        link.store.has_replayer = False
        for _ in range(150):
            source.write(1, 1, records=3)
        await until(lambda: status(source)["stuck"], 600)
        assert sum(map(len, link.store.inbox.values())) <= 1 << 20
        assert status(source)["queued"]["files"] > 50
        link.store.has_replayer = True
        await until(lambda: link.store.number == 150)


async def test_lag_is_the_age_of_the_oldest_record_that_is_not_applied(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    async with shipping(source, tools_for(source, make_dice(11), a=link)):
        await until(lambda: status(source).get("state") == "idle")
        assert status(source)["lag"] == {"seconds": 0.0, "bytes": 0, "files": 0}
        link.store.applies = False
        names = []
        for _ in range(3):
            names.append(source.write(1, 1))
            source.wall.now_ns += 10 * SECOND_NS
        size = sum((source.spool / name.sealed).stat().st_size for name in names)
        expected = {"seconds": 30.0, "bytes": size, "files": 3}
        await until(lambda: status(source)["lag"] == expected)
        await until(lambda: status(source)["received_not_applied"]["files"] == 3)
        assert status(source)["received_not_applied"] == {"files": 3, "bytes": size}
        source.wall.now_ns -= 3600 * SECOND_NS
        await until(lambda: status(source)["lag"]["seconds"] == 0.0)
        assert status(source)["lag"]["files"] == 3
        source.wall.now_ns += 3600 * SECOND_NS
        link.store.applies = True
        await until(lambda: status(source)["lag"]["files"] == 0, 10)
        assert status(source)["applied"]["number"] == 3


async def test_a_second_coordinator_is_refused_with_the_pid_of_the_first(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    tools = tools_for(source, make_dice(12), a=link)
    async with shipping(source, tools):
        await until(lambda: link.opens > 0)
        with pytest.raises(BusyError, match=r"process \d+"):
            await run_ship(source.state_dir, tools=tools)


async def test_settings_that_change_take_effect_without_a_restart(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source = SampleSource(tmp_path)
    a, b = Link(), Link()
    source.write(1, 1)
    async with shipping(source, tools_for(source, make_dice(13), a=a, b=b)):
        await trio.sleep(5)
        source.configure(A)
        await until(lambda: a.store.number == 1)
        source.configure(A, B)
        await until(lambda: b.store.number == 1)
        source.configure(DestinationConfig("a", A.url, paused=True), B)
        await until(lambda: status(source)["state"] == "paused")
        source.write(2, 2)
        await until(lambda: b.store.number == 2)
        await trio.sleep(60)
        assert a.store.number == 1
        source.configure(A)
        await until(lambda: a.store.number == 2)
    assert b.open_now == 0


async def test_a_pause_is_in_force_only_when_nothing_is_on_its_way_any_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link(close_s=3.0)
    async with shipping(source, tools_for(source, make_dice(13), a=link)):
        await until(lambda: link.store.phase == "consistent")
        source.configure(replace(A, paused=True))
        digest = load(source.state_dir).digest
        report = source.state_dir / REPORT_NAME
        await until(lambda: json.loads(report.read_bytes())["settings"] == digest)
        assert link.open_now == 0


async def test_who_asks_for_another_try_while_one_is_about_to_fail_gets_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source = SampleSource(tmp_path, replace(A, retry_s_min=600, retry_s_max=600))
    link = Link(latency_s=5.0, plan=dead)
    async with shipping(source, tools_for(source, make_dice(13), a=link)):
        await until(lambda: link.opens == 1)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: link.opens == 2, 60)


@pytest.mark.expects_warnings
async def test_wrong_settings_leave_those_before_in_force(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    async with shipping(source, tools_for(source, make_dice(14), a=link)):
        await until(lambda: link.store.phase == "consistent")
        (source.state_dir / "group.toml").write_text("nonsense")
        await trio.sleep(10)
        source.write(1, 1)
        await until(lambda: link.store.number == 1, 10)


@pytest.mark.expects_warnings
async def test_draining_reports_what_kept_a_destination_from_everything(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source = SampleSource(tmp_path, A, B)
    good = Link()
    source.write(1, 1)
    source.checkpoint()
    tools = tools_for(source, make_dice(15), a=Link(plan=dead), b=good)
    with pytest.raises(Unavailable, match="nobody answers"):
        await run_ship(source.state_dir, until_empty=True, tools=tools)
    assert good.store.number == 1
    tools = tools_for(source, make_dice(15), a=Link(plan=refusing), b=good)
    with pytest.raises(Refused):
        await run_ship(source.state_dir, until_empty=True, tools=tools)


async def test_without_a_driver_confirmed_files_behind_the_checkpoint_are_released(
    autojump_clock: MockClock,
    tmp_path: Path,
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    async with shipping(source, tools_for(source, make_dice(16), a=link)):
        await until(lambda: link.store.phase == "consistent")
        first, second = source.write(1, 1), source.write(2, 2)
        source.checkpoint()
        third = source.write(3, 3)
        await until(lambda: link.store.number == 3)
        await until(lambda: not (source.spool / second.sealed).exists(), 60)
        await trio.sleep(30)
        assert not (source.spool / first.sealed).exists()
        assert (source.spool / third.sealed).exists()
        source.write(4, 4)
        await until(lambda: link.store.number == 4)


async def test_an_emptied_store_gets_a_new_first_copy(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    source.write(1, 1)
    source.checkpoint()
    async with shipping(source, tools_for(source, make_dice(17), a=link)):
        await until(lambda: status(source).get("state") == "idle")
        link.store = FakeStore()
        source.write(2, 2)
        await until(lambda: link.store.number == 2)
        await until(lambda: source.cursor("a")["pin"] == 2)
    assert bytes(link.store.mirror) == source.contents()


async def test_a_full_destination_gets_nothing_until_there_is_room(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    async with shipping(source, tools_for(source, make_dice(18), a=link)):
        await until(lambda: link.store.phase == "consistent")
        link.free = 1 << 20
        await until(lambda: "free" in str(status(source)["error"]))
        source.write(1, 1)
        await until(lambda: status(source)["queued"]["files"] == 1)
        await trio.sleep(60)
        assert link.store.number == 0
        link.free = 1 << 40
        await until(lambda: link.store.number == 1, 30)


async def test_the_store_is_told_that_the_source_lives(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    source.write(1, 1)
    async with shipping(source, tools_for(source, make_dice(19), a=link)):
        await until(lambda: len(link.store.heartbeats) >= 10)
    last = link.store.heartbeats[-1]
    assert last["newest"] == {"epoch": 1, "number": 1}
    assert last["accepted_seq"] == 1
    assert last["state"] == "unmounted"
