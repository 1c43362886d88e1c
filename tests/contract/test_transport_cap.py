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
    """The cap of one destination, what it let through, and what has arrived of that."""

    def __init__(self, rate_bytes_s: int, inbox: Path, uploads: int) -> None:
        self.bucket = TokenBucket(rate_bytes_s)
        self._inbox = inbox
        self._uploads = uploads
        self._waiting = 0
        self._granted_bytes = 0
        # Each upload may have leave for less than a block, and waits for more.
        self._slack_bytes = uploads * (block_bytes_max(rate_bytes_s) or 0)

    async def pace(self, count_bytes: int) -> None:
        self._waiting += 1
        await self.bucket.take(count_bytes)
        self._waiting -= 1
        self._granted_bytes += count_bytes

    async def arrived_bytes(self) -> int:
        """Return what is there once every upload waits for leave, and what had it has arrived."""
        await wait_all_tasks_blocked()  # Whom the clock woke has had his turn.
        while True:
            held = sum(path.stat().st_size for path in self._inbox.iterdir())
            is_there = self._granted_bytes - held < self._slack_bytes
            if self._waiting == self._uploads and is_there:
                return held
            await trio.to_thread.run_sync(time.sleep, REST_S)  # The cap's clock stands still.


@pytest.mark.parametrize("rate", [100 * KIB, 2 * MIB])
async def test_ten_seconds_carry_the_cap_within_five_per_cent_over_a_real_connection(
    mock_clock: MockClock, server: OpensshSide | EmbeddedSide, make_file: MakeFile, rate: int
) -> None:
    uploads, store = 3, server.root / "store"
    sluice = Sluice(rate, store / "inbox", uploads)
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
                arrived.append(await sluice.arrived_bytes())
                mock_clock.jump(TICK_S)
            nursery.cancel_scope.cancel()
    finally:
        await transport.aclose()
    for began, ended in zip(arrived, arrived[100:], strict=False):
        assert ended - began == pytest.approx(10 * rate, rel=0.05)
