"""The yardstick: a bare pyfuse3 pass-through of one file, without journal or mirror."""

import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

_FILE = 2


class PassThrough(pyfuse3.Operations):
    """One file in the root; reads, writes and syncs go straight to it."""

    enable_writeback_cache = False

    def __init__(self, path: str) -> None:
        """Serve the file at *path*."""
        super().__init__()
        self._fd = os.open(path, os.O_RDWR)
        self._name = Path(path).name.encode()

    async def getattr(
        self, inode: int, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        """Return root or file."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = stat.S_IFDIR | 0o755
        elif inode == _FILE:
            entry.st_mode = stat.S_IFREG | 0o600
            entry.st_size = os.fstat(self._fd).st_size
        else:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return entry

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find the file."""
        if name != self._name:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_FILE)

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Truncate."""
        if fields.update_size:
            os.ftruncate(self._fd, attr.st_size)
        return await self.getattr(inode)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open the file."""
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read from the file."""
        return os.pread(self._fd, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write to the file."""
        return os.pwrite(self._fd, buf, off)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Sync the file."""
        os.fdatasync(self._fd)


def main() -> None:
    """Serve argv[1] at argv[2] until unmounted."""
    image, mountpoint = sys.argv[1:]
    pyfuse3.init(PassThrough(image), mountpoint, set(pyfuse3.default_options))
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
