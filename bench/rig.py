"""A contestant made ready: its mounted volume, and how to wait until all is mirrored."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VOLUME = "v.img"
MOUNTPOINT = "mnt"


@dataclass(frozen=True, slots=True)
class Rig:
    """A mounted volume that can take load; *drain* waits until nothing is left to mirror."""

    volume: Path
    drain: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Places:
    """Where a contestant keeps its things, and how large its image is in bytes.

    *near* holds what belongs to the machine under test; *far* stands for another machine and
    is always in memory, so that its disk is not ours.
    """

    near: Path
    far: Path
    size: int

    def make(self) -> None:
        """Make the directories."""
        for path in (self.near, self.near / MOUNTPOINT, self.far):
            path.mkdir(exist_ok=True)
