"""A simulated clock that stands still while a thread is at work.

Trio's own jumps ahead as soon as all tasks wait, also for a thread: an hour passes while a disk
takes a second, and who was given a minute has not answered in time.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Return the clock that the test runs by."""
    clock = MockClock(autojump_threshold=0)
    run_sync: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync
    at_work = 0

    async def stand_still_during(*words: Any, **how: Any) -> Any:  # noqa: ANN401 - as the original
        nonlocal at_work
        at_work += 1
        clock.autojump_threshold = math.inf
        try:
            return await run_sync(*words, **how)
        finally:
            at_work -= 1
            if not at_work:
                clock.autojump_threshold = 0

    monkeypatch.setattr(trio.to_thread, "run_sync", stand_still_during)
    return clock
