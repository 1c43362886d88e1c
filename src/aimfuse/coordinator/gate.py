"""Whether a destination may be sent to at this time of the week.

Windows decide that and nothing else: acknowledgements, heartbeats and the books go on.
"""

import time
from collections.abc import Callable

import trio

from aimfuse.config.windows import Window, is_open, next_opening
from aimfuse.units import SECOND_NS

LOOK_S = 1.0
"""How often the clock on the wall is looked at: it may step."""


class Gate:
    """Open at the times of its windows, which may change at any time; always without any."""

    def __init__(self, windows: tuple[Window, ...], wall_ns: Callable[[], int]) -> None:
        """Go by the local time of the clock *wall_ns*."""
        self.windows = windows
        self._wall_ns = wall_ns

    def is_open(self) -> bool:
        """Tell whether sending is allowed now."""
        return is_open(self.windows, self._local())

    def opens(self) -> str:
        """Return what the clock shows at the next opening, such as ``Mon 22:00``."""
        return next_opening(self.windows, self._local())

    async def wait(self) -> None:
        """Return once it is open, at once if it is."""
        while not self.is_open():  # noqa: ASYNC110 - nobody tells when the clock steps
            await trio.sleep(LOOK_S)

    def _local(self) -> time.struct_time:
        return time.localtime(self._wall_ns() // SECOND_NS)
