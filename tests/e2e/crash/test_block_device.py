"""SIGKILL of the driver of a block device, life after life, with discards among the writes."""

from pathlib import Path

import pytest

from tests.e2e.crash.machine import Far, Machine, Source
from tests.e2e.crash.writes import BLOCK, History, Load
from tests.e2e.loop_disk import LoopDisk

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.usefixtures("require_root_loop")]

BLOCKS = 64


def test_what_was_synced_to_a_device_outlives_a_killed_driver(machine: Machine, seed: int) -> None:
    source, far = Source(machine, machine.root, machine.root / "state"), Far(machine, machine.root)
    disk = LoopDisk(machine.root, source.image, BLOCKS * BLOCK)
    device = Path(disk.device)
    try:
        source.initialise(BLOCKS * BLOCK, far.url)
        history = History(BLOCKS, seed)
        far.start()
        for _ in range(2):
            source.must_mount()
            image = source.volume.read_bytes()
            history.recovered(image)
            assert device.read_bytes() == image
            with Load(source.volume, history) as load:
                load.wait_for_trouble(0.4)
                source.kill()
        source.must_mount()
        image = source.volume.read_bytes()
        history.recovered(image)
        source.flush()
        source.unmount()
        assert device.read_bytes() == far.mirror.read_bytes() == image
    finally:
        machine.clean_up()
        disk.remove()
