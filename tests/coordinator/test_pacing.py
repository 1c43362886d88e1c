"""Caps on bandwidth and windows of time, on a simulated clock."""

# ruff: noqa: ARG001 - a test asks for the simulated clock by naming it

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from aimfuse.config import DestinationConfig
from aimfuse.config.windows import parse_window
from aimfuse.coordinator.bandwidth import BUCKET_S, TokenBucket
from aimfuse.coordinator.gate import Gate
from aimfuse.units import KIB, MIB, SECOND_NS
from tests.coordinator.fakes import Link, tools_for
from tests.coordinator.samples import SampleSource, Wall, make_dice
from tests.coordinator.shipping import shipping, status, until

A = DestinationConfig("a", "sftp://a/s")
NIGHT = (parse_window("22:00-06:00"),)


async def sent_within(bucket: TokenBucket, seconds: float, *sizes: int) -> int:
    """Send blocks of each of *sizes* from a task of its own; return the bytes sent in time."""
    total = 0

    async def send(size: int) -> None:
        nonlocal total
        while True:
            await bucket.take(size)
            total += size

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for size in sizes:
                nursery.start_soon(send, size)
    return total


@pytest.mark.parametrize(
    ("rate", "sizes"),
    [
        (20 * MIB, (255 * KIB,)),
        (20 * MIB, (255 * KIB,) * 4),
        (20 * MIB, (4 * MIB, 1, 32 * KIB)),
        (MIB, (200 * KIB, 100)),
        (MIB, (512 * KIB,)),  # Larger than the bucket.
        (64 * KIB, (12 * KIB, 7)),
        (7, (1,)),
    ],
)
async def test_ten_seconds_carry_the_cap_within_five_per_cent(
    autojump_clock: MockClock, rate: int, sizes: tuple[int, ...]
) -> None:
    bucket = TokenBucket(rate)
    await trio.sleep(3600)  # What an idle hour saves up is bounded.
    for _ in range(3):
        assert await sent_within(bucket, 10, *sizes) == pytest.approx(10 * rate, rel=0.05)


async def test_a_block_larger_than_the_bucket_waits_until_it_is_paid_for(
    autojump_clock: MockClock,
) -> None:
    bucket, began = TokenBucket(MIB), trio.current_time()
    await bucket.take(30 * MIB)
    assert trio.current_time() - began == pytest.approx(30, rel=0.01)


async def test_a_cap_changed_while_a_block_waits_counts_from_then_on(
    autojump_clock: MockClock,
) -> None:
    bucket, began = TokenBucket(MIB), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bucket.take, 100 * MIB)
        await trio.sleep(10)
        bucket.rate_bytes_s = 9 * MIB
    assert trio.current_time() - began == pytest.approx(20, rel=0.01)
    bucket.rate_bytes_s = 2 * MIB
    assert await sent_within(bucket, 10, 255 * KIB) == pytest.approx(20 * MIB, rel=0.05)


async def test_a_cap_taken_away_or_set_anew_counts_at_once(autojump_clock: MockClock) -> None:
    bucket, began = TokenBucket(KIB), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bucket.take, 100 * MIB)
        await trio.sleep(1)
        bucket.rate_bytes_s = None
    await bucket.take(100 * MIB)
    assert trio.current_time() - began == pytest.approx(1, rel=0.01)
    await trio.sleep(3600)
    bucket.rate_bytes_s = MIB
    assert await sent_within(bucket, 10, 100 * KIB) == pytest.approx(10 * MIB, rel=0.05)


async def test_who_gives_up_waiting_takes_nothing_and_holds_nobody_up(
    autojump_clock: MockClock,
) -> None:
    bucket, began = TokenBucket(MIB), trio.current_time()
    with trio.move_on_after(5):
        await bucket.take(100 * MIB)
    await bucket.take(MIB)
    assert trio.current_time() - began <= 6 + BUCKET_S


