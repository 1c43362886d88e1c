"""Two of anything at one place: the second one is told who is there, and changes nothing."""

import os

import pytest

from tests.e2e.crash.machine import Far, Machine, Source, eventually
from tests.e2e.crash.writes import BLOCK

pytestmark = [pytest.mark.fuse]
BUSY = 3


def test_the_second_mount_coordinator_and_replayer_are_refused_with_the_owner(
    machine: Machine,
) -> None:
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    source.initialise(16 * BLOCK, far.url)
    far.start()
    source.must_mount()
    source.flush()
    assert source.driver is not None
    assert far.replayer is not None
    elsewhere = machine.root / "elsewhere"
    elsewhere.mkdir()
    mount = machine.run("mount", source.image, elsewhere, "--state", source.state, expect=BUSY)
    assert str(source.driver.pid) in mount.stderr
    eventually(source.coordinator_pid, "the coordinator runs")
    ship = machine.run("ship", source.image, "--state", source.state, expect=BUSY)
    assert str(source.coordinator_pid()) in ship.stderr
    replay = machine.run("replay", far.stores, expect=BUSY)
    assert str(far.replayer.pid) in replay.stderr
    source.volume.write_bytes(b"x" * BLOCK)
    source.flush()
    assert far.mirror.read_bytes() == source.volume.read_bytes()
    source.unmount()


def test_a_quiet_volume_whose_last_record_is_a_flush_counts_as_applied(machine: Machine) -> None:
    source = Source(machine, machine.root)
    source.initialise(16 * BLOCK)
    source.must_mount()
    with source.volume.open("r+b", buffering=0) as volume:
        volume.write(b"x" * BLOCK)
        os.fsync(volume)
        eventually(lambda: source.status()["applied_seq"] == 2, "the flush counts")
    source.unmount()
