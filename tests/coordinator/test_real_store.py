"""The coordinator with a real store at the other end: a copy, then the journal."""

from pathlib import Path

import trio

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.run import run_ship
from aimfuse.replay.replayer import Replayer
from tests.coordinator.samples import SampleSource


async def test_an_image_and_its_journal_arrive_in_a_real_store(tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    source = SampleSource(tmp_path, DestinationConfig("far", str(far / "s")), blocks=1024)
    source.fill(1, 2, 3, 900)
    for number in range(5):
        source.write(number, 100 + number)
    source.checkpoint()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Replayer(far).run)
            await run_ship(source.state_dir, until_empty=True)
            for number in range(5, 12):
                source.write(number, 100 + number)
            source.next_epoch()
            source.write(12, 7)
            source.checkpoint()
            await run_ship(source.state_dir, until_empty=True)
            mirror = far / "s" / "mirror" / "v.img"
            while not mirror.exists() or mirror.read_bytes() != source.contents():  # noqa: ASYNC110
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    assert source.cursor("far")["state"] == "shipping"
    assert source.cursor("far")["pin"] == source.head.number
