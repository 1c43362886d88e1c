"""A coordinator that runs beside a test, and what it says of its destinations."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.parts import Tools
from aimfuse.coordinator.run import run_ship
from tests.coordinator.samples import SampleSource

A = DestinationConfig("a", "sftp://a/s")
B = DestinationConfig("b", "sftp://b/s")


@asynccontextmanager
async def shipping(source: SampleSource, tools: Tools) -> AsyncIterator[None]:
    """Run a coordinator beside the test."""
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await run_ship(source.state_dir, tools=tools)

        nursery.start_soon(run)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], ceiling_s: float = 3600) -> None:
    with trio.fail_after(ceiling_s):
        while not condition():  # noqa: ASYNC110 - a test's view of another's progress
            await trio.sleep(0.2)


def status(source: SampleSource, name: str = "a") -> dict[str, Any]:
    path = source.state_dir / "destinations" / name / "status.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
