"""A view: the past of a store as files in a mount. Translates FUSE requests, decides nothing.

An exception other than FUSEError that left a handler would end the whole mount; the boundary
around every handler turns it into an errno and a line in the log.
"""

import errno
import logging
import os
import signal
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from aimfuse import fallocate

fallocate.load()  # Before pyfuse3 is imported: it wins libfuse's symbol for the session.

import pyfuse3  # noqa: E402
import trio  # noqa: E402
from pyfuse3 import FUSEError  # noqa: E402

from aimfuse.errors import AimfuseError, BusyError, UsageError  # noqa: E402
from aimfuse.fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE  # noqa: E402
from aimfuse.journal.records import NAME_BYTES_MAX, VOLUMES_MAX  # noqa: E402
from aimfuse.mountpoint import VIEW_FSTYPE, VIEW_NOTE, source_name  # noqa: E402
from aimfuse.replay.frozen import Frozen, PastLost  # noqa: E402
from aimfuse.replay.tree import File, Tree  # noqa: E402
from aimfuse.units import BLOCK_BYTES, MIB  # noqa: E402

log = logging.getLogger(__name__)

VALID_S = 3600.0
"""All changes come through this mount, so the kernel's own view stays right."""
REFRESH_S = 1.0
"""Time between two looks at what the replayer did, so that an end is told when it comes."""

FIRST_INODE = 16
_ROOT = pyfuse3.ROOT_INODE
_NOTE = _ROOT + 1
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """Where to mount, and for whom; `store` is what the mount table shows.

    With `while_open` the view ends, in any case, when the pipe that this reads from does. `note`
    is what the file says that tells what is shown.
    """

    store: Path
    mountpoint: Path
    allow_other: bool = False
    while_open: int | None = None
    note: bytes = b""


class _Boundary:
    """Turn any failure of a handler into an errno; `failure` is the first one of the past."""

    __slots__ = ("failure",)

    def __init__(self) -> None:
        self.failure: AimfuseError | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if exc is None or isinstance(exc, FUSEError) or not isinstance(exc, Exception):
            return
        if isinstance(exc, AimfuseError):
            self.failure = self.failure or exc
            if not isinstance(exc, PastLost):  # Which was logged when it was found.
                log.error("cannot be read: %s", exc)
            raise FUSEError(exc.kernel_errno) from exc
        if isinstance(exc, OSError):
            raise FUSEError(exc.errno or errno.EIO) from exc
        log.critical("a bug in a handler", exc_info=exc)
        raise FUSEError(errno.EIO) from exc


