"""The only module that changes what survives a crash.

Every crash-relevant call bears a label, so that a test can stop, fail or lose any of them
by name. `Disk` is the real one; tests put a simulated or a failing one in its place. Code
above it keeps file descriptors as plain integers and never hands them to `os`.
"""

import contextlib
import ctypes
import errno
import fcntl
import importlib
import os
import stat
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview

IOV_MAX = 1024
"""Buffers that one gathering write may take (Linux UIO_MAXIOV)."""

_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_ZERO_CHUNK_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
_FICLONE = 0x40049409
_NO_CLONES = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EINVAL,
        errno.EXDEV,
        errno.EPERM,
    }
)
"""What cloning and copying inside the kernel give where they cannot be, or not between these."""
_BLOCK_BYTES = 4096
_NO_HOLES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL, errno.EBUSY})
"""What a punch gives where there can be no hole; EBUSY from a device with pages in use."""


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.statfs.argtypes = [ctypes.c_char_p, ctypes.c_char_p]

_IN_MEMORY = "in memory: a power cut or a reboot takes everything on it"
_FAR_AWAY = (
    "on a network file system: what is synced is as durable as its server makes it, a lock may "
    "not keep out another host, and while the server is away everything hangs"
)
_BY_A_PROGRAM = "on a FUSE file system: what is synced is as durable as its program makes it"
_WEAK_KINDS = {
    0x01021994: _IN_MEMORY, 0x858458F6: _IN_MEMORY,  # tmpfs, ramfs
    0x6969: _FAR_AWAY, 0xFF534D42: _FAR_AWAY, 0xFE534D42: _FAR_AWAY,  # NFS, CIFS, SMB2
    0x00C36400: _FAR_AWAY, 0x01021997: _FAR_AWAY,  # Ceph, 9P
    0x65735546: _BY_A_PROGRAM,
}  # fmt: skip
"""What is to be said of file systems, by the f_type of statfs(2)."""


class Places(NamedTuple):
    """Stretches of a file, and where in some memory the bytes of each are: 64-bit, in bytes."""

    ats: "array[int]"
    offsets: "array[int]"
    lengths: "array[int]"


def write_buffers(fd: int, offsets: Sequence[int], buffers: Sequence[Buffer]) -> None:
    """Do for `Disk.pwrite_many` what the extension does faster."""
    for offset, buffer in zip(offsets, buffers, strict=True):
        _pwrite_rest(fd, memoryview(buffer), 0, offset)


def write_places(
    fd: int, memory: memoryview, ats: "array[int]", offsets: "array[int]", lengths: "array[int]"
) -> None:
    """Do for `Disk.pwrite_places` what the extension does faster."""
    found = list(zip(ats, offsets, lengths, strict=True))
    if any(min(one) < 0 or one[0] + one[2] > len(memory) for one in found):
        raise ValueError("a place is not in the memory")
    for at, offset, length in found:
        _pwrite_rest(fd, memory[at : at + length], 0, offset)


_write_buffers: Callable[..., None] = write_buffers
_write_places: Callable[..., None] = write_places
_read_places: Callable[..., int] | None = None
with contextlib.suppress(ImportError, AttributeError):  # Not built, or long ago: slower.
    _scatter = importlib.import_module("aimfuse._scatter")
    _read_places = _scatter.read_places
    _write_buffers, _write_places = _scatter.write_buffers, _scatter.write_places


