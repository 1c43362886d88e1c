"""A `Disk` in memory that can lose what was never made durable, and fail on command.

It models: a volatile page cache (writes are durable after `fdatasync` of the file, names
after `sync_dir` of the directory, nothing else and nothing by order); a killed program (the
cache stays, the descriptors go); Linux's fsync errors (the pages are clean afterwards, each
descriptor hears of it once, the next sync succeeds, reads show the new data until the cache
is dropped); full disks (a short write, then ENOSPC); and, if asked for, torn pages
(`torn_pages`), times that an fdatasync leaves behind (`lazy_times`), and the one mercy that
changes of the same name are lost from the end (`names_in_order`).

To prove that tests notice, it can ignore the syncs of some labels (`ignored_syncs`).

It does not model: bit rot, concurrent writes that overlap in
time (each call is atomic), time, permissions, symbolic links, or a directory whose sync
failed and is then believed (metadata is journalled: its failure ends the file system).

`kill` and `power_cut` return the disk that the next start finds and leave this one as it is,
so one run can be cut in many ways. Descriptors are numbers that the real kernel never gave:
passing one to `os` fails.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NoReturn

from aimfuse.disk import Buffer, Disk
from tests.disks.cuts import Choose, Unit, keep_none
from tests.disks.faults import Crash, Fault
from tests.disks.simfile import PAGE_BYTES, SECTOR_BYTES, SimFile
from tests.disks.simnames import SimNames

FIRST_FD = 1_000_000
CAPACITY_BYTES = 1 << 40


@dataclass(frozen=True, slots=True)
class Mutation:
    """What a call is about to do to a file: bytes for a write, None for truncate and punch."""

    label: str
    path: Path
    offset: int
    length: int
    data: bytes | None


@dataclass(slots=True)
class _Descriptor:
    file: SimFile
    path: Path
    flags: int
    errors_seen: int


class SimDisk(Disk):
    """See the module. `labels` lists the steps so far; `on_write` sees each change first.

    What is durable changes only when `sync_count` does.
    """

    def __init__(self, *directories: Path, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.labels: list[str] = []
        self.sync_count = 0
        self.on_write: Callable[[Mutation], None] | None = None
        self.faults: list[Fault] = []
        self.capacity_bytes = capacity_bytes
        self.torn_pages = False
        self.lazy_times = False
        self.names_in_order = False
        self.ignored_syncs: frozenset[str] = frozenset()
        self._stop_at: int | None = None
        self._stop_bytes = 0
        self._dead = False
        self._names = SimNames()
        self._files: dict[int, SimFile] = {}
        self._open: dict[int, _Descriptor] = {}
        self._fds = count(FIRST_FD)
        self._lock = threading.RLock()
        for path in directories:
            self.make_directories(path)

    # For tests.

    def make_directories(self, path: Path) -> None:
        """Make a directory and those above it, durably and without a step."""
        for directory in [*reversed(path.parents), path][1:]:
            if self._names.find(directory) is None:
                self._names.make_directory(directory)
                self._names.sync(directory.parent)

    def plant(self, path: Path, data: bytes) -> None:
        """Put a file there, durable, without a step."""
        inode = self._names.find(path)
        file = self._files[inode] if inode else self._create(path)
        file.truncate(0)
        file.write(data, 0)
        file.sync()
        file.sync_times()
        self._names.sync(path.parent)

    def contents(self, path: Path) -> bytes:
        """Return what a program would read."""
        file = self._file(path)
        return file.read(file.size, 0)

    def durable_bytes(self, path: Path) -> bytes | None:
        """Return what is certainly on the disk under this name, None if the name is not."""
        inode = self._names.find_durable(path)
        return None if inode is None else self._files[inode].durable_bytes()

    def names_in(self, path: Path) -> list[str]:
        """Return the names in a directory, also after the program died."""
        return self._names.listdir(path)

    @property
    def is_dead(self) -> bool:
        """Tell whether the program was stopped."""
        return self._dead

    def stop_at(self, step: int | None, *, after_bytes: int = 0) -> None:
        """Raise `Crash` instead of step number *step* (from 0), and at each one after it.

        If that step is a `pwrite`, its first *after_bytes* bytes are written.
        """
        self._stop_at, self._stop_bytes = step, after_bytes

    def inject(self, *faults: Fault) -> None:
        """Let calls fail from now on; the first fault that hits counts."""
        self.faults.extend(faults)

    def units(self) -> list[Unit]:
        """Return what a power cut now may lose, in the order in which `power_cut` asks."""
        with self._lock:
            files = [
                unit
                for file in self._files.values()
                for unit in file.units(self._grain, lazy_times=self.lazy_times)
            ]
            return files + list(self._names.units())

    def power_cut(self, choose: Choose = keep_none) -> "SimDisk":
        """Return the disk as the machine finds it at its next start."""
        with self._lock:
            files = {
                inode: file.settle(choose, self._grain, lazy_times=self.lazy_times)
                for inode, file in self._files.items()
            }
            return self._next_start(files, self._names.settle(choose, in_order=self.names_in_order))

    def kill(self) -> "SimDisk":
        """Return the disk as the next program finds it after this one was killed."""
        with self._lock:
            return self._next_start(
                {i: f.copy() for i, f in self._files.items()}, self._names.copy()
            )

    def stat(self, path: Path) -> os.stat_result:
        """Return type, inode, size and times of what lies at *path*."""
        with self._lock:
            inode = self._names.find(path)
            if inode is None:
                _refuse(errno.ENOENT, path)
            if self._names.is_directory(inode):
                return os.stat_result((stat.S_IFDIR | 0o700, inode, 1, 2, 0, 0, 0, 0, 0, 0))
            file = self._files[inode]
            times = (file.times,) * 3
            return os.stat_result((stat.S_IFREG | 0o600, inode, 1, 1, 0, 0, file.size, *times))

    @property
    def open_paths(self) -> list[Path]:
        """Return the paths of the descriptors that nobody closed."""
        return [descriptor.path for descriptor in self._open.values()]

    @property
    def _grain(self) -> int:
        return SECTOR_BYTES if self.torn_pages else PAGE_BYTES

    def _next_start(self, files: dict[int, SimFile], names: SimNames) -> "SimDisk":
        disk = SimDisk(capacity_bytes=self.capacity_bytes)
        disk.torn_pages, disk.lazy_times = self.torn_pages, self.lazy_times
        disk.names_in_order = self.names_in_order
        disk.ignored_syncs = self.ignored_syncs
        disk._names = names
        reachable = names.reachable()
        disk._files = {inode: file for inode, file in files.items() if inode in reachable}
        return disk

    # Steps.

    def step(self, label: str) -> None:
        """Count a step that changes nothing; see `_begin`."""
        self._begin(label)

    def _begin(self, label: str) -> Fault | None:
        """Begin a labelled step.

        Returns:
            The fault that the caller has to act out, if any.

        Raises:
            Crash: the program is to die here, or is dead.
        """
        if self._dead or len(self.labels) == self._stop_at:
            self._dead = True
            raise Crash(label)
        self.labels.append(label)
        return self._fault(label, len(self.labels) - 1)

    def _fault(self, label: str, step: int | None) -> Fault | None:
        return next((fault for fault in self.faults if fault.hits(label, step)), None)

    def _begin_plain(self, label: str, path: Path) -> None:
        fault = self._begin(label)
        if fault:
            _refuse(fault.number, path)

    # Files.

    def open(self, label: str, path: Path, flags: int, mode: int = 0o600) -> int:
        del mode
        with self._lock:
            self._begin_plain(label, path)
            inode = self._names.find(path)
            if inode is None:
                if not flags & os.O_CREAT:
                    _refuse(errno.ENOENT, path)
                file = self._create(path)
            elif flags & os.O_CREAT and flags & os.O_EXCL:
                _refuse(errno.EEXIST, path)
            else:
                file = self._file(path)
            if flags & os.O_DIRECTORY:
                _refuse(errno.ENOTDIR, path)
            if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY and file.size:
                self._tell(Mutation(label, path, 0, 0, None))
                file.truncate(0)
            fd = next(self._fds)
            self._open[fd] = _Descriptor(file, path, flags, file.error_count)
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            if self._dead:
                return
            self._descriptor(fd)
            del self._open[fd]
            self._drop_nameless()

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        with self._lock:
            descriptor = self._descriptor(fd)
            if descriptor.flags & os.O_ACCMODE == os.O_WRONLY:
                _refuse(errno.EBADF, descriptor.path)
            if offset < 0 or length < 0:
                _refuse(errno.EINVAL, descriptor.path)
            fault = self._fault("pread", None)
            if fault:
                _refuse(fault.number, descriptor.path)
            return descriptor.file.read(length, offset)

    def pwrite(self, label: str, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        with self._lock:
            data = b"".join(buffers)
            if not self._dead and len(self.labels) == self._stop_at and self._stop_bytes:
                self._write(label, self._writable(fd), data[: self._stop_bytes], offset)
            fault = self._begin(label)
            descriptor = self._writable(fd)
            if offset < 0:
                _refuse(errno.EINVAL, descriptor.path)
            if fault:
                self._write(label, descriptor, data[: fault.short_bytes], offset)
                _refuse(fault.number, descriptor.path)
            fits = self._room_for(descriptor.file, len(data), offset)
            self._write(label, descriptor, data[:fits], offset)
            if fits < len(data):
                _refuse(errno.ENOSPC, descriptor.path)

    def pwrite_many(
        self, label: str, fd: int, offsets: Sequence[int], buffers: Sequence[bytes]
    ) -> None:
        with self._lock:
            if not self._dead and len(self.labels) == self._stop_at and self._stop_bytes:
                self._write_many(label, self._writable(fd), offsets, buffers, self._stop_bytes)
            fault = self._begin(label)
            descriptor = self._writable(fd)
            if fault:
                self._write_many(label, descriptor, offsets, buffers, fault.short_bytes)
                _refuse(fault.number, descriptor.path)
            for offset, buffer in zip(offsets, buffers, strict=True):
                fits = self._room_for(descriptor.file, len(buffer), offset)
                self._write(label, descriptor, bytes(buffer[:fits]), offset)
                if fits < len(buffer):
                    _refuse(errno.ENOSPC, descriptor.path)

    def truncate(self, label: str, fd: int, size: int) -> None:
        with self._lock:
            fault = self._begin(label)
            descriptor = self._descriptor(fd)
            if fault:
                _refuse(fault.number, descriptor.path)
            if size < 0 or descriptor.flags & os.O_ACCMODE == os.O_RDONLY:
                _refuse(errno.EINVAL, descriptor.path)
            self._tell(Mutation(label, descriptor.path, size, 0, None))
            descriptor.file.truncate(size)

    def punch(self, label: str, fd: int, offset: int, length: int) -> None:
        with self._lock:
            fault = self._begin(label)
            descriptor = self._writable(fd)
            if fault:
                _refuse(fault.number, descriptor.path)
            if offset < 0 or length <= 0:
                _refuse(errno.EINVAL, descriptor.path)
            self._tell(Mutation(label, descriptor.path, offset, length, None))
            descriptor.file.punch(offset, length)

    def fdatasync(self, label: str, fd: int) -> None:
        with self._lock:
            fault = self._begin(label)
            descriptor = self._descriptor(fd)
            file = descriptor.file
            if label in self.ignored_syncs:
                return
            if fault:
                file.fail_sync()
                descriptor.errors_seen = file.error_count
                _refuse(fault.number, descriptor.path)
            self.sync_count += 1
            file.sync()
            if descriptor.errors_seen != file.error_count:  # It failed for somebody else.
                descriptor.errors_seen = file.error_count
                _refuse(errno.EIO, descriptor.path)

    def fsync(self, label: str, fd: int) -> None:
        """Sync the times too."""
        with self._lock:
            self.fdatasync(label, fd)
            self._descriptor(fd).file.sync_times()

    def size(self, fd: int) -> int:
        with self._lock:
            return self._descriptor(fd).file.size

    def allocated(self, fd: int) -> int:
        with self._lock:
            return len(self._descriptor(fd).file.data_pages()) * PAGE_BYTES

    def inode(self, fd: int) -> int:
        with self._lock:
            return self._descriptor(fd).file.inode

    def change_marks(self, fd: int) -> dict[str, int]:
        with self._lock:
            file = self._descriptor(fd).file
            return {"inode": file.inode, "mtime_ns": file.times, "ctime_ns": file.times}

    def owner(self, _fd: int) -> tuple[int, int, int]:
        return 0o600, 0, 0

    def set_owner(self, _fd: int, _mode: int, _uid: int, _gid: int) -> None:
        """Keep no owners: they are not what a crash endangers."""

    def drop_cache(self, fd: int) -> None:
        with self._lock:
            self._descriptor(fd).file.drop_cache()

    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        with self._lock:
            ranges = list(self._descriptor(fd).file.data_ranges(start, end))
        yield from ranges

    # Directories.

    def exists(self, path: Path) -> bool:
        with self._lock:
            self._check_alive()
            try:
                return self._names.find(path) is not None
            except (FileNotFoundError, NotADirectoryError):
                return False

    def listdir(self, path: Path) -> list[str]:
        with self._lock:
            self._check_alive()
            return self._names.listdir(path)

    def mkdir(self, label: str, path: Path, mode: int = 0o700) -> None:
        del mode
        with self._lock:
            self._begin_plain(label, path)
            if self._names.find(path) is not None:
                return
            self._names.make_directory(path)
        self.sync_dir(label, path.parent)

    def rename(self, label: str, old: Path, new: Path) -> None:
        with self._lock:
            self._begin_plain(label, old)
            if not self._is_directory(old) and self.exists(new):
                self._file(new)
            elif self.exists(new):
                _refuse(errno.ENOTEMPTY, new)
            self._names.rename(old, new)

    def link(self, label: str, old: Path, new: Path) -> None:
        with self._lock:
            self._begin_plain(label, old)
            file = self._file(old)
            if self._names.find(new) is not None:
                _refuse(errno.EEXIST, new)
            self._names.set_name(new, file.inode)

    def unlink(self, label: str, path: Path) -> None:
        with self._lock:
            self._begin_plain(label, path)
            self._file(path)
            self._names.set_name(path, None)

    def sync_dir(self, label: str, path: Path) -> None:
        with self._lock:
            self._begin_plain(label, path)
            if label in self.ignored_syncs:
                return
            self.sync_count += 1
            self._names.sync(path)
            self._drop_nameless()

    def free_bytes(self, path: Path) -> int:
        with self._lock:
            self._check_alive()
            self._names.listdir(path if self._is_directory(path) else path.parent)
            return max(0, self.capacity_bytes - self._used())

    # Inside.

    def _is_directory(self, path: Path) -> bool:
        inode = self._names.find(path)
        if inode is None:
            _refuse(errno.ENOENT, path)
        return self._names.is_directory(inode)

    def _file(self, path: Path) -> SimFile:
        inode = self._names.find(path)
        if inode is None:
            _refuse(errno.ENOENT, path)
        if self._names.is_directory(inode):
            _refuse(errno.EISDIR, path)
        return self._files[inode]

    def _create(self, path: Path) -> SimFile:
        file = SimFile(self._names.new_number())
        self._names.set_name(path, file.inode)
        self._files[file.inode] = file
        return file

    def _drop_nameless(self) -> None:
        held = self._names.reachable() | {d.file.inode for d in self._open.values()}
        for inode in self._files.keys() - held:
            del self._files[inode]

    def _check_alive(self) -> None:
        if self._dead:
            raise Crash("the program is dead")

    def _descriptor(self, fd: int) -> _Descriptor:
        self._check_alive()
        descriptor = self._open.get(fd)
        if descriptor is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return descriptor

    def _writable(self, fd: int) -> _Descriptor:
        descriptor = self._descriptor(fd)
        if descriptor.flags & os.O_ACCMODE == os.O_RDONLY:
            _refuse(errno.EBADF, descriptor.path)
        return descriptor

    def _tell(self, mutation: Mutation) -> None:
        if self.on_write:
            self.on_write(mutation)

    def _write(self, label: str, descriptor: _Descriptor, data: bytes, offset: int) -> None:
        if data:
            self._tell(Mutation(label, descriptor.path, offset, len(data), data))
            descriptor.file.write(data, offset)

    def _used(self) -> int:
        held = self._names.named() | {d.file.inode for d in self._open.values()}
        return sum(len(self._files[i].data_pages()) for i in held if i in self._files) * PAGE_BYTES

    def _write_many(
        self,
        label: str,
        descriptor: _Descriptor,
        offsets: Sequence[int],
        buffers: Sequence[bytes],
        limit: int,
    ) -> None:
        """Write the first *limit* bytes of all the buffers."""
        for offset, buffer in zip(offsets, buffers, strict=True):
            self._write(label, descriptor, bytes(buffer[:limit]), offset)
            limit = max(0, limit - len(buffer))

    def _room_for(self, file: SimFile, length: int, offset: int) -> int:
        """Return how many of the bytes fit; pages that are there already cost nothing."""
        if self.capacity_bytes >= CAPACITY_BYTES or not length:
            return length
        have = set(file.data_pages())
        pages = max(0, self.capacity_bytes - self._used()) // PAGE_BYTES
        for index in range(offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES + 1):
            pages -= index not in have
            if pages < 0:
                return max(0, index * PAGE_BYTES - offset)
        return length


def _refuse(number: int, path: Path) -> NoReturn:
    raise OSError(number, os.strerror(number), str(path))
