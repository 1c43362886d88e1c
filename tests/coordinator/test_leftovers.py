"""A destination whose table is gone keeps its files until a command lets them go."""

# ruff: noqa: ARG001 - a test asks for the simulated clock by naming it

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from aimfuse.config import DestinationConfig, load
from aimfuse.coordinator.leftovers import leftovers, remove_account
from aimfuse.coordinator.run import run_ship
from aimfuse.disk import Disk
from aimfuse.driver.pins import Pins, lowest
from tests.coordinator.fakes import Link, dead, tools_for
from tests.coordinator.samples import SampleSource, make_dice
from tests.coordinator.shipping import shipping, status, until

A = DestinationConfig("a", "sftp://a/s")
B = DestinationConfig("b", "sftp://b/s", give_up_s=1)


def pinned(source: SampleSource) -> int | None:
    """Return what the driver would keep files above."""
    with Pins(source.disk, source.state_dir).held() as accounts:
        return lowest(accounts)


async def leave_behind(source: SampleSource, a: Link, b: Link) -> None:
    """Have both destinations shipped to, then write more that only *a* gets."""
    tools = tools_for(source, make_dice(1), a=a, b=b)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    b.plan = dead
    for block in range(3):
        source.write(block, 1 + block)
    source.checkpoint()
    async with shipping(source, tools):
        await until(lambda: source.cursor("a").get("pin") == source.head.number)


async def test_a_table_that_is_missing_gives_no_file_away_before_the_account_is_removed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, a, b = SampleSource(tmp_path, A, B), Link(), Link()
    await leave_behind(source, a, b)
    source.configure(A)
    assert pinned(source) == 0
    assert [one.name for one in leftovers(source.disk, source.state_dir, ["a"])] == ["b"]
    tools = tools_for(source, make_dice(1), a=a, b=b)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    assert len(list(source.spool.glob("*.aim"))) == 3
    assert remove_account(source.disk, source.state_dir, "b")
    assert pinned(source) == source.head.number
    assert not list((source.state_dir / "destinations").glob(".*"))
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    assert not list(source.spool.glob("*.aim"))


async def test_a_table_that_comes_back_goes_on_where_it_was(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, a, b = SampleSource(tmp_path, A, B), Link(), Link()
    await leave_behind(source, a, b)
    source.configure(A)
    tools = tools_for(source, make_dice(1), a=a, b=b)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    source.configure(A, B)
    b.plan = lambda _call, _name: None
    copies = len([name for name in b.store.deliveries if name.startswith("sync")])
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    b.store.ack()
    assert bytes(b.store.mirror) == source.contents()
    assert len([name for name in b.store.deliveries if name.startswith("sync")]) == copies


async def test_one_that_is_added_to_a_running_group_begins_with_a_first_copy(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, a, b = SampleSource(tmp_path, A), Link(), Link()
    source.fill(3)
    tools = tools_for(source, make_dice(2), a=a, b=b)
    async with shipping(source, tools):
        await until(lambda: a.store.phase == "consistent")
        for block in range(3):
            source.write(block, 1 + block)
        source.checkpoint()
        source.configure(A, B)
        await until(lambda: b.store.phase == "consistent")
        source.write(5, 9)
        await until(lambda: b.store.number == source.head.number)
    assert bytes(b.store.mirror) == source.contents()


async def test_a_pause_survives_restarts_keeps_the_files_and_is_no_alarm(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, a, b = SampleSource(tmp_path, A, B), Link(), Link()
    tools = tools_for(source, make_dice(3), a=a, b=b)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    source.configure(A, replace(B, paused=True))
    source.write(1, 1)
    source.checkpoint()
    for _ in range(2):
        opens = b.opens
        async with shipping(source, tools):
            await until(lambda: source.cursor("a").get("pin") == source.head.number)
            await until(lambda: status(source, "b")["state"] == "paused")
            await until(lambda: status(source, "b")["pinned"]["files"] == 1)
        assert b.opens == opens
    assert status(source, "b")["stuck"] is False
    assert pinned(source) == source.head.number - 1
    source.configure(A, B)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    assert pinned(source) == source.head.number


@pytest.mark.expects_warnings
def test_an_account_that_cannot_be_read_keeps_every_file(tmp_path: Path) -> None:
    source = SampleSource(tmp_path, A)
    account = source.state_dir / "destinations" / "gone"
    account.mkdir(parents=True)
    (account / "cursor.0").write_bytes(b"nonsense")
    assert pinned(source) == 0
    assert leftovers(Disk(), source.state_dir, [])[0].pin == 0


def test_what_a_crash_left_of_a_removal_pins_nothing_and_goes_with_the_next(
    tmp_path: Path,
) -> None:
    source = SampleSource(tmp_path, A)
    trash = source.state_dir / "destinations" / ".removed-b-1"
    (trash / "sync").mkdir(parents=True)
    (trash / "cursor.0").write_bytes(b"nonsense")
    assert pinned(source) is None
    assert not remove_account(Disk(), source.state_dir, "a")
    assert not trash.exists()
    assert load(source.state_dir).destinations


async def test_half_a_file_that_is_being_written_stops_no_destination(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, a, b = SampleSource(tmp_path, A, B), Link(), Link()
    path = source.state_dir / "group.toml"
    whole = path.read_text()
    async with shipping(source, tools_for(source, make_dice(4), a=a, b=b)):
        await until(lambda: b.store.phase == "consistent" and a.store.phase == "consistent")
        for turn in range(20):  # At every phase of the looks.
            path.write_text(whole[: whole.rindex("[[destination]]")])
            await trio.sleep(0.1)
            path.write_text(whole + "\n" * turn)
            await trio.sleep(1.5 + turn / 31)
        await until(lambda: status(source, "b")["state"] == "idle")
    assert (a.opens, b.opens) == (1, 1)
