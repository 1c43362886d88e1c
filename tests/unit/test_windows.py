"""Windows of time: what is open when, also where the clock steps, and what is refused."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.config.windows import Window, is_open, next_opening, parse_window


def at(text: str) -> time.struct_time:
    """Return a moment of the week of Monday, 6 January 2025, such as ``2025-01-06 22:00``."""
    return time.strptime(text, "%Y-%m-%d %H:%M")


MON, SAT = "2025-01-06", "2025-01-11"


@pytest.mark.parametrize(
    ("text", "moment", "expected"),
    [
        ("22:00-06:00", f"{MON} 21:59", False),
        ("22:00-06:00", f"{MON} 22:00", True),
        ("22:00-06:00", f"{MON} 05:59", True),
        ("22:00-06:00", f"{MON} 06:00", False),
        ("Fri 22:00-06:00", f"{SAT} 05:59", True),
        ("Sat 22:00-06:00", f"{SAT} 05:59", False),
        ("Sun 22:00-06:00", f"{MON} 05:59", True),
        ("Mon-Fri 08:00-09:00", f"{SAT} 08:30", False),
        ("fri-mon 08:00-09:00", f"{SAT} 08:30", True),
        ("Sat, Sunday 00:00-24:00", f"{SAT} 23:59", True),
        ("Sat,Sun 00:00-24:00", f"{MON} 00:00", False),
    ],
)
def test_a_window_is_open_from_its_first_minute_to_before_its_last(
    text: str, moment: str, expected: bool
) -> None:
    assert is_open([parse_window(text)], at(moment)) is expected


def test_without_windows_it_is_always_open() -> None:
    assert is_open([], at(f"{MON} 12:00"))


def test_any_open_window_is_enough() -> None:
    windows = [parse_window("01:00-02:00"), parse_window("12:00-13:00")]
    assert is_open(windows, at(f"{MON} 12:30"))


def test_the_next_opening_is_told_as_the_clock_will_show_it() -> None:
    windows = [parse_window("Mon-Fri 22:00-06:00"), parse_window("Sun 03:30-04:00")]
    assert next_opening(windows, at(f"{MON} 12:00")) == "Mon 22:00"
    assert next_opening(windows, at(f"{SAT} 12:00")) == "Sun 03:30"


@given(st.sets(st.integers(0, 6), min_size=1), st.integers(0, 1439), st.integers(1, 1439))
def test_what_is_written_is_read_back(days: set[int], start: int, length: int) -> None:
    window = Window(tuple(sorted(days)), start, length)
    assert parse_window(str(window)) == window


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no window"),
        ("22-06", "no window"),
        ("22:00", "no window"),
        ("24:00-01:00", "no clock shows"),
        ("22:60-23:00", "no clock shows"),
        ("22:00-24:01", "no clock shows"),
        ("22:00-22:00", "is empty"),
        ("Moon 22:00-23:00", "no day"),
        ("Mo 22:00-23:00", "no day"),
        ("Mon, 22:00-23:00", "no day"),
    ],
)
def test_what_is_no_window_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_window(text)
