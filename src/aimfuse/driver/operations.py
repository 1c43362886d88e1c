"""pyfuse3 requests: translate arguments, answers and errors; decide nothing.

An exception other than FUSEError that left a handler would end the whole mount and pull the
disk out from under whoever uses it. The boundary around every handler turns the unforeseen into
EIO, a halted volume and a loud state.
"""

import errno
import logging
import os
import stat
import time
from collections.abc import Sequence
from functools import partial
from types import TracebackType

import pyfuse3
from pyfuse3 import FUSEError

from aimfuse.driver.control_files import CONTROL_NAMES, ControlFiles
from aimfuse.driver.engine import Engine
from aimfuse.driver.images import HIDDEN_PREFIX
from aimfuse.driver.pump import Pump
from aimfuse.driver.volumes import Volume
from aimfuse.errors import AimfuseError
from aimfuse.fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from aimfuse.journal.records import NAME_BYTES_MAX, VOLUMES_MAX, check_name
from aimfuse.units import BLOCK_BYTES, MIB

log = logging.getLogger(__name__)

CONTROL_DIR = ".aimfuse"
ATTRIBUTES_VALID_S = 1.0
"""All changes come through this mount, so the kernel's own view stays right."""

_ROOT = pyfuse3.ROOT_INODE
_CONTROL_DIR = 2
_CONTROL_FIRST = 3
_VOLUME_FIRST = 16


class _Boundary:
    """Turn any failure of a handler into an errno, and a bug into a halted volume.

    Without *halts* a bug costs its request only: for what touches no volume.
    """

    __slots__ = ("_engine", "_halts")

    def __init__(self, engine: Engine, *, halts: bool = True) -> None:
        self._engine = engine
        self._halts = halts

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if exc is None or isinstance(exc, FUSEError) or not isinstance(exc, Exception):
            return
        if isinstance(exc, AimfuseError):
            log.info("refused: %s", exc)
            raise FUSEError(exc.kernel_errno) from exc
        if isinstance(exc, OSError):
            raise FUSEError(exc.errno or errno.EIO) from exc
        log.critical("a bug in a handler", exc_info=exc)
        if self._halts:
            self._engine.halt(f"a bug in a handler: {exc!r}")
        raise FUSEError(errno.EIO) from exc


