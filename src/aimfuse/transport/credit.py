"""Ask for leave to send seldom where it is quickly given: asking crosses threads.

Leave for one block at first. While it is asked for again within a few milliseconds, twice as
much is asked for; once that takes long, the link or a cap is slow and half of it does.
"""

from collections.abc import Awaitable, Callable

from aimfuse.units import MIB

CREDIT_BYTES_MAX = 4 * MIB
"""A pause or a new cap takes hold after so much at the latest."""

_OFTEN_S = 0.02
_SELDOM_S = 0.1


class Credit:
    """The leave that one upload has; for one event loop."""

    def __init__(self, ask: Callable[[int], Awaitable[None]], bytes_max: int) -> None:
        """Get it from *ask*, never more than *bytes_max* at once, which one block may exceed."""
        self._ask = ask
        self._bytes_max = min(bytes_max, CREDIT_BYTES_MAX)
        self._bytes = 0
        self._quantum_bytes = 0
        self._asked_s = float("-inf")

    async def take(self, count_bytes: int, left_bytes: int, now_s: float) -> None:
        """Wait until *count_bytes* may go; *left_bytes* with them are all there is to send."""
        if self._bytes < count_bytes:
            since_s, self._asked_s = now_s - self._asked_s, now_s
            if since_s < _OFTEN_S:
                self._quantum_bytes = min(2 * self._quantum_bytes, self._bytes_max)
            elif since_s > _SELDOM_S:
                self._quantum_bytes //= 2
            self._quantum_bytes = max(self._quantum_bytes, count_bytes)
            wanted = min(self._quantum_bytes, left_bytes - self._bytes)
            await self._ask(wanted)
            self._bytes += wanted
        self._bytes -= count_bytes
