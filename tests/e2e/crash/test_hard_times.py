"""A driver that is frozen, short of memory, or without its order: what was synced stays."""

import contextlib
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.config import MountConfig
from aimfuse.units import MIB
from tests.e2e.crash.machine import Far, Machine, Source, eventually, frozen, kill
from tests.e2e.crash.writes import BLOCK, History, Load, Write
from tests.e2e.host import QUICK, FarHost
from tests.e2e.host import Source as Group
from tests.e2e.programs import run

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(300)]

BLOCKS = 256
PRESSURE_BYTES = 64 * MIB
CGROUPS = Path("/sys/fs/cgroup")


def test_a_driver_that_is_frozen_for_a_while_costs_that_while_and_nothing_else(
    machine: Machine, seed: int
) -> None:
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    source.initialise(BLOCKS * BLOCK, far.url)
    history = History(BLOCKS, seed)
    far.start()
    source.must_mount()
    driver = driver_of(source)
    # No process is started meanwhile: it would close its copies of our descriptors, and hang.
    with Load(source.volume, history) as load:
        assert not load.wait_for_trouble(0.2)
        with frozen(driver):
            stuck = history.completed + 1  # One may have been answered and not be counted yet.
            assert not load.wait_for_trouble(1.0)
            assert history.completed <= stuck
        while history.completed < stuck + 50:
            assert not load.wait_for_trouble(0.05), (load.error, load.sync_error)
    source.flush()
    image = source.volume.read_bytes()
    assert history.recovered(image) == history.completed
    assert far.mirror.read_bytes() == image
    source.unmount()


def test_with_writeback_what_an_fsync_acknowledged_outlives_a_killed_driver(
    machine: Machine, seed: int
) -> None:
    """Order between two fsyncs is not promised then, so each block is judged by itself."""
    dice = random.Random(seed)
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    source.initialise(BLOCKS * BLOCK, far.url)
    source.configure(lambda old: replace(old, mount=MountConfig(writeback=True)))
    far.start()
    states: dict[int, list[bytes]] = {number: [bytes(BLOCK)] for number in range(BLOCKS)}
    for _ in range(2):
        source.must_mount()
        killer = threading.Timer(dice.uniform(0.3, 0.8), lambda: kill(driver_of(source)))
        killer.start()
        write_behind(source.volume, states, dice)
        killer.join()
        source.kill()
        source.must_mount()
        image = source.volume.read_bytes()
        for number, possible in states.items():
            block = image[number * BLOCK : (number + 1) * BLOCK]
            assert block in possible, f"block {number}: {block[:16]!r}"
            states[number] = [block]
        source.flush()
        assert far.mirror.read_bytes() == image == source.image.read_bytes()
        source.unmount()


def driver_of(source: Source) -> subprocess.Popen[bytes]:
    assert source.driver is not None
    return source.driver


def write_behind(volume: Path, states: dict[int, list[bytes]], dice: random.Random) -> None:
    """Write through the page cache, and sync at times, until the volume is gone.

    *states* gets what each block may hold: what the last fsync found, and all that came later.
    """
    with contextlib.suppress(OSError):
        fd = os.open(volume, os.O_RDWR)
        try:
            while True:
                for _ in range(dice.randrange(1, 60)):
                    number = dice.randrange(BLOCKS)
                    block = Write(dice.randrange(1 << 40), number, 1, zero=False).payload()
                    states[number].append(block)
                    os.pwrite(fd, block, number * BLOCK)
                os.fsync(fd)
                for possible in states.values():
                    del possible[:-1]
        finally:
            os.close(fd)


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Make a control group with so much memory; who is in it at the end goes back."""
    old = CGROUPS / "memory"
    parent, limit = (old, "memory.limit_in_bytes") if old.is_dir() else (CGROUPS, "memory.max")
    group = parent / f"aimfuse-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(limit_bytes))
    except OSError as exc:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory control groups to be had: {exc.strerror}")
    try:
        yield group / "cgroup.procs"
    finally:
        eventually(lambda: has_gone(group, parent), "the group is empty")


def has_gone(group: Path, parent: Path) -> bool:
    """Send who is in a group to the one above and remove it; who is just ending keeps it."""
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (parent / "cgroup.procs").write_text(pid)
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


@pytest.mark.known_gap(reason="control groups belong to the host of a container")
@pytest.mark.usefixtures("require_root_loop", "require_fuse")
def test_a_driver_short_of_memory_writes_back_what_does_not_fit_into_it(tmp_path: Path) -> None:
    """The writers are outside: in the driver's own group they could make it wait for itself."""
    with FarHost(tmp_path / "far") as far, Group(tmp_path / "near", 96 * MIB) as source:
        far.start()
        source.init(to=[far.url()], journal=replace(QUICK, memory_bytes_max=8 * MIB))
        source.mount()
        assert source.process is not None
        device = source.attach()
        run("mkfs.ext4", "-q", device)
        with memory_group(PRESSURE_BYTES) as members, source.file_system(device) as place:
            members.write_text(str(source.process.pid))
            with (place / "big").open("wb") as file:
                for _ in range(64):
                    file.write(os.urandom(MIB))
                file.flush()
                os.fsync(file)
            assert source.status()["state"] == "active"
        source.detach(device)
        source.wait_mirrored(far)
        assert source.umount() == 0
        run("cmp", source.image, far.mirror())
