"""Who wakes whom in a driver: events for the pump's tasks, and one for all who wait for them.

All of it belongs to trio's thread. An event that was set is replaced by the task that it woke.
"""

import trio

PROGRESS_S_MAX = 1.0
"""Who waits for progress looks again after this long: not all of it is told, such as free space."""


class Wakeups:
    """The events between requests and the tasks that work for them."""

    def __init__(self) -> None:
        self.commit_wanted = trio.Event()
        self.commit_urgent = trio.Event()
        self.apply_wanted = trio.Event()
        self.ready_wanted = trio.Event()
        self.seal_wanted = trio.Event()
        self.progress = trio.Event()

    def commit_now(self) -> None:
        """Have a commit begin before its interval is over."""
        self.commit_wanted.set()
        self.commit_urgent.set()

    def want_next_file(self) -> None:
        """Have a file made ready and those that were rolled sealed."""
        self.ready_wanted.set()
        self.seal_wanted.set()

    def progressed(self) -> None:
        """Let everybody who waits look again."""
        progress, self.progress = self.progress, trio.Event()
        progress.set()

    async def next_progress(self) -> None:
        """Wait until something was done, for `PROGRESS_S_MAX` at most."""
        with trio.move_on_after(PROGRESS_S_MAX):
            await self.progress.wait()

    def wake_all(self) -> None:
        """Wake requests and the commit: the volume was halted."""
        self.progressed()
        self.commit_now()