class Operations(pyfuse3.Operations):
    """One group as a flat file system: its volumes, and the control directory."""

    supports_dot_lookup = False
    enable_acl = False

    def __init__(
        self, engine: Engine, pump: Pump, control: ControlFiles, *, writeback: bool
    ) -> None:
        """Serve *engine*, waiting on *pump* and its admission where a request has to wait."""
        super().__init__()
        self.enable_writeback_cache = writeback
        self._engine = engine
        self._pump = pump
        self._admission = pump.admission
        self._control = control
        self._boundary = _Boundary(engine)
        self._beside = _Boundary(engine, halts=False)
        self._uid, self._gid = os.getuid(), os.getgid()
        self._handles: dict[int, bytes | None] = {}
        self._listings: dict[int, tuple[int, list[tuple[str, int]]]] = {}
        self._next_handle = 1 << 32

    # Data.

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return what the volume holds."""
        with self._boundary:
            if fh in self._handles:
                return (self._handles[fh] or b"")[off : off + size]
            return self._engine.read(self._volume(fh), off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Accept a write; room first, then in one stretch number, append and show it."""
        with self._boundary:
            if fh in self._handles:
                with self._beside:
                    return await self._control.write(buf)
            volume = self._volume(fh)
            try:
                is_accepted = self._admission.fits(len(buf))
                if is_accepted:
                    self._engine.write(volume, off, buf)
            except OSError as exc:
                self._admission.note_full(exc)
                is_accepted = False
            if not is_accepted:
                await self._admission.accept(
                    len(buf), partial(self._engine.write, volume, off, buf)
                )
            volume.mtime_ns = time.time_ns()
            self._pump.commit_soon()
            return len(buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Return once all that was accepted before is durable."""
        with self._boundary:
            if fh not in self._handles:
                await self._sync(self._volume(fh))

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Return once all name changes accepted before are durable."""
        with self._boundary:
            self._engine.check_active()
            await self._pump.durable(self._engine.journal.last_seq)

    async def flush(self, fh: int) -> None:
        """Do nothing on close: durability is fsync's."""

    async def fallocate(self, ino: int, mode: int, offset: int, length: int) -> int:
        """Accept a discard or a range of zeros; refuse preallocation."""
        with self._boundary:
            volume = self._volume(ino)
            punch = mode == PUNCH_HOLE | KEEP_SIZE
            if not punch and mode & ~KEEP_SIZE != ZERO_RANGE:
                return errno.EOPNOTSUPP

            def zero() -> None:
                end = offset + length
                if mode & KEEP_SIZE:
                    end = min(end, volume.size_bytes)
                if end > offset:
                    self._engine.zero(volume, offset, end - offset)

            await self._admission.accept(0, zero)
            volume.mtime_ns = time.time_ns()
            self._pump.commit_soon()
            return 0

    # Handles.

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a volume or a control file; O_TRUNC is a truncate like any other."""
        with self._boundary:
            if self._is_control(inode):
                return self._open_control(inode)
            volume = self._volume(inode)
            if flags & os.O_TRUNC:
                await self._truncate(volume, 0)
            volume.opens += 1
            return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def release(self, fh: int) -> None:
        """Let go of a handle; a removed volume ends with its last one."""
        with self._boundary:
            if self._handles.pop(fh, False) is not False:
                return
            self._engine.close_handle(self._volume(fh))

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Create and open a volume of a directory group."""
        with self._boundary:
            text = self._new_name(parent_inode, name)

            def make() -> Volume:
                if self._engine.volumes.named(text) is not None:
                    raise FUSEError(errno.EEXIST)
                return self._engine.create(text)

            volume = await self._admission.accept(len(name), make)
            self._engine.set_owner(volume, stat.S_IMODE(mode), ctx.uid, ctx.gid)
            volume.opens += 1
            self._pump.commit_soon()
            inode = _VOLUME_FIRST + volume.volume
            return pyfuse3.FileInfo(fh=inode, keep_cache=True), self._attributes(inode)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Create a volume; other kinds of nodes cannot be mirrored."""
        with self._boundary:
            if not stat.S_ISREG(mode):
                raise FUSEError(errno.EPERM)
            info, attributes = await self.create(parent_inode, name, mode, 0, ctx)
            await self.release(info.fh)
            return attributes

    # Names.

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in the root or in the control directory."""
        with self._boundary:
            text = os.fsdecode(name)
            if parent_inode == _CONTROL_DIR:
                if text in CONTROL_NAMES:
                    return self._attributes(_CONTROL_FIRST + CONTROL_NAMES.index(text))
                raise FUSEError(errno.ENOENT)
            if text == CONTROL_DIR:
                return self._attributes(_CONTROL_DIR)
            volume = self._engine.volumes.named(text)
            if volume is None:
                raise FUSEError(errno.ENOENT)
            return self._attributes(_VOLUME_FIRST + volume.volume)

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove a volume of a directory group."""
        with self._boundary:
            volume = self._named(parent_inode, name)

            def remove() -> None:
                if volume.removed:
                    raise FUSEError(errno.ENOENT)
                self._engine.remove(volume)

            await self._admission.accept(0, remove)
            self._pump.commit_soon()

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes,
        flags: int, ctx: pyfuse3.RequestContext,
    ) -> None:  # fmt: skip
        """Rename a volume of a directory group, replacing the one of that name."""
        with self._boundary:
            if flags & ~pyfuse3.RENAME_NOREPLACE:
                raise FUSEError(errno.EINVAL)
            volume = self._named(parent_inode_old, name_old)
            text = self._new_name(parent_inode_new, name_new)

            def rename() -> None:
                if volume.removed:
                    raise FUSEError(errno.ENOENT)
                if flags and self._engine.volumes.named(text) is not None:
                    raise FUSEError(errno.EEXIST)
                if volume.name != text:
                    self._engine.rename(volume, text)

            await self._admission.accept(len(name_new), rename)
            self._pump.commit_soon()

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open a directory for listing."""
        with self._boundary:
            if inode not in {_ROOT, _CONTROL_DIR}:
                raise FUSEError(errno.ENOTDIR)
            handle = self._new_handle()
            self._listings[handle] = (inode, [])
            return handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List the names as they were at the start, so that none is seen twice or missed."""
        with self._boundary:
            inode, listing = self._listings[fh]
            if not start_id:
                listing = self._listing(inode)
                self._listings[fh] = (inode, listing)
            for key, (name, entry) in enumerate(listing[start_id:], start_id + 1):
                if entry >= _VOLUME_FIRST and not self._is_called(entry, name):
                    continue  # Removed or renamed since: the kernel would believe the old name.
                if not pyfuse3.readdir_reply(token, name.encode(), self._attributes(entry), key):
                    return

    async def releasedir(self, fh: int) -> None:
        """Let go of a listing."""
        self._listings.pop(fh, None)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Do nothing: inodes are volume ids and cost nothing to keep."""

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
        """Truncate through the journal; mode and owner go to the image, the time is the mount's."""
        with self._boundary:
            if self._is_control(inode) or inode == _ROOT:
                return self._attributes(inode)
            volume = self._volume(inode)
            if fields.update_size:
                await self._truncate(volume, attr.st_size)
            if fields.update_mode or fields.update_uid or fields.update_gid:
                self._engine.set_owner(
                    volume,
                    stat.S_IMODE(attr.st_mode) if fields.update_mode else volume.mode,
                    attr.st_uid if fields.update_uid else volume.uid,
                    attr.st_gid if fields.update_gid else volume.gid,
                )
            if fields.update_mtime:
                volume.mtime_ns = attr.st_mtime_ns
            return self._attributes(inode)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return the space of the file system below the images."""
        with self._boundary:
            root = self._engine.images.root
            info = os.statvfs(root)
            data = pyfuse3.StatvfsData()
            data.f_bsize = data.f_frsize = BLOCK_BYTES
            scale = info.f_frsize / BLOCK_BYTES
            data.f_blocks = int(info.f_blocks * scale)
            data.f_bfree = int(info.f_bfree * scale)
            data.f_bavail = int(info.f_bavail * scale)
            data.f_files = VOLUMES_MAX
            data.f_ffree = data.f_favail = VOLUMES_MAX - len(self._engine.volumes)
            data.f_namemax = NAME_BYTES_MAX
            return data

    # Between.

    async def _sync(self, volume: Volume) -> None:
        await self._pump.flushed(partial(self._engine.flush, volume))

    async def _truncate(self, volume: Volume, size: int) -> None:
        await self._admission.accept(0, partial(self._engine.truncate, volume, size))
        volume.mtime_ns = time.time_ns()
        self._pump.commit_soon()

    def _volume(self, inode: int) -> Volume:
        volume = self._engine.volumes.get(inode - _VOLUME_FIRST)
        if volume is None:
            raise FUSEError(errno.EISDIR if inode in {_ROOT, _CONTROL_DIR} else errno.ESTALE)
        return volume

    def _named(self, parent: int, name: bytes) -> Volume:
        """Return the volume of a name that is about to be changed."""
        self._may_change_names(parent)
        volume = self._engine.volumes.named(os.fsdecode(name))
        if volume is None:
            raise FUSEError(errno.ENOENT)
        return volume

    def _new_name(self, parent: int, name: bytes) -> str:
        self._may_change_names(parent)
        try:
            text = check_name(name)
        except ValueError as exc:
            raise FUSEError(errno.EINVAL) from exc
        if text == CONTROL_DIR or text.startswith(HIDDEN_PREFIX):
            raise FUSEError(errno.EPERM)
        if len(self._engine.volumes) >= VOLUMES_MAX:
            raise FUSEError(errno.ENOSPC)
        return text

    def _may_change_names(self, parent: int) -> None:
        if parent != _ROOT or not self._engine.images.is_directory:
            raise FUSEError(errno.EPERM)

    def _is_control(self, inode: int) -> bool:
        return _CONTROL_DIR <= inode < _VOLUME_FIRST

    def _open_control(self, inode: int) -> pyfuse3.FileInfo:
        if inode == _CONTROL_DIR:
            raise FUSEError(errno.EISDIR)
        handle = self._new_handle()
        with self._beside:
            self._handles[handle] = self._control.read(CONTROL_NAMES[inode - _CONTROL_FIRST])
        return pyfuse3.FileInfo(fh=handle, direct_io=True)

    def _listing(self, inode: int) -> list[tuple[str, int]]:
        if inode == _CONTROL_DIR:
            return [(name, _CONTROL_FIRST + i) for i, name in enumerate(CONTROL_NAMES)]
        volumes = sorted(self._engine.volumes, key=lambda volume: volume.volume)
        listed = [(volume.name, _VOLUME_FIRST + volume.volume) for volume in volumes]
        return [(CONTROL_DIR, _CONTROL_DIR), *listed]

    def _is_called(self, inode: int, name: str) -> bool:
        volume = self._engine.volumes.named(name)
        return volume is not None and volume.volume == inode - _VOLUME_FIRST

    def _new_handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.attr_timeout = entry.entry_timeout = ATTRIBUTES_VALID_S
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = self._uid, self._gid
        entry.st_blksize = MIB
        if inode in {_ROOT, _CONTROL_DIR}:
            entry.st_mode = stat.S_IFDIR | 0o755
            entry.st_nlink = 2
        elif self._is_control(inode):
            writable = CONTROL_NAMES[inode - _CONTROL_FIRST] == "bookmark"
            entry.st_mode = stat.S_IFREG | (0o200 if writable else 0o444)
            entry.attr_timeout = 0
        else:
            volume = self._volume(inode)
            entry.st_mode = stat.S_IFREG | volume.mode
            entry.st_uid, entry.st_gid = volume.uid, volume.gid
            entry.st_size = volume.size_bytes
            entry.st_blocks = self._engine.images.blocks(volume.volume)
            entry.st_nlink = 0 if volume.removed else 1
            entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = volume.mtime_ns
        return entry
