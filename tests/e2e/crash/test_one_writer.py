"""Two of anything at one place: the second one is told who is there, and changes nothing."""

import os

import pytest

from aimfuse import config as configuration
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


def test_of_several_coordinators_started_at_once_one_ships_and_the_others_are_refused(
    machine: Machine,
) -> None:
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    source.initialise(16 * BLOCK)
    source.must_mount()
    source.volume.write_bytes(b"x" * BLOCK)
    source.unmount()
    source.configure(lambda old: configuration.add_destination(old, far.url))
    words = ("ship", source.image, "--state", source.state)
    started = [machine.start(*words) for _ in range(3)]
    eventually(lambda: sum(one.poll() is not None for one in started) == 2, "two have ended")
    assert sorted(one.returncode for one in started if one.poll() is not None) == [BUSY, BUSY]
    (first,) = (one for one in started if one.poll() is None)
    assert source.coordinator_pid() == first.pid
    lock = source.state / "ship.lock"
    eventually(lambda: lock.read_text().strip() == str(first.pid), "it has left its number")
    assert machine.log("ship").count("is being shipped by process") == 2
    refused = machine.run(*words, "--until-empty", expect=BUSY)
    assert str(first.pid) in refused.stderr
    far.start()
    eventually(far.mirror.exists, "the mirror is there")
    assert far.mirror.read_bytes() == source.image.read_bytes()
    assert (far.ack()["quarantined"], far.ack()["stale"]) == (0, 0)


def test_a_quiet_volume_whose_last_record_is_a_flush_counts_as_applied(machine: Machine) -> None:
    source = Source(machine, machine.root)
    source.initialise(16 * BLOCK)
    source.must_mount()
    with source.volume.open("r+b", buffering=0) as volume:
        volume.write(b"x" * BLOCK)
        os.fsync(volume)
        eventually(lambda: source.status()["applied_seq"] == 2, "the flush counts")
    source.unmount()
