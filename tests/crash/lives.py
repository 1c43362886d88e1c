"""Scripts for a group's life, and ways to end it early."""

from collections.abc import Callable, Iterator, Sequence

from aimfuse.driver.group import GroupLimits
from tests.crash.rig import IMAGE, LIMITS, Op, Rig
from tests.disks.faults import Crash
from tests.disks.simdisk import SimDisk

V = IMAGE.name

# Each script comes to a life's every stage: files that roll, seal, get checkpointed, released
# and recycled, and a clean end with a new start.
IMAGE_LIFE: list[Op] = [
    ("write", V, 0, 4096),
    ("write", V, 1000, 5000),
    ("fsync",),
    ("zero", V, 3000, 6000),
    ("apply",),
    ("holey", V),
    ("truncate", V, 5000),
    ("roll",),
    ("write", V, 4990, 100),
    ("seal",),
    ("commit",),
    ("apply",),
    ("checkpoint",),
    ("truncate", V, 20_000),
    ("write", V, 19_000, 3000),
    ("cycle",),
    ("write", V, 3, 9),
    ("cycle",),
    ("write", V, 30_000, 10),
    ("fsync",),
    ("write", V, 100, 8000),
    ("roll",),
    ("write", V, 200, 50),
    ("roll",),
    ("seal",),
    ("seal",),
    ("apply",),
    ("fsync",),
    ("apply",),
    ("checkpoint",),
    ("release",),
    ("reopen",),
    ("write", V, 0, 77),
    ("fsync",),
    ("write", V, 7, 7),
    ("cycle",),
]
DIRECTORY_LIFE: list[Op] = [
    ("create", "b"),
    ("write", "b", 0, 5000),
    ("write", "a", 0, 4096),
    ("fsync",),
    ("apply",),
    ("rename", "b", "c"),
    ("create", "b"),
    ("write", "b", 10, 10),
    ("cycle",),
    ("rename", "c", "a"),
    ("write", "a", 4000, 200),
    ("commit",),
    ("apply",),
    ("unlink", "b"),
    ("create", "b"),
    ("write", "b", 0, 9),
    ("rename", "b", "d"),
    ("rename", "a", "b"),
    ("rename", "d", "a"),
    ("fsync",),
    ("apply",),
    ("roll",),
    ("truncate", "a", 100),
    ("seal",),
    ("checkpoint",),
    ("cycle",),
    ("unlink", "a"),
    ("cycle",),
    ("reopen",),
    ("create", "e"),
    ("fsync",),
    ("apply",),
]
# Payloads so large that they are written by a later step than the one that accepts them.
LARGE_LIFE: list[Op] = [
    ("write", V, 0, 140_000),
    ("write", V, 100, 20),
    ("commit",),
    ("write", V, 50_000, 150_000),
    ("fsync",),
    ("apply",),
    ("write", V, 3, 140_000),
    ("roll",),
    ("write", V, 90, 131_072),
    ("seal",),
    ("fsync",),
    ("apply",),
    ("seal",),
    ("checkpoint",),
    ("cycle",),
]
LARGE = GroupLimits(512 * 1024, memory_bytes_max=1 << 22, size_max=1 << 20)
AFTERLIFE: list[Op] = [("write", V, 10, 2000), ("fsync",), ("write", V, 0, 5), ("apply",)]


SCRIPTS = {"image": IMAGE_LIFE, "directory": DIRECTORY_LIFE, "large": LARGE_LIFE}


def live(rig: Rig, script: Sequence[Op]) -> bool:
    """Carry out the script; tell whether it came to its end."""
    try:
        for op in script:
            rig.do(op)
    except Crash:
        return False
    return True


def new_rig(group: str) -> Rig:
    """Return a fresh group that suits the script of this name."""
    limits = LARGE if group == "large" else LIMITS
    return Rig.create(directory=group == "directory", limits=limits)


def every_crash(group: str, prepare: Callable[[SimDisk], None] | None = None) -> Iterator[Rig]:
    """Yield a dead rig for each step of the group's script, and the living one at its end."""
    step = 0
    while True:
        rig = new_rig(group)
        if prepare:
            prepare(rig.disk)
        rig.disk.stop_at(len(rig.disk.labels) + step)
        ended = live(rig, SCRIPTS[group])
        yield rig
        if ended:
            return
        step += 1