class Disk:
    """The real disk: thin, labelled, and complete (a short write is finished or raised).

    Every method raises `OSError` as the kernel gave it. What a failed call leaves behind is
    what the kernel leaves: for `pwrite`, any prefix of the data; for `fdatasync`, nothing
    that may be believed later.
    """

    def step(self, label: str) -> None:
        """Be called before each labelled operation; tests override it to stop there."""

    # Files.

    def open(self, label: str, path: Path, flags: int, mode: int = 0o600) -> int:
        """Open *path*; creation becomes durable with `sync_dir` of its directory."""
        self.step(label)
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        """Close *fd*; says nothing about durability."""
        os.close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Return up to *length* bytes at *offset*; fewer only at the end of the file."""
        data = os.pread(fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length and (data := os.pread(fd, length - got, offset + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def pread_into(self, fd: int, view: memoryview, offset: int) -> int:
        """Read into *view* from *offset*; return how much, less only at the end of the file."""
        got = 0
        while got < len(view) and (count := os.preadv(fd, [view[got:]], offset + got)):
            got += count
        return got

    def pwrite(self, label: str, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all *buffers* back to back at *offset*, durable after `fdatasync`."""
        self.step(label)
        want = sum(map(len, buffers))
        wrote = os.pwritev(fd, buffers, offset) if len(buffers) <= IOV_MAX else 0
        if wrote < want:
            _pwrite_rest(fd, memoryview(b"".join(buffers)), wrote, offset)

    def pwrite_many(
        self, label: str, fd: int, offsets: Sequence[int], buffers: Sequence[Buffer]
    ) -> None:
        """Write each buffer whole at its offset, in order, durable after `fdatasync`.

        After an error those before the failed one are written, and any prefix of that.
        """
        self.step(label)
        _write_buffers(fd, tuple(offsets), tuple(buffers))

    def pwrite_places(self, label: str, fd: int, memory: memoryview, places: Places) -> None:
        """Write each of *places* from *memory*; errors and durability as for `pwrite_many`.

        Raises:
            ValueError: one does not lie in *memory*; nothing was written.
        """
        self.step(label)
        _write_places(fd, memory, *places)

    def pread_places(self, fd: int, memory: memoryview, places: Places) -> int:
        """Read *places* whole into *memory*, in order; return how many, until one cannot be.

        They are announced first. Why one is not, whoever reads it alone finds out.
        """
        return _read_places(fd, memory, *places) if _read_places is not None else 0

    def truncate(self, label: str, fd: int, size: int) -> None:
        """Set the file's size in bytes."""
        self.step(label)
        os.ftruncate(fd, size)

    def punch(self, label: str, fd: int, offset: int, length: int) -> None:
        """Make the range read as zeros without changing the size; a hole where it can be."""
        self.step(label)
        if offset < 0 or length <= 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        number = _punch(fd, offset, length)
        start, end = -(-offset // _BLOCK_BYTES) * _BLOCK_BYTES, offset + length
        stop = end // _BLOCK_BYTES * _BLOCK_BYTES
        if number == errno.EINVAL and start < stop:  # A block device: in whole blocks only.
            number = _punch(fd, start, stop - start)
            if not number:
                _write_zeros(fd, offset, start - offset)
                _write_zeros(fd, stop, end - stop)
        if number in _NO_HOLES:
            _write_zeros(fd, offset, min(length, max(0, _size(fd) - offset)))
        elif number:
            raise OSError(number, os.strerror(number))

    def punch_many(self, label: str, fd: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Punch each of *ranges*, offset and length, which lie within the file; see `punch`."""
        self.step(label)
        call, mode = _libc.fallocate, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE
        for offset, length in ranges:
            if call(fd, mode, offset, length):
                self.punch(label, fd, offset, length)  # It knows what to do then.

    def clone(self, label: str, source: int, target: int) -> bool:
        """Make *target* share all of the blocks of *source*; return False where that cannot be."""
        self.step(label)
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as exc:
            if exc.errno in _NO_CLONES:
                return False
            raise
        return True

    def copy_range(self, label: str, source: int, target: int, offset: int, length: int) -> int:
        """Copy bytes from one file to the same place of another; return how many, 0 at its end.

        The file system may do it without moving them.
        """
        self.step(label)
        try:
            return os.copy_file_range(source, target, length, offset, offset)
        except OSError as exc:
            if exc.errno not in _NO_CLONES:
                raise
        data = self.pread(source, min(length, _COPY_BYTES), offset)
        _pwrite_rest(target, memoryview(data), 0, offset)
        return len(data)

    def fdatasync(self, label: str, fd: int) -> None:
        """Make the file's data and size durable.

        After an error nothing written to *fd* before it may be believed, also not when a
        later call succeeds: the kernel reports a lost page once and then forgets it.
        """
        self.step(label)
        os.fdatasync(fd)

    def fsync(self, label: str, fd: int) -> None:
        """Make data and all attributes durable, times too; errors as for `fdatasync`."""
        self.step(label)
        os.fsync(fd)

    def size(self, fd: int) -> int:
        """Return the size in bytes of a file or of a block device."""
        return _size(fd)

    def is_file(self, fd: int) -> bool:
        """Tell whether it is a plain file: no directory, FIFO, socket or device."""
        return stat.S_ISREG(os.fstat(fd).st_mode)

    def allocated(self, fd: int) -> int:
        """Return the bytes that the file occupies; a block device occupies all of itself."""
        info = os.fstat(fd)
        return _size(fd) if stat.S_ISBLK(info.st_mode) else info.st_blocks * 512

    def inode(self, fd: int) -> int:
        """Return the inode number, which survives a rename."""
        return os.fstat(fd).st_ino

    def owner(self, fd: int) -> tuple[int, int, int]:
        """Return permission bits, user and group; a block device counts as ours alone."""
        info = os.fstat(fd)
        if stat.S_ISBLK(info.st_mode):
            return 0o600, os.getuid(), os.getgid()
        return stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid

    def set_owner(self, fd: int, mode: int, uid: int, gid: int) -> None:
        """Set permission bits, user and group, as far as this process may."""
        if stat.S_ISREG(os.fstat(fd).st_mode):
            with contextlib.suppress(PermissionError):
                os.fchmod(fd, mode)
                os.fchown(fd, uid, gid)

    def change_marks(self, fd: int) -> dict[str, int]:
        """Return what tells whether a file was touched; nothing for a block device."""
        info = os.fstat(fd)
        if stat.S_ISBLK(info.st_mode):
            return {}
        return {"inode": info.st_ino, "mtime_ns": info.st_mtime_ns, "ctime_ns": info.st_ctime_ns}

    def drop_cache(self, fd: int, offset: int = 0, length: int = 0) -> None:
        """Forget clean cached pages, so that the next read comes from the disk itself.

        Those of a range; *length* 0 reaches to the end of the file.
        """
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def take_lock(self, fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        """Take the file's lock, which ends with the descriptor; return whether it was free."""
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def next_data(self, fd: int, start: int, end: int) -> int:
        """Return where the first byte from *start* on is that lies in no hole, *end* if none."""
        try:
            return min(end, os.lseek(fd, start, os.SEEK_DATA))
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return end
            if exc.errno == errno.EINVAL:  # No SEEK_DATA here: all of it is data.
                return start
            raise

    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, end) of each stretch between *start* and *end* that is no hole."""
        at = start
        while at < end:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:
                    return
                if exc.errno == errno.EINVAL:  # No SEEK_DATA here: all of it is data.
                    yield at, end
                    return
                raise
            if data >= end:
                return
            at = min(end, os.lseek(fd, data, os.SEEK_HOLE))
            yield data, at

    # Directories.

    def exists(self, path: Path) -> bool:
        """Tell whether the name exists, whatever it is."""
        return os.path.lexists(path)

    def listdir(self, path: Path) -> list[str]:
        """Return the names in the directory, sorted."""
        return sorted(os.listdir(path))

    def mkdir(self, label: str, path: Path, mode: int = 0o700) -> None:
        """Make the directory if it is missing, and its name durable."""
        self.step(label)
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            return
        self.sync_dir(label, path.parent)

    def rename(self, label: str, old: Path, new: Path) -> None:
        """Give the file the name *new*, replacing it; durable after `sync_dir`."""
        self.step(label)
        os.rename(old, new)

    def link(self, label: str, old: Path, new: Path) -> None:
        """Give the file a second name; durable after `sync_dir`."""
        self.step(label)
        os.link(old, new)

    def unlink(self, label: str, path: Path) -> None:
        """Remove the name; durable after `sync_dir`."""
        self.step(label)
        os.unlink(path)

    def rmdir(self, label: str, path: Path) -> None:
        """Remove the empty directory; durable after `sync_dir` of the one it was in."""
        self.step(label)
        os.rmdir(path)

    def sync_dir(self, label: str, path: Path) -> None:
        """Make the names in the directory durable."""
        self.step(label)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        """Return the bytes that an unprivileged writer can still use on this file system."""
        info = os.statvfs(path)
        return info.f_bavail * info.f_frsize


_installed: Disk | None = None


def install(disk: Disk) -> None:
    """Have this process use *disk* from now on: how tests stop real processes at a label."""
    global _installed  # noqa: PLW0603 - the one seam between a process and its disk
    _installed = disk


def process_disk() -> Disk:
    """Return the disk of this process: the real one, unless another was installed."""
    return _installed or Disk()


def publish(disk: Disk, label: str, target: Path, data: Buffer, mode: int = 0o600) -> None:
    """Make *data* appear at *target* whole or not at all; durable once this returns.

    A crash can leave ``TARGET.part`` behind; the next call replaces it.
    """
    part = target.with_name(target.name + ".part")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    fd = disk.open(f"{label}:create", part, flags, mode)
    try:
        disk.pwrite(f"{label}:write", fd, [data], 0)
        disk.fdatasync(f"{label}:sync", fd)  # Contents first: a rename may overtake them.
    finally:
        disk.close(fd)
    disk.rename(f"{label}:rename", part, target)
    disk.sync_dir(f"{label}:sync_dir", target.parent)


class NoPlainFile(OSError):
    """A directory, FIFO, socket or device lies where a file is to be."""


def read_file(disk: Disk, path: Path, limit_bytes: int) -> bytes:
    """Return the first *limit_bytes* bytes of a file. Does not wait for whoever fills a FIFO.

    Raises:
        NoPlainFile: something else than a file bears that name.
        OSError: as opening or reading gave it.
    """
    fd = disk.open("read", path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not disk.is_file(fd):
            raise NoPlainFile(errno.EINVAL, "is no plain file", str(path))
        return disk.pread(fd, min(limit_bytes, disk.size(fd)), 0)
    finally:
        disk.close(fd)


def try_lock(fd: int) -> bool:
    """Take the file's exclusive lock without waiting; it ends with the descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def weakness(path: Path) -> str:
    """Return what to be warned of on the file system of *path*; "" where nothing is known."""
    if path.is_block_device():  # Its name lies in memory, its bytes do not.
        return ""
    info = ctypes.create_string_buffer(256)  # struct statfs; its first field is a long, f_type.
    if _libc.statfs(os.fsencode(path), info) != 0:
        return ""
    kind = int.from_bytes(info.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return _WEAK_KINDS.get(kind & 0xFFFFFFFF, "")


def note_owner(disk: Disk, label: str, fd: int) -> None:
    """Leave our process id in a lock file that is held.

    Only messages to others use it, so a full disk is no reason to give the lock up. In place
    and always of one length: a lock file that has its block needs no other.
    """
    with contextlib.suppress(OSError):
        disk.pwrite(label, fd, [f"{os.getpid():<11}\n".encode()], 0)


def _size(fd: int) -> int:
    info = os.fstat(fd)
    if not stat.S_ISBLK(info.st_mode):
        return info.st_size
    return os.lseek(fd, 0, os.SEEK_END)


def _pwrite_rest(fd: int, data: memoryview, wrote: int, offset: int) -> None:
    while wrote < len(data):
        more = os.pwrite(fd, data[wrote:], offset + wrote)
        if more == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        wrote += more


def _punch(fd: int, offset: int, length: int) -> int:
    """Make a hole and return 0, or the errno."""
    mode = _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE
    return ctypes.get_errno() if _libc.fallocate(fd, mode, offset, length) else 0


def _write_zeros(fd: int, offset: int, length: int) -> None:
    zeros = memoryview(bytes(min(length, _ZERO_CHUNK_BYTES)))
    while length > 0:
        chunk = zeros[:length]
        _pwrite_rest(fd, chunk, 0, offset)
        offset += len(chunk)
        length -= len(chunk)
