"""Times of the week at which a destination may be sent to, in local time.

Written ``22:00-06:00`` or, on some days only, ``Mon-Fri 22:00-06:00`` and ``Sat,Sun
00:00-24:00``. The days are those on which the window opens; it may close on the next one.
Only what the clock on the wall shows is looked at, never a difference of two times. So a
clock that steps and the two days of the year with another length need no care: a window in
the hour that is left out does not open that day, one in the hour that comes twice opens twice.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from time import struct_time

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY_MIN = 24 * 60
_WEEK_MIN = 7 * _DAY_MIN
_FORM = re.compile(r"(?:([A-Za-z,\s-]+?)\s+)?(\d\d?):(\d\d)\s*-\s*(\d\d?):(\d\d)")
_HOUR_MIN = 60


@dataclass(frozen=True, slots=True)
class Window:
    """Open on *days* (0 is Monday) from minute *start_min* of the day for *length_min*."""

    days: tuple[int, ...]
    start_min: int
    length_min: int

    def is_open(self, week_min: int) -> bool:
        """Tell whether it is open at a minute of the week, 0 being Monday 00:00."""
        starts = (day * _DAY_MIN + self.start_min for day in self.days)
        return any((week_min - start) % _WEEK_MIN < self.length_min for start in starts)

    def __str__(self) -> str:
        """Return the form that `parse_window` reads."""
        days = ",".join(_DAYS[day] for day in self.days) + " "
        end_min = self.start_min + self.length_min
        end_min = end_min if end_min <= _DAY_MIN else end_min - _DAY_MIN
        text = f"{_clock(self.start_min)}-{_clock(end_min)}"
        return text if len(self.days) == len(_DAYS) else days + text


def parse_window(text: str) -> Window:
    """Return the window that *text* describes.

    Raises:
        ValueError: it describes none.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError("is no window of time")
    days, *numbers = match.groups()
    from_h, from_m, to_h, to_m = map(int, numbers)
    start, end = from_h * _HOUR_MIN + from_m, to_h * _HOUR_MIN + to_m
    if from_m >= _HOUR_MIN or to_m >= _HOUR_MIN or start >= _DAY_MIN or end > _DAY_MIN:
        raise ValueError("has a time that no clock shows")
    if start == end:
        raise ValueError("is empty; a whole day is 00:00-24:00")
    chosen = tuple(range(len(_DAYS))) if days is None else _days(days)
    return Window(chosen, start, (end - start) % _DAY_MIN or _DAY_MIN)


def is_open(windows: Iterable[Window], now: struct_time) -> bool:
    """Tell whether sending is allowed at the local time *now*: always without windows."""
    windows = tuple(windows)
    return not windows or any(one.is_open(_week_min(now)) for one in windows)


def next_opening(windows: Iterable[Window], now: struct_time) -> str:
    """Return what the clock will show when the next window opens, such as ``Mon 22:00``."""
    windows, at = tuple(windows), _week_min(now)
    starts = [day * _DAY_MIN + one.start_min for one in windows for day in one.days]
    soonest = min(starts, key=lambda start: (start - at) % _WEEK_MIN)
    return f"{_DAYS[soonest // _DAY_MIN]} {_clock(soonest % _DAY_MIN)}"


def _week_min(now: struct_time) -> int:
    return now.tm_wday * _DAY_MIN + now.tm_hour * _HOUR_MIN + now.tm_min


def _clock(minute: int) -> str:
    return f"{minute // _HOUR_MIN:02}:{minute % _HOUR_MIN:02}"


def _days(text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        start = _day(first)
        count = (_day(last) - start) % len(_DAYS) + 1 if dash else 1
        found |= {(start + step) % len(_DAYS) for step in range(count)}
    return tuple(sorted(found))


def _day(word: str) -> int:
    for number, name in enumerate(_DAYS):
        if word.capitalize()[:3] == name and len(word) >= len(name):
            return number
    raise ValueError(f"{word!r} is no day of the week")