@pytest.fixture
def berlin() -> Iterator[None]:
    """Let local time be that of a place with summer time."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "CET-1CEST,M3.5.0,M10.5.0/3"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def gate_at(windows: str, utc: str) -> tuple[Gate, Wall]:
    wall = Wall()
    wall.now_ns = int(time.mktime(time.strptime(utc, "%Y-%m-%d %H:%M")) - time.timezone) * SECOND_NS
    wall.now_ns += (
        (time.timezone - time.altzone)
        * SECOND_NS
        * time.localtime(wall.now_ns // SECOND_NS).tm_isdst
    )
    return Gate((parse_window(windows),), wall), wall


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("day", "open_minutes"),
    [
        ("2025-03-30 00:00", 0),  # The hour from 2 to 3 is left out,
        ("2025-10-26 00:00", 120),  # or comes twice.
        ("2025-06-01 00:00", 60),
    ],
)
def test_on_the_days_when_the_clock_changes_only_what_it_shows_counts(
    day: str, open_minutes: int
) -> None:
    gate, wall = gate_at("02:00-03:00", day)
    minutes = 0
    for _ in range(12 * 60):
        minutes += gate.is_open()
        wall.now_ns += 60 * SECOND_NS
    assert minutes == open_minutes


async def test_a_clock_that_steps_opens_and_closes_at_what_it_shows(
    autojump_clock: MockClock,
) -> None:
    gate, wall = gate_at("22:00-06:00", "2025-01-06 12:00")
    local = time.localtime(wall.now_ns // SECOND_NS)
    to_night = (26 - local.tm_hour) % 24 * 3600 * SECOND_NS
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.wait)
        await trio.sleep(3600)  # The clock on the wall stands still: nothing opens.
        assert nursery.child_tasks
        wall.now_ns += to_night
    wall.now_ns -= to_night
    assert not gate.is_open()


def at_hour(source: SampleSource, hour: int) -> None:
    """Set the source's clock to the next time that shows *hour* o'clock."""
    local = time.localtime(source.wall.now_ns // SECOND_NS)
    source.wall.now_ns += ((hour - local.tm_hour) % 24 * 3600 - local.tm_min * 60) * SECOND_NS


async def test_outside_its_windows_a_destination_is_sent_nothing_and_raises_no_alarm(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, replace(A, windows=NIGHT)), Link()
    at_hour(source, 12)
    async with shipping(source, tools_for(source, make_dice(7), a=link)):
        await until(lambda: status(source).get("state") == "waiting")
        await trio.sleep(60)
        assert status(source)["opens"].endswith("22:00")
        assert not link.store.deliveries
        assert source.cursor("a").get("pin") is None  # A copy that waits keeps nothing.
        at_hour(source, 23)
        await until(lambda: link.store.phase == "consistent")
        at_hour(source, 7)
        sent = len(link.store.deliveries)
        source.write(1, 1)
        beats = len(link.store.heartbeats)
        await until(lambda: status(source)["state"] == "waiting")
        await trio.sleep(60)
        assert len(link.store.deliveries) == sent
        assert not status(source)["stuck"]
        assert len(link.store.heartbeats) > beats
        source.configure(A)
        await until(lambda: link.store.number == source.head.number)
    assert bytes(link.store.mirror) == source.contents()


async def test_windows_and_caps_change_without_a_new_connection(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    at_hour(source, 12)
    async with shipping(source, tools_for(source, make_dice(8), a=link)):
        await until(lambda: link.store.phase == "consistent")
        source.configure(replace(A, windows=NIGHT, bandwidth_bytes_s=20 * MIB))
        await until(lambda: status(source)["bandwidth_bytes_s"] == 20 * MIB)
        source.write(1, 1)
        await until(lambda: status(source)["state"] == "waiting")
        source.configure(replace(A, bandwidth_bytes_s=30 * MIB))
        await until(lambda: link.store.number == source.head.number)
    assert link.opens == 1


async def test_clocks_that_step_at_either_end_change_no_order_and_make_no_negative_lag(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    dice = make_dice()
    # One at a time: files that are on their way together arrive in any order.
    source, link = SampleSource(tmp_path, replace(A, max_in_flight=1)), Link()
    async with shipping(source, tools_for(source, dice, a=link)):
        await until(lambda: link.store.phase == "consistent")
        await until(lambda: status(source)["lag"]["seconds"] is not None)  # Unknown before that.
        for block in range(12):
            source.wall.now_ns += dice.choice([-1, 1]) * dice.randrange(86400) * SECOND_NS
            source.write(block, 1 + block)
            await trio.sleep(dice.random())
            assert status(source)["lag"]["seconds"] >= 0
        await until(lambda: link.store.number == source.head.number)
        await until(lambda: status(source)["lag"] == {"seconds": 0.0, "bytes": 0, "files": 0})
    assert bytes(link.store.mirror) == source.contents()
    sent = [name for name in link.store.deliveries if not name.startswith("sync")]
    assert sent == sorted(set(sent))
