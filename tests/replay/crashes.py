"""Stores to be killed: copies of one, and one on a simulated disk that loses power."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.replay.state import Phase, StoreState
from tests.disks.cuts import keep_all, keep_none, keep_random
from tests.disks.faults import Crash
from tests.disks.simdisk import SimDisk
from tests.replay.faults import DiskLook, Steps
from tests.replay.source import Source
from tests.replay.stores import busy_files, catch_up, exhaust, opened

STORE = Path("/store")


def steps_of(store: Path, tmp_path: Path) -> list[str]:
    rehearsal = tmp_path / "rehearsal"
    copy_store(store, rehearsal)
    counter = Steps()
    catch_up(rehearsal, counter)
    shutil.rmtree(rehearsal)
    return counter.labels


def copy_store(store: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", store, target], check=True)  # Hard links stay hard links.


def run_into(disk: Disk, store: Path) -> None:
    """Let the replayer run until the disk kills it; a finished one is fine too."""
    with contextlib.suppress(Crash), opened(store, disk) as session:
        exhaust(session)


def plant(disk: SimDisk, *files: Path) -> None:
    for file in files:
        disk.plant(STORE / "inbox" / file.name, file.read_bytes())


def simulated_store(scratch: Path) -> tuple[SimDisk, dict[int, dict[str, bytes]]]:
    """Return a disk with a synced store and files waiting, and the right mirrors by file."""
    source = Source(scratch / "spool")
    source.create("v.img", 9000)
    source.write(1, 4000, b"\xee" * 3000)
    source.roll()
    disk = SimDisk(STORE / "inbox")
    plant(disk, *source.sync())
    session = catch_up(STORE, disk, DiskLook(disk))
    assert session.store.state.phase is Phase.CONSISTENT
    snapshots = {1: source.snapshot()}
    plant(disk, *busy_files(source, snapshots))
    return disk, snapshots


def simulated_mirror(disk: SimDisk) -> dict[str, bytes]:
    mirror = STORE / "mirror"
    return {name: disk.contents(mirror / name) for name in disk.listdir(mirror)}


def run_simulated(disk: SimDisk) -> StoreState:
    session = None
    try:
        with opened(STORE, disk, DiskLook(disk)) as session:
            exhaust(session)
            if session.error:
                exhaust(session)
    except Crash:
        pass
    assert session is not None
    assert not session.halted
    return session.store.state


def power_cuts() -> list[Callable[[int], Callable[..., int]]]:
    return [lambda _at: keep_none, lambda _at: keep_all, *[keep_random] * 3]
