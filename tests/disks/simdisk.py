"""A `Disk` in memory that can lose what was never made durable, and fail on command.

It models: a volatile page cache (writes are durable after `fdatasync` of the file, names
after `sync_dir` of the directory, nothing else and nothing by order); a killed program (the
cache stays, the descriptors go); Linux's fsync errors (the pages are clean afterwards, each
descriptor hears of it once, the next sync succeeds, reads show the new data until the cache
is dropped); full disks (a short write, then ENOSPC); and, if asked for, torn pages
(`torn_pages`), times that an fdatasync leaves behind (`lazy_times`), and the one mercy that
changes of the same name are lost from the end (`names_in_order`).

To prove that tests notice, it can ignore the syncs of some labels (`ignored_syncs`).

It does not model: bit rot, writes that overlap in time (each call is atomic), permissions,
symbolic links, or a directory whose sync failed and is then believed (metadata is journalled:
its failure ends the file system).

`kill` and `power_cut` return the disk that the next start finds and leave this one as it is,
so one run can be cut in many ways. Descriptors are numbers that the real kernel never gave:
passing one to `os` fails.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from aimfuse.disk import Buffer, Disk, Places
from tests.disks.machine import Descriptor, Machine, Mutation, refuse
from tests.disks.simfile import PAGE_BYTES


class SimDisk(Machine, Disk):
    """See the module. `labels` lists the steps so far; `on_write` sees each change first.

    What is durable changes only when `sync_count` does.
    """

    def step(self, label: str) -> None:
        """Count a step that changes nothing; see `_begin`."""
        self._begin(label)

    # Files.

    def open(self, label: str, path: Path, flags: int, mode: int = 0o600) -> int:
        del mode
        with self._lock:
            self._begin_plain(label, path)
            inode = self._names.find(path)
            if inode is None:
                if not flags & os.O_CREAT:
                    refuse(errno.ENOENT, path)
                file = self._create(path)
            elif flags & os.O_CREAT and flags & os.O_EXCL:
                refuse(errno.EEXIST, path)
            else:
                file = self._file(path)
            if flags & os.O_DIRECTORY:
                refuse(errno.ENOTDIR, path)
            if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY and file.size:
                self._tell(Mutation(label, path, 0, 0, None))
                file.truncate(0)
            fd = next(self._fds)
            self._open[fd] = Descriptor(file, path, flags, file.error_count)
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            if self._dead:
                return
            self._descriptor(fd)
            del self._open[fd]
            self._drop_nameless()

    def pread_into(self, fd: int, view: memoryview, offset: int) -> int:
        data = self.pread(fd, len(view), offset)
        view[: len(data)] = data
        return len(data)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        with self._lock:
            descriptor = self._descriptor(fd)
            if descriptor.flags & os.O_ACCMODE == os.O_WRONLY:
                refuse(errno.EBADF, descriptor.path)
            if offset < 0 or length < 0:
                refuse(errno.EINVAL, descriptor.path)
            fault = self._fault("pread", None)
            if fault:
                refuse(fault.number, descriptor.path)
            return descriptor.file.read(length, offset)

    def pwrite(self, label: str, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        with self._lock:
            data = b"".join(buffers)
            if not self._dead and len(self.labels) == self._stop_at and self._stop_bytes:
                self._write(label, self._writable(fd), data[: self._stop_bytes], offset)
            fault = self._begin(label)
            descriptor = self._writable(fd)
            if offset < 0:
                refuse(errno.EINVAL, descriptor.path)
            if fault:
                self._write(label, descriptor, data[: fault.short_bytes], offset)
                refuse(fault.number, descriptor.path)
            fits = self._room_for(descriptor.file, len(data), offset)
            self._write(label, descriptor, data[:fits], offset)
            if fits < len(data):
                refuse(errno.ENOSPC, descriptor.path)

    def pwrite_many(
        self, label: str, fd: int, offsets: Sequence[int], buffers: Sequence[Buffer]
    ) -> None:
        with self._lock:
            if not self._dead and len(self.labels) == self._stop_at and self._stop_bytes:
                self._write_many(label, self._writable(fd), offsets, buffers, self._stop_bytes)
            fault = self._begin(label)
            descriptor = self._writable(fd)
            if fault:
                self._write_many(label, descriptor, offsets, buffers, fault.short_bytes)
                refuse(fault.number, descriptor.path)
            for offset, buffer in zip(offsets, buffers, strict=True):
                fits = self._room_for(descriptor.file, len(buffer), offset)
                self._write(label, descriptor, bytes(buffer[:fits]), offset)
                if fits < len(buffer):
                    refuse(errno.ENOSPC, descriptor.path)

    def pwrite_places(self, label: str, fd: int, memory: memoryview, places: Places) -> None:
        found = list(zip(places.ats, places.lengths, strict=True))
        buffers = [memory[at : at + length] for at, length in found]
        self.pwrite_many(label, fd, places.offsets, buffers)

    def pread_places(self, fd: int, memory: memoryview, places: Places) -> int:
        """Have each read by itself, so that each can fail."""
        del fd, memory, places
        return 0

    def truncate(self, label: str, fd: int, size: int) -> None:
        with self._lock:
            fault = self._begin(label)
            descriptor = self._descriptor(fd)
            if fault:
                refuse(fault.number, descriptor.path)
            if size < 0 or descriptor.flags & os.O_ACCMODE == os.O_RDONLY:
                refuse(errno.EINVAL, descriptor.path)
            self._tell(Mutation(label, descriptor.path, size, 0, None))
            descriptor.file.truncate(size)

    def punch(self, label: str, fd: int, offset: int, length: int) -> None:
        with self._lock:
            fault = self._begin(label)
            descriptor = self._writable(fd)
            if fault:
                refuse(fault.number, descriptor.path)
            if offset < 0 or length <= 0:
                refuse(errno.EINVAL, descriptor.path)
            self._tell(Mutation(label, descriptor.path, offset, length, None))
            descriptor.file.punch(offset, length)

    def punch_many(self, label: str, fd: int, ranges: Iterable[tuple[int, int]]) -> None:
        for offset, length in ranges:
            self.punch(label, fd, offset, length)

    def clone(self, label: str, source: int, target: int) -> bool:
        """This file system shares no blocks."""
        del source, target
        with self._lock:
            self._begin(label)
        return False

    def copy_range(self, label: str, source: int, target: int, offset: int, length: int) -> int:
        data = self.pread(source, length, offset)
        self.pwrite(label, target, [data], offset)
        return len(data)

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
                refuse(fault.number, descriptor.path)
            self.sync_count += 1
            file.sync()
            if descriptor.errors_seen != file.error_count:  # It failed for somebody else.
                descriptor.errors_seen = file.error_count
                refuse(errno.EIO, descriptor.path)

    def fsync(self, label: str, fd: int) -> None:
        """Sync the times too."""
        with self._lock:
            self.fdatasync(label, fd)
            self._descriptor(fd).file.sync_times()

    def size(self, fd: int) -> int:
        with self._lock:
            return self._descriptor(fd).file.size

    def is_file(self, fd: int) -> bool:
        with self._lock:
            return self._descriptor(fd).file is not None

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

    def drop_cache(self, fd: int, offset: int = 0, length: int = 0) -> None:
        del offset, length  # A test that looks behind the cache wants none of it.
        with self._lock:
            self._descriptor(fd).file.drop_cache()

    def take_lock(self, _fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        """Nobody else is on this machine."""
        del shared, wait
        return True

    def next_data(self, fd: int, start: int, end: int) -> int:
        with self._lock:
            return next((low for low, _ in self._descriptor(fd).file.data_ranges(start, end)), end)

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
                refuse(errno.ENOTEMPTY, new)
            self._names.rename(old, new)

    def link(self, label: str, old: Path, new: Path) -> None:
        with self._lock:
            self._begin_plain(label, old)
            file = self._file(old)
            if self._names.find(new) is not None:
                refuse(errno.EEXIST, new)
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
