"""The window of bytes in flight: small at first, large where it is fast, small where it is not."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from aimfuse.transport.window import (
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    NEAR_LIMIT_BYTES,
    NEAR_S,
    Window,
)


def run_link(window: Window, rate_bytes_s: float, blocks: int, away_s: float = 0.0) -> float:
    """Send *blocks* over a link of that rate and length; return the longest wait for an answer."""
    now_s, longest_s = 0.0, 0.0
    queued: list[tuple[int, float]] = []
    for _ in range(blocks):
        while not queued or sum(n for n, _ in queued) + window.block_bytes() <= window.limit_bytes:
            queued.append((window.block_bytes(), now_s))
        length, sent_s = queued.pop(0)
        now_s += length / rate_bytes_s
        longest_s = now_s + away_s - sent_s
        window.learn(length, sent_s, now_s + away_s)
    return longest_s


def test_a_fast_link_gets_full_blocks_and_a_long_one_a_full_window() -> None:
    for away_s, limit_bytes in ((0.0, NEAR_LIMIT_BYTES), (NEAR_S, 16 * BLOCK_BYTES_MAX)):
        window = Window(BLOCK_BYTES_MAX, 16, 0.0)
        run_link(window, 100e6, 200, away_s)
        assert window.block_bytes() == BLOCK_BYTES_MAX
        assert window.limit_bytes == limit_bytes


def test_a_slow_link_keeps_small_blocks_and_short_queues() -> None:
    window = Window(BLOCK_BYTES_MAX, 16, 0.0)
    assert run_link(window, 16 * 1024, 100) < 9
    assert window.block_bytes() < 2 * BLOCK_BYTES_MIN


def test_a_link_that_becomes_slow_gets_a_small_window_again() -> None:
    window = Window(BLOCK_BYTES_MAX, 16, 0.0)
    run_link(window, 100e6, 200)
    for now_s in range(100, 1000, 10):
        window.learn(BLOCK_BYTES_MAX, now_s - 8.0, float(now_s))
    assert window.block_bytes() == BLOCK_BYTES_MIN


@given(st.floats(1e3, 1e9), st.integers(1, 16), st.integers(1024, 1 << 22))
def test_blocks_and_window_stay_within_what_the_server_takes(
    rate_bytes_s: float, blocks_max: int, server_bytes_max: int
) -> None:
    window = Window(server_bytes_max, blocks_max, 0.0)
    for _ in range(20):
        run_link(window, rate_bytes_s, 5)
        assert 0 < window.block_bytes() <= min(server_bytes_max, BLOCK_BYTES_MAX)
        assert window.limit_bytes <= max(blocks_max, 1) * BLOCK_BYTES_MAX


def test_a_full_window_lets_nobody_in_until_somebody_leaves() -> None:
    async def story() -> list[str]:
        window, said = Window(BLOCK_BYTES_MIN, 2, 0.0), []
        await window.enter(BLOCK_BYTES_MIN, 0.0)
        await window.enter(BLOCK_BYTES_MIN, 0.0)
        third = asyncio.create_task(window.enter(BLOCK_BYTES_MIN, 0.0))
        await asyncio.sleep(0)
        said.append("waits" if not third.done() else "came in")
        window.leave(BLOCK_BYTES_MIN)
        await third
        said.append("came in")
        return said

    assert asyncio.run(story()) == ["waits", "came in"]


def test_one_block_is_always_let_in() -> None:
    async def story() -> int:
        window = Window(BLOCK_BYTES_MIN, 1, 0.0)
        await window.enter(10 * BLOCK_BYTES_MIN, 0.0)
        return window.in_flight_bytes

    assert asyncio.run(story()) == 10 * BLOCK_BYTES_MIN
