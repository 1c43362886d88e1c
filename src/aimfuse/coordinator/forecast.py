"""Where a level goes if it goes on like this: full in so long, drained in so long.

The rate is smoothed over about a minute, on a clock that cannot be set. What would be a guess
is not said: right after the start, while next to nothing moves, or further off than a month.
"""

import math

SMOOTH_S = 60.0
WATCHED_S_MIN = 10.0
RATE_BYTES_S_MIN = 1.0
FORECAST_S_MAX = 30 * 86400.0
_PAUSE_S_MAX = 30.0


class Trend:
    """The smoothed rate of a level, in bytes and seconds, from looks at any times."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self._rate_bytes_s = 0.0
        self._watched_s = 0.0

    def note(self, now: float, level_bytes: int) -> None:
        """Note the level at the monotonic time *now*."""
        if self._last is not None and not 0 <= now - self._last[0] <= _PAUSE_S_MAX:
            self._forget()  # Nobody looked: what happened meanwhile was no steady rate.
        if self._last is not None and now > self._last[0]:
            passed_s = now - self._last[0]
            rate = (level_bytes - self._last[1]) / passed_s
            share = 1 - math.exp(-passed_s / SMOOTH_S)
            self._rate_bytes_s += share * (rate - self._rate_bytes_s)
            self._watched_s += passed_s
        self._last = (now, level_bytes)

    @property
    def bytes_per_s(self) -> float:
        """Return the rate, negative when the level falls; 0 before it was watched for a while."""
        if self._watched_s < WATCHED_S_MIN:
            return 0.0
        # It began at 0, which must not count as having been watched.
        return self._rate_bytes_s / (1 - math.exp(-self._watched_s / SMOOTH_S))

    def forecast(
        self, level_bytes: int, room_bytes: int, *, is_sent: bool = True
    ) -> dict[str, float | None]:
        """Return ``full_in_s`` and ``drained_in_s``; at most one is not None.

        What falls while nothing *is_sent* was folded, and that drains nothing.
        """
        rate = self.bytes_per_s
        return {
            "rate_bytes_s": rate,
            "full_in_s": _seconds(room_bytes, rate),
            "drained_in_s": _seconds(level_bytes, -rate) if level_bytes and is_sent else None,
        }

    def _forget(self) -> None:
        self._last = None
        self._rate_bytes_s = self._watched_s = 0.0


def _seconds(distance_bytes: int, rate_bytes_s: float) -> float | None:
    if rate_bytes_s < RATE_BYTES_S_MIN:
        return None
    seconds = max(0, distance_bytes) / rate_bytes_s
    return seconds if seconds <= FORECAST_S_MAX else None
