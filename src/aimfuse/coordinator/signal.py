"""Wake a waiting task: something that it looks after may have changed."""

import trio


class Signal:
    """Many may notify, one waits. A notice that comes while nobody waits is kept."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        """Wake the waiter, now or when it next waits."""
        self._event.set()

    async def wait(self, ceiling_s: float) -> None:
        """Return after a notice, or after *ceiling_s* seconds at the latest."""
        with trio.move_on_after(ceiling_s):
            await self._event.wait()
        self._event = trio.Event()
