"""A cap holds over real SFTP: what arrives in ten seconds, by a clock that the test moves.

The bytes cross a real connection in real time; the clock by which the cap counts stands still
until all that it allows so far has arrived.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aimfuse.coordinator.bandwidth import TokenBucket, block_bytes_max
from aimfuse.units import KIB, MIB
from tests.contract.far_sides import EmbeddedSide, OpensshSide

MakeFile = Callable[[str, int], Path]

TICK_S = 0.1
REST_S = 0.002


class Sluice:
    """The cap of one destination, who waits for it, and what has arrived beneath it."""

    def __init__(self, rate_bytes_s: int, inbox: Path) -> None:
        self.bucket = TokenBucket(rate_bytes_s)
        self.waiting = 0
        self._inbox = inbox

    async def pace(self, count_bytes: int) -> None:
        self.waiting += 1
        await self.bucket.take(count_bytes)
        self.waiting -= 1

    async def arrived_bytes(self, uploads: int) -> int:
        """Return what is there once every upload waits for leave, and what had it has arrived."""
        await wait_all_tasks_blocked()  # Whom the clock woke has had his turn.
        before, now = -1, self._held_bytes()
        while self.waiting < uploads or now != before:
            await trio.to_thread.run_sync(time.sleep, REST_S)  # The cap's clock stands still.
            before, now = now, self._held_bytes()
        return now

    def _held_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._inbox.iterdir())


@pytest.mark.parametrize("rate", [100 * KIB, 2 * MIB])
async def test_ten_seconds_carry_the_cap_within_five_per_cent_over_a_real_connection(
    mock_clock: MockClock, server: OpensshSide | EmbeddedSide, make_file: MakeFile, rate: int
) -> None:
    uploads, store = 3, server.root / "store"
    sluice = Sluice(rate, store / "inbox")
    settings = replace(server.settings, block_bytes_max=block_bytes_max(rate))
    transport = server.transport(store, settings=settings)
    await transport.open()
    try:
        async with trio.open_nursery() as nursery:
            for number in range(uploads):
                source = make_file(str(number), 8 * rate)

                async def put(source: Path = source) -> None:
                    await transport.put(source, f"{source.name}.aim", pace=sluice.pace)

                nursery.start_soon(put)
            arrived = []
            for _ in range(120):
                arrived.append(await sluice.arrived_bytes(uploads))
                mock_clock.jump(TICK_S)
            nursery.cancel_scope.cancel()
    finally:
        await transport.aclose()
    for began, ended in zip(arrived, arrived[100:], strict=False):
        assert ended - began == pytest.approx(10 * rate, rel=0.05)
