"""Forecasts of a spool: smooth, never negative, silent where they would be a guess."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.coordinator.forecast import FORECAST_S_MAX, Trend
from aimfuse.units import GIB, MIB


def watched(rate_bytes_s: float, seconds: int, start: int = 0) -> tuple[Trend, int]:
    """Return a trend that was looked at twice a second, and the level at its end."""
    trend, level = Trend(), start
    for tick in range(2 * seconds + 1):
        level = start + round(rate_bytes_s * tick / 2)
        trend.note(1000 + tick / 2, level)
    return trend, level


@pytest.mark.parametrize("seconds", [15, 60, 3600])
def test_a_steady_rise_is_full_when_the_room_is_used_up(seconds: int) -> None:
    trend, level = watched(MIB, seconds)
    found = trend.forecast(level, 10 * GIB)
    assert found["full_in_s"] == pytest.approx(10 * 1024, rel=0.01)
    assert found["drained_in_s"] is None


def test_a_steady_fall_is_drained_when_the_level_is_gone() -> None:
    trend, level = watched(-2 * MIB, 60, GIB)
    found = trend.forecast(level, 10 * GIB)
    assert found["drained_in_s"] == pytest.approx(level / (2 * MIB), rel=0.01)
    assert trend.forecast(level, 10 * GIB, is_sent=False)["drained_in_s"] is None  # Folded.
    assert found["full_in_s"] is None


def test_whole_files_and_bursts_are_smoothed() -> None:
    trend, level, dice = Trend(), 0, random.Random(1)
    for tick in range(1200):
        level += 16 * MIB if dice.random() < 1 / 16 else 0  # 2 MiB/s on average
        trend.note(tick / 2, level)
        if tick > 600:
            assert 0.3 * MIB < trend.bytes_per_s < 5 * MIB


def test_right_after_the_start_and_while_nothing_moves_nothing_is_said() -> None:
    trend, level = watched(MIB, 5)
    nothing = {"rate_bytes_s": 0.0, "full_in_s": None, "drained_in_s": None}
    assert trend.forecast(level, GIB) == nothing
    trend, level = watched(0, 600, GIB)
    assert trend.forecast(level, GIB) == nothing


def test_after_a_pause_it_begins_anew() -> None:
    trend, level = watched(MIB, 600)
    trend.note(1e6, level + 100 * GIB)
    assert trend.bytes_per_s == 0.0


def test_what_is_further_off_than_a_month_is_not_said() -> None:
    trend, level = watched(10, 600)
    assert trend.forecast(level, 1 << 50)["full_in_s"] is None


def test_without_room_it_is_full_now() -> None:
    trend, level = watched(MIB, 60)
    assert trend.forecast(level, -5)["full_in_s"] == 0


@given(
    st.lists(st.tuples(st.floats(-10, 100), st.integers(0, 1 << 50)), min_size=1, max_size=60),
    st.integers(-1000, 1 << 50),
)
def test_whatever_the_clock_and_the_level_do_no_forecast_is_absurd(
    looks: list[tuple[float, int]], room: int
) -> None:
    trend, now, level = Trend(), 0.0, 0
    for passed_s, level in looks:
        now += passed_s
        trend.note(now, level)
        found = trend.forecast(level, room)
        for key in ("full_in_s", "drained_in_s"):
            assert found[key] is None or 0 <= (found[key] or 0) <= FORECAST_S_MAX
        assert None in {found["full_in_s"], found["drained_in_s"]}
