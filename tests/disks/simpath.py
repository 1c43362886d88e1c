"""Paths of a simulated disk, for code that asks the path itself what lies there."""

import os
from pathlib import Path, PosixPath
from typing import Self

from tests.disks.simdisk import SimDisk

_current: list[SimDisk] = []


class SimPath(PosixPath):
    """A path whose `stat` asks the disk that `use` named last; children are such paths too."""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return what the simulated disk says; there are no symbolic links."""
        del follow_symlinks
        return _current[-1].stat(Path(self))

    def lstat(self) -> os.stat_result:
        """Return the same as `stat`."""
        return self.stat()

    @classmethod
    def use(cls, disk: SimDisk) -> type[Self]:
        """Let all paths ask *disk* from now on."""
        _current[:] = [disk]
        return cls
