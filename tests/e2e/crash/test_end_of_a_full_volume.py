"""Unmounting while the spool is full and writers wait: refused soon, or done, and nothing lost."""

import os
import subprocess
from dataclasses import replace

import pytest

from aimfuse.units import MIB
from tests.e2e.crash.machine import (
    FAST,
    PATIENCE_S,
    Cruelty,
    Far,
    Machine,
    Source,
    eventually,
)
from tests.e2e.crash.memory_disk import fill, memory_disk
from tests.e2e.crash.writes import BLOCK, History, Load

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(300)]

BLOCKS = 256
BUSY, HALTED = 3, 13
LAZY = replace(
    FAST, commit_interval_s=60.0, file_age_s=600.0, file_bytes=4 * MIB, memory_bytes_max=64 * MIB
)
"""Nothing is made durable before somebody asks for it."""


def test_an_unmount_says_that_writers_wait_for_room_and_works_once_there_is_some(
    machine: Machine, seed: int
) -> None:
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    source.initialise(
        BLOCKS * BLOCK, far.url, journal=replace(FAST, spool_bytes_max=MIB, when_full="block")
    )
    history = History(BLOCKS, seed)
    far.start()
    source.must_mount()
    source.flush()
    far.kill()
    with Load(source.volume, history) as load:
        eventually(lambda: source.status()["state"] == "spool-full", "it is full")
        eventually(lambda: says_that_writers_wait(source), "it says so")
        stuck = history.completed
        assert not load.wait_for_trouble(0.3), "the application noticed"
        far.start()
        eventually(lambda: history.completed > stuck + 10, "writing goes on")
    assert load.error is None
    source.flush()
    far.kill()
    image = source.volume.read_bytes()
    machine.run("umount", source.mountpoint)
    assert source.ended() == 0
    assert source.image.read_bytes() == far.mirror.read_bytes() == image
    assert history.recovered(image) == history.completed


def says_that_writers_wait(source: Source) -> bool:
    """Try to unmount, which is refused; what was confirmed earlier may make room for a moment."""
    words = ("umount", source.mountpoint, "--timeout", "0.2s")
    refused = source.machine.run(*words, expect=BUSY)
    if "its writers wait for room" not in refused.stderr:
        return False
    assert "take a destination out of group.toml" in refused.stderr
    return True


def write_without_sync(source: Source, history: History) -> None:
    fd = os.open(source.volume, os.O_RDWR)
    for _ in range(200):
        write = history.issue()
        os.pwrite(fd, write.payload(), write.first * BLOCK)
    os.close(fd)


def test_what_the_spool_has_no_room_for_is_not_lost_by_an_unmount(
    machine: Machine, seed: int
) -> None:
    place = machine.root / "journal"
    place.mkdir()
    with memory_disk(place, "64m"):
        source = Source(machine, machine.root, place / "state")
        source.initialise(BLOCKS * BLOCK, journal=LAZY)
        history = History(BLOCKS, seed)
        source.must_mount()
        write_without_sync(source, history)
        ballast = fill(place)
        refused = machine.run("umount", source.mountpoint, expect=BUSY)
        assert "not durable yet" in refused.stderr
        assert "Free space" in refused.stderr
        assert source.exit_code() is None
        # Who unmounts by other means is waited for, too.
        subprocess.run(["fusermount3", "-u", source.mountpoint], check=True)
        assert source.driver is not None
        with pytest.raises(subprocess.TimeoutExpired):
            source.driver.wait(0.5)
        ballast.unlink()
        assert source.driver.wait(PATIENCE_S) == 0, machine.log("mount")
        assert history.recovered(source.image.read_bytes()) == len(history.writes)
        source.must_mount()
        source.unmount()


def test_an_unmount_tells_of_an_end_that_was_not_clean(machine: Machine, seed: int) -> None:
    source = Source(machine, machine.root)
    source.initialise(BLOCKS * BLOCK)
    history = History(BLOCKS, seed)
    source.must_mount(Cruelty("mount", "image:sync_all", do="eio"))
    write_without_sync(source, history)
    told = machine.run("umount", source.mountpoint, expect=HALTED)
    assert "not a clean one" in told.stderr
    assert source.ended() == HALTED
    source.must_mount()
    source.unmount()
    assert history.recovered(source.image.read_bytes()) == len(history.writes)
