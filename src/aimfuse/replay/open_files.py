"""Keep the files open that were used last: there may be more than a process may have open."""

import os
from collections import OrderedDict
from pathlib import Path

from aimfuse.disk import Disk

FILES_MAX = 128


class OpenFiles:
    """Descriptors of files that are only read, by path, until `close`."""

    def __init__(self, disk: Disk, label: str) -> None:
        self._disk = disk
        self._label = label
        self._open: OrderedDict[Path, int] = OrderedDict()

    def get(self, path: Path) -> int:
        """Return a descriptor of the file at *path*, good until the next call.

        Raises:
            OSError: it could not be opened.
        """
        fd = self._open.get(path)
        if fd is None:
            fd = self._disk.open(self._label, path, os.O_RDONLY | os.O_NOFOLLOW)
            self._open[path] = fd
            if len(self._open) > FILES_MAX:
                self._disk.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(path)
        return fd

    def forget(self, path: Path) -> None:
        """Open *path* anew the next time: another file may have that name by now."""
        if (fd := self._open.pop(path, None)) is not None:
            self._disk.close(fd)

    def close(self) -> None:
        """Close all of them."""
        for fd in self._open.values():
            self._disk.close(fd)
        self._open.clear()
