"""A few megabytes to be given up when the disk is full: folding takes some to free more."""

import contextlib
from pathlib import Path

from aimfuse.disk import Disk, publish
from aimfuse.units import MIB

BALLAST_BYTES = 4 * MIB
_AMPLE = 16
"""Taken only where so many times its size is free."""


class Ballast:
    """The file, which may be missing."""

    def __init__(self, disk: Disk, path: Path) -> None:
        """Keep it at *path*; nothing is done yet."""
        self._disk = disk
        self._path = path
        self._is_there: bool | None = None

    def keep(self) -> None:
        """Make it if it is missing and there is ample space; what fails is tried again."""
        if self._is_there is None:
            self._is_there = self._disk.exists(self._path)
        if self._is_there:
            return
        with contextlib.suppress(OSError):
            if self._disk.free_bytes(self._path.parent) >= _AMPLE * BALLAST_BYTES:
                publish(self._disk, "ballast", self._path, bytes(BALLAST_BYTES))
                self._is_there = True

    def give_up(self) -> bool:
        """Remove it; tell whether that made room."""
        existed = self._disk.exists(self._path)
        if existed:
            self._disk.unlink("ballast:unlink", self._path)
        self._is_there = False
        return existed
