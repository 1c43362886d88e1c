"""A bandwidth cap: a token bucket that many transfers draw from, each in its turn.

What is drawn was there before, so no stretch of time carries more than the cap, one bucketful
and one block. A block larger than the bucket waits until so much has come together.
"""

import math

import trio

from aimfuse.units import KIB

BUCKET_S = 0.2
"""How long an idle link may save up: 2 % of ten seconds."""

BLOCK_S = 0.05
"""How much of the cap one block may be: several transfers each have one begun at any time."""

BLOCK_BYTES_MAX = 256 * KIB


def block_bytes_max(rate_bytes_s: int | None) -> int | None:
    """Return how large a block may be for a cap to be kept evenly; None for any size."""
    return None if rate_bytes_s is None else min(BLOCK_BYTES_MAX, int(rate_bytes_s * BLOCK_S))


class TokenBucket:
    """Bytes that may be sent now; fills at `rate_bytes_s`, which may change at any time."""

    def __init__(self, rate_bytes_s: float | None = None) -> None:
        """Begin with an empty bucket; None is no cap."""
        self._rate_bytes_s = rate_bytes_s
        self._level_bytes = 0.0
        self._wanted_bytes = 0
        self._filled_at = trio.current_time()
        self._turn = trio.Lock()  # Hands over in the order of arrival.
        self._changed = trio.Event()

    @property
    def rate_bytes_s(self) -> float | None:
        """Return the cap in bytes per second, None for none."""
        return self._rate_bytes_s

    @rate_bytes_s.setter
    def rate_bytes_s(self, rate_bytes_s: float | None) -> None:
        """Change the cap; who waits now waits for what is left at the new one."""
        self._fill()
        self._rate_bytes_s = rate_bytes_s
        self._changed.set()
        self._changed = trio.Event()

    async def take(self, count_bytes: int) -> None:
        """Wait until *count_bytes* may be sent. Cancelled, it has taken nothing."""
        async with self._turn:
            self._wanted_bytes = count_bytes
            while (wait_s := self._missing_s(count_bytes)) > 0:
                changed = self._changed
                with trio.move_on_after(wait_s):
                    await changed.wait()
            if self._rate_bytes_s is not None:
                self._level_bytes -= count_bytes
            self._wanted_bytes = 0

    def _missing_s(self, count_bytes: int) -> float:
        self._fill()
        if self._rate_bytes_s is None:
            return 0.0
        missing = count_bytes - self._level_bytes
        # What rounding leaves over must not become a wait too short for the clock to show.
        return 0.0 if missing < 1 else math.ceil(missing) / self._rate_bytes_s

    def _fill(self) -> None:
        now = trio.current_time()
        passed_s, self._filled_at = now - self._filled_at, now
        if self._rate_bytes_s is None:
            self._level_bytes = 0.0
            return
        # Who waits is woken late on a busy machine: what came together meanwhile is his.
        capacity = self._rate_bytes_s * BUCKET_S + self._wanted_bytes
        self._level_bytes = min(capacity, self._level_bytes + passed_s * self._rate_bytes_s)
