"""Serve one file of zeros in a mount and answer its fallocate requests: for test_fallocate.py.

Prints "ready", then each request as JSON (mode, offset, length). The offset chooses how the
handler ends. Dies by itself after a minute, so that a test can never hang on its mount.
"""

import argparse
import errno
import json
import os
import signal
import stat
from typing import Any

from aimfuse import fallocate
from aimfuse.errors import VolumeError

FILE_BYTES = 65536
LIFE_S_MAX = 60

arguments = argparse.ArgumentParser()
arguments.add_argument("directory")
arguments.add_argument("--answer", type=json.loads, default=0)
arguments.add_argument("--cancel", action="store_true")
arguments.add_argument("--closed-nursery", action="store_true")
arguments.add_argument("--leave-open", action="store_true")
arguments.add_argument("--no-handler", action="store_true")
arguments.add_argument("--no-extension", action="store_true")
options = arguments.parse_args()

assert options.no_extension or fallocate.load(), "the extension was not built"

import pyfuse3  # noqa: E402 - after load(), by its contract
import trio  # noqa: E402 - as above

VOLUME = pyfuse3.InodeT(2)


class OneFile(pyfuse3.Operations):
    """A directory with one file."""

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        del ctx
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        if inode == VOLUME:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o600)
            entry.st_size = FILE_BYTES
        else:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o700)
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        return entry

    async def lookup(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if parent_inode != pyfuse3.ROOT_INODE or name != b"volume":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(VOLUME, ctx)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        del flags, ctx
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        del fh
        return bytes(max(0, min(size, FILE_BYTES - off)))


async def on_fallocate(ino: int, mode: int, offset: int, length: int) -> int:
    assert ino == VOLUME
    print(json.dumps([mode, offset, length]), flush=True)
    if options.cancel:
        await trio.sleep_forever()
    await trio.sleep(0.001)  # Others begin meanwhile.
    failures: dict[int, Exception] = {
        1000: ZeroDivisionError("made up"),
        1001: OSError(errno.ENOSPC, "made up"),
        1002: pyfuse3.FUSEError(errno.EROFS),
        1003: VolumeError(errno.EFBIG, "made up"),
    }
    if offset in failures:
        raise failures[offset]
    if mode & (fallocate.PUNCH_HOLE | fallocate.ZERO_RANGE):
        result: int = options.answer
        return result
    return errno.EOPNOTSUPP


def leave_open(*request: object) -> None:
    """Take the request, never answer it, and end the mount."""
    taken.append(request)
    print(json.dumps(request[1:4]), flush=True)
    pyfuse3.terminate()


taken: list[Any] = []


async def serve() -> None:
    async with trio.open_nursery() as closed:
        pass
    async with trio.open_nursery() as nursery:
        if options.leave_open:
            from aimfuse import _fallocate  # noqa: PLC0415 - may be missing

            _fallocate.set_callback(leave_open)
        elif not options.no_handler:
            spawn = (closed if options.closed_nursery else nursery).start_soon
            assert fallocate.install(on_fallocate, spawn) != options.no_extension
        if options.cancel:
            nursery.cancel_scope.deadline = trio.current_time() + 0.5
            with trio.CancelScope(shield=True):
                await pyfuse3.main()
        else:
            await pyfuse3.main()


signal.alarm(LIFE_S_MAX)
pyfuse3.init(OneFile(), options.directory, set(pyfuse3.default_options))
assert fallocate.served() != options.no_extension
print("ready", flush=True)
try:
    trio.run(serve)
finally:
    pyfuse3.close()
taken.clear()  # The destructors meet a session that is gone.
