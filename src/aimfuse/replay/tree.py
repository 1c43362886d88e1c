"""The files of a view: the volumes as they were, and what has become of them since in a scratch.

Knows nothing of FUSE. Errors are `OSError` with the errno that the caller is to get, or those of
the past that is read.
"""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from aimfuse.disk import Disk
from aimfuse.journal.records import VOLUMES_MAX, check_name
from aimfuse.replay.frozen import Frozen, FrozenVolume
from aimfuse.replay.scratch import Overlay, open_nameless


@dataclass(eq=False, slots=True)
class File:
    """One file of a view. `opens` counts handles; a removed file lives until the last is gone."""

    inode: int
    name: str
    volume: FrozenVolume | None
    mtime_ns: int
    overlay: Overlay | None = None
    opens: int = 0
    is_removed: bool = False

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        if self.overlay is not None:
            return self.overlay.size
        return self.volume.size_bytes if self.volume else 0


class Tree:
    """The files of one view, by name and by inode. Without *scratch*, a directory, read-only."""

    def __init__(
        self,
        disk: Disk,
        frozen: Frozen,
        volumes: Iterable[FrozenVolume],
        first_inode: int,
        scratch: Path | None = None,
    ) -> None:
        """Show *volumes* of *frozen*."""
        self.scratch = scratch
        self._disk = disk
        self._frozen = frozen
        self._next_inode = first_inode
        self._files: dict[int, File] = {}
        self._names: dict[str, File] = {}
        for volume in volumes:
            self._new(volume.name, volume, frozen.point.time_ns)

    def close(self) -> None:
        """Throw away what was written."""
        for file in self._files.values():
            if file.overlay is not None:
                file.overlay.close()
        self._files.clear()

    def files(self) -> list[File]:
        """Return those that have a name, in the order in which they came to be."""
        return sorted(self._names.values(), key=lambda file: file.inode)

    def named(self, name: str) -> File:
        """Return the file of that name, or raise ENOENT."""
        return self._names.get(name) or _refuse(errno.ENOENT)

    def get(self, inode: int) -> File:
        """Return the file with that inode, or raise ESTALE."""
        return self._files.get(inode) or _refuse(errno.ESTALE)

    # Data.

    def read(self, file: File, offset: int, length: int) -> bytes:
        """Return up to *length* bytes of a file, fewer at its end."""
        if file.overlay is not None:
            return file.overlay.read(offset, length)
        return self._frozen.read(file.volume, offset, length) if file.volume else b""

    def write(self, file: File, offset: int, data: bytes, now_ns: int) -> None:
        """Write into the scratch."""
        self._writable(file).write(offset, data)
        file.mtime_ns = now_ns

    def truncate(self, file: File, size: int, now_ns: int) -> None:
        """Set the size within the scratch."""
        self._writable(file).truncate(size)
        file.mtime_ns = now_ns

    def zero(self, file: File, offset: int, length: int, now_ns: int) -> None:
        """Have a range read as zeros within the scratch; a file grows if it ends behind it."""
        self._writable(file).zero(offset, length)
        file.mtime_ns = now_ns

    def _writable(self, file: File) -> Overlay:
        if self.scratch is None:
            _refuse(errno.EROFS)
        if file.overlay is None:
            frozen, volume = self._frozen, file.volume

            def beneath(offset: int, length: int) -> bytes:
                return frozen.read(volume, offset, length) if volume else b""

            fd = open_nameless(self._disk, self.scratch)
            file.overlay = Overlay(self._disk, fd, beneath, volume.size_bytes if volume else 0)
        return file.overlay

    # Handles.

    def open(self, file: File) -> None:
        """Count a handle."""
        file.opens += 1

    def release(self, file: File) -> None:
        """Count it no more; a removed file ends with the last one."""
        file.opens -= 1
        self._forget_if_gone(file)

    # Names, in a scratch.

    def create(self, raw: bytes, now_ns: int) -> File:
        """Make an empty file that only the scratch has."""
        name = self._new_name(raw)
        if name in self._names:
            _refuse(errno.EEXIST)
        return self._new(name, None, now_ns)

    def remove(self, name: str) -> None:
        """Take a name away."""
        self._check_writable()
        file = self.named(name)
        del self._names[name]
        file.is_removed = True
        self._forget_if_gone(file)

    def rename(self, old: str, raw: bytes, *, may_replace: bool) -> None:
        """Give a file another name, and that of another if it *may_replace* it."""
        new = self._new_name(raw)
        file = self.named(old)
        if new == old:
            return
        if new in self._names:
            if not may_replace:
                _refuse(errno.EEXIST)
            self.remove(new)
        self._names[new] = self._names.pop(old)
        file.name = new

    def _new(self, name: str, volume: FrozenVolume | None, mtime_ns: int) -> File:
        file = File(self._next_inode, name, volume, mtime_ns)
        self._next_inode += 1
        self._files[file.inode] = self._names[name] = file
        return file

    def _new_name(self, raw: bytes) -> str:
        self._check_writable()
        try:
            name = check_name(raw)
        except ValueError as exc:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from exc
        if len(self._names) >= VOLUMES_MAX:
            _refuse(errno.ENOSPC)
        return name

    def _check_writable(self) -> None:
        if self.scratch is None:
            _refuse(errno.EROFS)

    def _forget_if_gone(self, file: File) -> None:
        if file.is_removed and not file.opens:
            self._files.pop(file.inode, None)
            if file.overlay is not None:
                file.overlay.close()


def _refuse(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
