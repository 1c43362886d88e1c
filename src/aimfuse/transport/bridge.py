"""An asyncio event loop in a thread of its own, and the way there from trio and back.

asyncssh is asyncio only. Everything of it runs on this thread; trio waits outside. Two rules
keep both worlds honest. A trio task that waits here is not let go before the asyncio task has
really ended, also when it was cancelled: no orphans. And asyncio's `CancelledError` becomes
trio's cancellation only if trio asked for it.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

import outcome
import trio

T = TypeVar("T")

_TELL_S = 0.05


class AsyncioCancelledItselfError(RuntimeError):
    """The asyncio task was cancelled, and trio had not asked for it."""


class AsyncioThread:
    """One event loop in one daemon thread, from `start` to `stop`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Calls made before its loop runs wait in the loop's queue."""
        self._thread.start()

    async def stop(self) -> None:
        """Cancel what still runs on the loop, end it and wait for the thread.

        Cannot be cancelled: it takes as long as the coroutines need to give up.
        """
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self.end)

    def end(self) -> None:
        """Do what `stop` does, for a caller that is not on trio; it blocks."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have *work* run here, for a caller that is not on trio: wait with ``result()``."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine that *call* makes on the asyncio thread; return its result.

        Cancelling the waiting trio task cancels the asyncio task once and then waits for its
        real end, so bounding that is the coroutine's business. A coroutine that ends with a
        result or an error of its own in spite of being cancelled has that delivered.
        """
        return await _Crossing(self._loop, call).wait()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            _cancel_all(self._loop)
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()


class _Crossing(Generic[T]):
    """One call from trio into asyncio. Methods say on which thread they run."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, call: Callable[[], Coroutine[Any, Any, T]]
    ) -> None:
        self._loop = loop
        self._call = call
        self._token = trio.lowlevel.current_trio_token()
        self._waiter = trio.lowlevel.current_task()
        self._task: asyncio.Future[T] | None = None
        self._raise_cancelled: Callable[[], Any] | None = None

    async def wait(self) -> T:
        """Be the trio task's wait (trio's thread)."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._loop.call_soon_threadsafe(self._begin)
        try:
            result: T = await trio.lowlevel.wait_task_rescheduled(self._abort)
        except asyncio.CancelledError:
            if self._raise_cancelled is None:
                message = "a task on the asyncio thread was cancelled from within"
                raise AsyncioCancelledItselfError(message) from None
        else:
            return result
        self._raise_cancelled()
        raise AssertionError("unreachable: the function above raises trio.Cancelled")

    def _abort(self, raise_cancelled: Callable[[], Any]) -> trio.lowlevel.Abort:
        """Hear that trio wants to cancel (trio's thread)."""
        self._raise_cancelled = raise_cancelled
        self._loop.call_soon_threadsafe(self._cancel)
        return trio.lowlevel.Abort.FAILED

    def _begin(self) -> None:
        """Start the coroutine (asyncio's thread). Whatever goes wrong, trio is woken."""
        try:
            self._task = asyncio.ensure_future(self._call())
        except BaseException as exc:  # noqa: BLE001 - else trio would wait for ever
            self._wake(outcome.Error(exc))
        else:
            self._task.add_done_callback(self._done)

    def _cancel(self) -> None:
        """Pass the cancellation on (asyncio's thread; always after `_begin`)."""
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Future[T]) -> None:
        """Report the task's real end (asyncio's thread)."""
        self._wake(outcome.capture(task.result))

    def _wake(self, result: outcome.Outcome[Any]) -> None:
        self._token.run_sync_soon(trio.lowlevel.reschedule, self._waiter, result)


class TrioSide:
    """The way back: lets a coroutine on an asyncio thread use functions of trio's thread."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._untold: dict[Callable[[int], None], int] = {}
        self._told_s = float("-inf")

    def tell(self, function: Callable[[int], None], value: int) -> None:
        """Have trio call *function* with the sum of the *value*s told since it last was.

        Soon, if that was a while ago; else with the next one or by `tell_rest`. Waking the
        other thread for every block costs as much as encrypting it.
        """
        with self._lock:
            self._untold[function] = self._untold.get(function, 0) + value
        now_s = time.monotonic()
        if now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            self.tell_rest()

    def tell_rest(self) -> None:
        """Have trio told what is left, before the `run` around this returns."""
        self._token.run_sync_soon(self._tell_all)

    def _tell_all(self) -> None:
        with self._lock:
            untold, self._untold = self._untold, {}
        for function, value in untold.items():
            function(value)

    async def ask(self, function: Callable[[int], Awaitable[None]], value: int) -> None:
        """Await trio's *function* from asyncio; its error becomes ours.

        When the asyncio task is cancelled, so is the function.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()
        scope = trio.CancelScope()

        async def answer() -> None:
            result: outcome.Outcome[None] = outcome.Value(None)
            with scope:
                try:
                    await function(value)
                except Exception as exc:  # noqa: BLE001 - it is raised where it was asked for
                    result = outcome.Error(exc)
            if not scope.cancelled_caught:
                with suppress(RuntimeError):  # The loop has ended: nobody waits any more.
                    loop.call_soon_threadsafe(_resolve, answered, result)

        self._token.run_sync_soon(trio.lowlevel.spawn_system_task, answer)
        try:
            await answered
        except asyncio.CancelledError:
            self._token.run_sync_soon(scope.cancel)
            raise


def _resolve(future: asyncio.Future[None], result: outcome.Outcome[None]) -> None:
    if future.done():
        return
    if isinstance(result, outcome.Error):
        future.set_exception(result.error)
    else:
        future.set_result(None)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
