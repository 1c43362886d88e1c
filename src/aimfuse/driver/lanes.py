"""A worker thread of one's own: blocking steps in order, at a priority.

trio's threads are shared and all alike. Sealing and checkpoints are given a lower priority
than commits here, so that work which nobody waits for does not take the processor from work
that somebody does.
"""

import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, TypeVarTuple, Unpack

import outcome
import trio

Args = TypeVarTuple("Args")
Result = TypeVar("Result")

_Job = tuple[Callable[[], object], trio.lowlevel.Task, trio.lowlevel.TrioToken]


class Lane:
    """One thread that takes jobs from trio tasks, oldest first."""

    def __init__(self, name: str, niceness: int = 0) -> None:
        """Start the thread, which ends with the process; *niceness* is added to its own."""
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._niceness = niceness
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, step: Callable[[Unpack[Args]], Result], *args: *Args) -> Result:
        """Do *step* in the thread and return what it returns.

        Cancellation is noticed before the step begins; once begun, its end is waited for, so
        that its result is never lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()
        self._jobs.put((lambda: step(*args), task, trio.lowlevel.current_trio_token()))
        result: Result = await trio.lowlevel.wait_task_rescheduled(
            lambda _raise_cancel: trio.lowlevel.Abort.FAILED
        )
        return result

    def _work(self) -> None:
        if self._niceness:
            with suppress(OSError):
                me = threading.get_native_id()
                os.setpriority(
                    os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + self._niceness
                )
        while True:
            function, task, token = self._jobs.get()
            result = outcome.capture(function)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(trio.lowlevel.reschedule, task, result)
            del function, task, result
