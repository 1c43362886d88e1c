"""How many bytes may be in flight on one connection: little at first, more where it is fast.

A full window of large blocks makes a fast link busy, and a slow one deaf: keepalives queue
behind megabytes, and the connection is given up although it works. So the window grows while
blocks are answered quickly and shrinks while they are not, much as TCP's does.
"""

import asyncio

from aimfuse.units import KIB, MIB

BLOCK_BYTES_MAX = 255 * KIB
"""OpenSSH ends connections that carry packets above 256 KiB."""

BLOCK_BYTES_MIN = 32 * KIB
"""What every SFTP server takes."""

NEAR_S = 0.005
NEAR_LIMIT_BYTES = 2 * MIB
"""What is in flight at most where an answer has come within `NEAR_S`: enough for 400 MB/s.

It is also what OpenSSH takes before it says that there is room again. Anything above that waits
here and goes out in odd pieces whenever it does: a tenth of the server's work, some of ours.
"""

_LIMIT_BYTES_MIN = 4 * BLOCK_BYTES_MIN
_QUICK_S = 1.0
_SLOW_S = 3.0


class Window:
    """The bytes in flight of all transfers on one connection; for one event loop."""

    def __init__(self, block_bytes_max: int, blocks_max: int, now_s: float) -> None:
        self._block_bytes_max = min(block_bytes_max, BLOCK_BYTES_MAX)
        self._limit_bytes_max = max(self._block_bytes_max * blocks_max, self._block_bytes_max)
        self._limit_bytes = min(_LIMIT_BYTES_MIN, self._limit_bytes_max)
        self._quickest_s = float("inf")
        self._shrunk_s = now_s
        self._changed = asyncio.Event()
        self.in_flight_bytes = 0
        self.answered_s = now_s
        """When anything was answered last, or nothing was in flight."""

    @property
    def limit_bytes(self) -> int:
        """The bytes that may be in flight now."""
        return self._limit_bytes

    def block_bytes(self) -> int:
        """Return a good size for the next block: a quarter of the window, within limits."""
        return min(self._block_bytes_max, max(BLOCK_BYTES_MIN, self._limit_bytes // 4))

    async def enter(self, count_bytes: int, now_s: float) -> None:
        """Wait for room. One block is always let in, however small the window is."""
        while self.in_flight_bytes and self.in_flight_bytes + count_bytes > self._limit_bytes:
            self._changed.clear()
            await self._changed.wait()
        if not self.in_flight_bytes:
            self.answered_s = now_s
        self.in_flight_bytes += count_bytes

    def leave(self, count_bytes: int) -> None:
        """Give the room back, whatever became of the block."""
        self.in_flight_bytes -= count_bytes
        self._changed.set()

    def learn(self, count_bytes: int, sent_s: float, now_s: float) -> None:
        """Adapt to a block that was sent at *sent_s* and is answered now."""
        self.answered_s = now_s
        took_s = now_s - sent_s
        self._quickest_s = min(self._quickest_s, took_s)
        if took_s < _QUICK_S + self._quickest_s:
            most = NEAR_LIMIT_BYTES if self._quickest_s < NEAR_S else self._limit_bytes_max
            self._limit_bytes = min(self._limit_bytes + count_bytes, most, self._limit_bytes_max)
        elif took_s > _SLOW_S + 2 * self._quickest_s and sent_s >= self._shrunk_s:
            # Once per window: blocks sent before the last cut say nothing about it.
            self._limit_bytes = max(self._limit_bytes // 2, _LIMIT_BYTES_MIN)
            self._shrunk_s = now_s