class Operations(pyfuse3.Operations):
    """A flat directory of the files of a view."""

    supports_dot_lookup = False
    enable_acl = False
    enable_writeback_cache = False

    def __init__(self, tree: Tree, note: bytes = b"") -> None:
        """Show *tree*, and *note* in a file that is in no list."""
        super().__init__()
        self._note = note
        self._boundary = _Boundary()
        self._tree = tree
        self._uid, self._gid = os.getuid(), os.getgid()
        self._mtime_ns = time.time_ns()
        self._listings: dict[int, list[tuple[str, int]]] = {}
        self._next_handle = 1

    @property
    def failure(self) -> AimfuseError | None:
        """Return why something of the past could not be read, at first; None if all could."""
        return self._boundary.failure

    # Data.

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file; the kernel may keep what it has read: nothing changes by itself."""
        with self._boundary:
            if inode == _NOTE and flags & os.O_ACCMODE == os.O_RDONLY:
                return pyfuse3.FileInfo(fh=inode, keep_cache=True)
            file = self._file(inode)
            if flags & os.O_ACCMODE != os.O_RDONLY and self._tree.scratch is None:
                raise FUSEError(errno.EROFS)
            if flags & os.O_TRUNC:
                self._tree.truncate(file, 0, time.time_ns())
            self._tree.open(file)
            return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def release(self, fh: int) -> None:
        """Let go of a handle."""
        with self._boundary:
            if fh != _NOTE:
                self._tree.release(self._file(fh))

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return what the volume held at the point, or was given since in the scratch."""
        with self._boundary:
            if fh == _NOTE:
                return self._note[off : off + size]
            return self._tree.read(self._file(fh), off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write into the scratch."""
        with self._boundary:
            self._tree.write(self._file(fh), off, buf, time.time_ns())
            return len(buf)

    async def fallocate(self, ino: int, mode: int, offset: int, length: int) -> int:
        """Take a discard or a range of zeros into the scratch; refuse preallocation."""
        with self._boundary:
            punch = mode == PUNCH_HOLE | KEEP_SIZE
            if not punch and mode & ~KEEP_SIZE != ZERO_RANGE:
                return errno.EOPNOTSUPP
            file, end = self._file(ino), offset + length
            if mode & KEEP_SIZE:
                end = min(end, file.size)
            if end > offset:
                self._tree.zero(file, offset, end - offset, time.time_ns())
            return 0

    async def flush(self, fh: int) -> None:
        """Do nothing on close."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Do nothing: what is written here is meant to be thrown away."""

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Do nothing, as above."""

    # Names.

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name."""
        with self._boundary:
            if name == VIEW_NOTE.encode():
                return self._attributes(_NOTE)
            return self._attributes(self._tree.named(os.fsdecode(name)).inode)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file in the scratch and open it."""
        with self._boundary:
            file = self._tree.create(name, time.time_ns())
            self._tree.open(file)
            return pyfuse3.FileInfo(fh=file.inode, keep_cache=True), self._attributes(file.inode)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a file in the scratch."""
        with self._boundary:
            if not stat.S_ISREG(mode):
                raise FUSEError(errno.EPERM)
            return self._attributes(self._tree.create(name, time.time_ns()).inode)

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove a file from the scratch."""
        with self._boundary:
            self._tree.remove(os.fsdecode(name))

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes,
        flags: int, ctx: pyfuse3.RequestContext,
    ) -> None:  # fmt: skip
        """Rename a file in the scratch."""
        with self._boundary:
            if flags & ~pyfuse3.RENAME_NOREPLACE:
                raise FUSEError(errno.EINVAL)
            self._tree.rename(os.fsdecode(name_old), name_new, may_replace=not flags)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open the directory for listing."""
        with self._boundary:
            if inode != _ROOT:
                raise FUSEError(errno.ENOTDIR)
            self._next_handle += 1
            self._listings[self._next_handle] = []
            return self._next_handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List the names as they were at the start, so that none is seen twice or missed."""
        with self._boundary:
            if not start_id:
                self._listings[fh] = [(file.name, file.inode) for file in self._tree.files()]
            for key, (name, inode) in enumerate(self._listings[fh][start_id:], start_id + 1):
                if not self._is_called(name, inode):
                    continue
                if not pyfuse3.readdir_reply(token, name.encode(), self._attributes(inode), key):
                    return

    async def releasedir(self, fh: int) -> None:
        """Let go of a listing."""
        self._listings.pop(fh, None)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Do nothing: inodes cost nothing to keep."""

    # Attributes.

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return what stat shows."""
        with self._boundary:
            return self._attributes(inode)

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Set size and time within the scratch; owner and mode are the view's."""
        with self._boundary:
            if inode != _ROOT:
                file = self._file(inode)
                if fields.update_size:
                    self._tree.truncate(file, attr.st_size, time.time_ns())
                if fields.update_mtime and self._tree.scratch is not None:
                    file.mtime_ns = attr.st_mtime_ns
            return self._attributes(inode)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return the space that a scratch still has."""
        with self._boundary:
            files = self._tree.files()
            data = pyfuse3.StatvfsData()
            data.f_bsize = data.f_frsize = BLOCK_BYTES
            data.f_blocks = sum(file.size for file in files) // BLOCK_BYTES
            data.f_bfree = data.f_bavail = 0
            if self._tree.scratch is not None:
                info = os.statvfs(self._tree.scratch)
                data.f_bfree = data.f_bavail = info.f_bavail * info.f_frsize // BLOCK_BYTES
                data.f_blocks += data.f_bavail
            data.f_files = VOLUMES_MAX
            data.f_ffree = data.f_favail = VOLUMES_MAX - len(files)
            data.f_namemax = NAME_BYTES_MAX
            return data

    def _file(self, inode: int) -> File:
        if inode in {_ROOT, _NOTE}:
            raise FUSEError(errno.EISDIR if inode == _ROOT else errno.EACCES)
        return self._tree.get(inode)

    def _is_called(self, name: str, inode: int) -> bool:
        try:
            return self._tree.named(name).inode == inode
        except FileNotFoundError:
            return False

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.attr_timeout = entry.entry_timeout = VALID_S
        entry.st_uid, entry.st_gid = self._uid, self._gid
        entry.st_blksize = MIB
        is_writable = self._tree.scratch is not None
        if inode == _ROOT:
            entry.st_mode = stat.S_IFDIR | (0o755 if is_writable else 0o555)
            entry.st_nlink = 2
            entry.st_mtime_ns = self._mtime_ns
        elif inode == _NOTE:
            entry.st_mode, entry.st_nlink = stat.S_IFREG | 0o444, 1
            entry.st_size, entry.st_mtime_ns = len(self._note), self._mtime_ns
        else:
            file = self._file(inode)
            entry.st_mode = stat.S_IFREG | (0o600 if is_writable else 0o400)
            entry.st_nlink = 0 if file.is_removed else 1
            entry.st_size = file.size
            entry.st_blocks = -(-file.size // _SECTOR_BYTES)
            entry.st_mtime_ns = file.mtime_ns
        entry.st_ctime_ns = entry.st_atime_ns = entry.st_mtime_ns
        return entry


async def serve(
    frozen: Frozen, tree: Tree, options: ViewOptions, mounted: Callable[[], None]
) -> None:
    """Mount, call *mounted*, serve until somebody unmounts.

    Raises:
        UsageError: the kernel or fusermount3 refuses the mount.
        AimfuseError: it has been unmounted, and something of the past could not be read.
    """
    operations = Operations(tree, options.note)
    fuse_options = set(pyfuse3.default_options)
    fuse_options |= {f"fsname={source_name(options.store)}", f"subtype={VIEW_FSTYPE}"}
    if tree.scratch is None:
        fuse_options.add("ro")
    if options.allow_other:
        fuse_options.add("allow_other")
    try:
        pyfuse3.init(operations, str(options.mountpoint), fuse_options)
    except RuntimeError as exc:
        raise UsageError(
            f"{options.mountpoint} cannot be mounted: {exc}",
            hint="fusermount3 may have said more above; for --allow-other /etc/fuse.conf "
            "needs the line user_allow_other.",
        ) from exc
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_refresh, frozen)
            nursery.start_soon(_stop_on_signal, options.mountpoint)
            if options.while_open is not None:
                nursery.start_soon(_stop_at_end_of, options.while_open, options.mountpoint)
            if tree.scratch is not None:
                fallocate.install(operations.fallocate, nursery.start_soon)
            mounted()
            await pyfuse3.main()
            fallocate.uninstall()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)
    if operations.failure is not None:
        raise operations.failure


async def _refresh(frozen: Frozen) -> None:
    while not frozen.lost:
        await trio.sleep(REFRESH_S)
        try:
            frozen.refresh()
        except PastLost:  # It was logged when it was found.
            return
        except (AimfuseError, OSError) as exc:
            log.warning("looking after the replayer: %s", exc)


async def _stop_on_signal(mountpoint: Path) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for number in signals:
            try:
                await _unmount(mountpoint)
            except BusyError as exc:
                log.warning("%s: %s. %s", signal.Signals(number).name, exc, exc.hint)


async def _stop_at_end_of(pipe: int, mountpoint: Path) -> None:
    """Take the view away, also from its users, once whoever wanted it is gone."""
    await trio.lowlevel.wait_readable(pipe)
    await _unmount(mountpoint, "-uz")


async def _unmount(mountpoint: Path, how: str = "-u") -> None:
    """Ask the kernel to unmount; raise `BusyError` where somebody still uses the view."""
    command = ["fusermount3", how, "--", str(mountpoint)]
    try:
        done = await trio.run_process(command, check=False, capture_stderr=True, stdin=b"")
    except OSError as exc:
        hint = "Unmount it with umount as root."
        raise BusyError(f"{command[0]}: {exc.strerror}", hint=hint) from exc
    if done.returncode:
        hint = "Unmount what lies on its volumes and detach its loop devices, then again."
        raise BusyError(done.stderr.decode(errors="replace").strip(), hint=hint)
