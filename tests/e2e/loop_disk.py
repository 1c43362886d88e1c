"""A block device of a test's own: a loop device over a file, under a name that stays."""

import os
from pathlib import Path

from tests.e2e.programs import run


class LoopDisk:
    """A loop device over ROOT/disk, and the stable *name* that leads to it."""

    def __init__(self, root: Path, name: Path, size: int) -> None:
        """Make it, of *size* bytes; a file under that name is replaced."""
        self.backing = root / "disk"
        self.name = name
        with self.backing.open("wb") as file:
            file.truncate(size)
        self.device = run("losetup", "--find", "--show", self.backing).strip()
        name.unlink(missing_ok=True)
        name.symlink_to(self.device)

    def held_bytes(self) -> int:
        """Write out what is only in the device's cache, and return what the disk takes."""
        run("blockdev", "--flushbufs", self.device)
        return self.backing.stat().st_blocks * 512

    def resize(self, size: int) -> None:
        """Give the device another size."""
        os.truncate(self.backing, size)
        run("losetup", "--set-capacity", self.device)

    def remove(self) -> None:
        """Detach it; nobody may use it any more."""
        run("losetup", "--detach", self.device)
