"""What it takes to read a store's past, wherever the store is: here, or elsewhere."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk, process_disk
from aimfuse.replay.afar import FarDisk, FarLook
from aimfuse.replay.farhold import ANSWER_S_MAX, FarHold, Mailbox
from aimfuse.replay.hold import pinned
from aimfuse.replay.look import Look
from aimfuse.replay.pins import Movable

COPIERS = 2
"""One waits for the disk, or for memory, while the other works."""

Hold = Callable[[Disk, Path], AbstractContextManager[Movable | None]]
"""Keeps what is read from being pruned, while its block runs."""


@dataclass(frozen=True, slots=True)
class Access:
    """A store at *path*, as *disk* and *look* see it, and how to hold its past."""

    disk: Disk
    look: Look
    path: Path
    name: str
    hold: Hold
    copiers: int = 0
    """Threads that copy from it, beside one that reads ahead; with 0 one does everything."""

    is_far: bool = False
    """Whether the way there may be cut: what has come is kept for the next time."""

    @classmethod
    def here(cls, path: Path) -> "Access":
        """Return the way to a store of this host."""
        return cls(process_disk(), Look(), path, str(path), pinned, copiers=COPIERS)

    @classmethod
    def afar(
        cls,
        files: Mailbox,
        url: str,
        disk: Disk | None = None,
        answer_s_max: float = ANSWER_S_MAX,
    ) -> "Access":
        """Return the way to a store that *files* bring; *disk* is where output goes.

        Its replayer has *answer_s_max* to say that it heeds us.
        """
        path = Path(url)
        hold = FarHold(files, answer_s_max)
        far_disk = FarDisk(files, path, hold.data_of, disk)
        return cls(
            far_disk, FarLook(files, path), path, url, hold, copiers=int(disk is None), is_far=True
        )
