"""The bridge between trio and asyncio: results, errors, cancellation, and no orphans."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from aimfuse.transport.bridge import AsyncioCancelledItselfError, AsyncioThread, TrioSide


@pytest.fixture
async def bridge() -> AsyncGenerator[AsyncioThread]:
    thread = AsyncioThread("bridge-under-test")
    thread.start()
    yield thread
    await thread.stop()
    assert "bridge-under-test" not in [running.name for running in threading.enumerate()]


@asynccontextmanager
async def cancelled_once(begun: threading.Event) -> AsyncGenerator[trio.CancelScope]:
    """Cancel the block as soon as the other thread says that it is at work."""
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                assert await trio.to_thread.run_sync(begun.wait, 60)
                scope.cancel()

            nursery.start_soon(cancel)
            yield scope


async def other_tasks() -> int:
    return len(asyncio.all_tasks()) - 1


async def test_a_result_comes_back(bridge: AsyncioThread) -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    assert await bridge.run(work) == "bridge-under-test"


async def test_an_error_comes_back(bridge: AsyncioThread) -> None:
    async def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await bridge.run(work)


async def test_a_call_that_cannot_even_start_wakes_its_caller(bridge: AsyncioThread) -> None:
    def broken() -> AsyncGenerator[None]:
        raise LookupError("no coroutine")

    with pytest.raises(LookupError, match="no coroutine"):
        await bridge.run(broken)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await bridge.run(lambda: 5)  # type: ignore[arg-type, return-value]


async def test_many_calls_run_at_once(bridge: AsyncioThread) -> None:
    all_here = asyncio.Event()
    present = 0

    async def work() -> None:
        nonlocal present
        present += 1
        if present == 50:
            all_here.set()
        await all_here.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(bridge.run, work)
    assert present == 50


async def test_a_cancelled_call_is_not_over_before_its_task_has_ended(
    bridge: AsyncioThread,
) -> None:
    ended, begun = [], threading.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            ended.append("really")

    async with cancelled_once(begun) as scope:
        await bridge.run(work)
    assert scope.cancelled_caught
    assert ended == ["really"]
    assert await bridge.run(other_tasks) == 0


async def test_a_call_cancelled_before_it_begins_never_begins(bridge: AsyncioThread) -> None:
    begun = []

    async def work() -> None:
        begun.append(True)

    with trio.CancelScope() as scope:
        scope.cancel()
        await bridge.run(work)
    assert scope.cancelled_caught
    assert begun == []


async def test_a_task_that_finishes_in_spite_of_being_cancelled_keeps_its_result(
    bridge: AsyncioThread,
) -> None:
    begun, kept = threading.Event(), []

    async def work() -> str:
        try:
            begun.set()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "saved"
        return "slept"

    async with cancelled_once(begun):
        kept.append(await bridge.run(work))
    assert kept == ["saved"]


async def test_an_error_during_the_cancellation_is_not_lost(bridge: AsyncioThread) -> None:
    begun = threading.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.sleep(3600)
        finally:
            raise OSError("while cleaning up")

    async with cancelled_once(begun):
        with pytest.raises(OSError, match="cleaning up"):
            await bridge.run(work)


async def test_a_cancellation_that_trio_did_not_ask_for_is_an_error(
    bridge: AsyncioThread,
) -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(AsyncioCancelledItselfError):
        await bridge.run(work)


async def test_what_is_told_is_summed_and_all_there_before_the_result(
    bridge: AsyncioThread,
) -> None:
    told: list[int] = []
    side, all_said = TrioSide(), threading.Event()

    def note(count: int) -> None:
        assert all_said.wait(60)  # This thread is slower than the other one.
        told.append(count)

    async def work() -> None:
        for number in range(100):
            side.tell(note, number)
        all_said.set()
        side.tell_rest()

    await bridge.run(work)
    assert sum(told) == sum(range(100))
    assert len(told) <= 3, "the threads need not change for each"


async def test_asyncio_can_wait_for_a_trio_function(bridge: AsyncioThread) -> None:
    side, threads = TrioSide(), []

    async def on_trio(_value: int) -> None:
        await trio.sleep(0.01)
        threads.append(threading.current_thread())

    async def work() -> int:
        await side.ask(on_trio, 1)
        return len(threads)

    assert await bridge.run(work) == 1
    assert threads == [threading.current_thread()]


async def test_an_error_of_the_trio_function_is_raised_where_it_was_asked(
    bridge: AsyncioThread,
) -> None:
    side = TrioSide()

    async def on_trio(_value: int) -> None:
        raise ValueError("trio says no")

    with pytest.raises(ValueError, match="trio says no"):
        await bridge.run(lambda: side.ask(on_trio, 1))


async def test_cancelling_the_call_cancels_the_trio_function_it_waits_for(
    bridge: AsyncioThread,
) -> None:
    side, cancelled, begun = TrioSide(), trio.Event(), threading.Event()

    async def on_trio(_value: int) -> None:
        try:
            begun.set()
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with cancelled_once(begun) as scope:
        await bridge.run(lambda: side.ask(on_trio, 1))
    assert scope.cancelled_caught
    with trio.fail_after(60):
        await cancelled.wait()


async def test_a_trio_function_that_outlives_the_loop_harms_nobody() -> None:
    thread, side, begun = AsyncioThread("gone"), TrioSide(), threading.Event()
    over = trio.Event()
    thread.start()

    async def on_trio(_value: int) -> None:
        with trio.CancelScope(shield=True):
            begun.set()
            await over.wait()

    async with cancelled_once(begun):
        await thread.run(lambda: side.ask(on_trio, 1))
    await thread.stop()
    over.set()
    await trio.testing.wait_all_tasks_blocked()


async def test_stopping_ends_what_still_runs() -> None:
    thread, ended = AsyncioThread("stopping"), []
    running: list[asyncio.Task[None]] = []
    thread.start()

    async def linger() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def begin() -> None:
        running.append(asyncio.ensure_future(linger()))
        await asyncio.sleep(0)

    await thread.run(begin)
    await thread.stop()
    assert ended == [True]
