"""The machine around a simulated disk: what is on it, and what tests do to it."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NoReturn, Self

from aimfuse.disk import Buffer
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
class Descriptor:
    file: SimFile
    path: Path
    flags: int
    errors_seen: int


class Machine:
    """Files, names and descriptors, and the knobs; `SimDisk` gives it the face of a `Disk`."""

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
        self._open: dict[int, Descriptor] = {}
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

    def power_cut(self, choose: Choose = keep_none) -> Self:
        """Return the disk as the machine finds it at its next start."""
        with self._lock:
            files = {
                inode: file.settle(choose, self._grain, lazy_times=self.lazy_times)
                for inode, file in self._files.items()
            }
            return self._next_start(files, self._names.settle(choose, in_order=self.names_in_order))

    def kill(self) -> Self:
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
                refuse(errno.ENOENT, path)
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

    def _next_start(self, files: dict[int, SimFile], names: SimNames) -> Self:
        disk = type(self)(capacity_bytes=self.capacity_bytes)
        disk.torn_pages, disk.lazy_times = self.torn_pages, self.lazy_times
        disk.names_in_order = self.names_in_order
        disk.ignored_syncs = self.ignored_syncs
        disk._boot(files, names)  # noqa: SLF001 - another one of us
        return disk

    def _boot(self, files: dict[int, SimFile], names: SimNames) -> None:
        reachable = names.reachable()
        self._names = names
        self._files = {inode: file for inode, file in files.items() if inode in reachable}

    # Steps.

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
            refuse(fault.number, path)

    # Inside.

    def _is_directory(self, path: Path) -> bool:
        inode = self._names.find(path)
        if inode is None:
            refuse(errno.ENOENT, path)
        return self._names.is_directory(inode)

    def _file(self, path: Path) -> SimFile:
        inode = self._names.find(path)
        if inode is None:
            refuse(errno.ENOENT, path)
        if self._names.is_directory(inode):
            refuse(errno.EISDIR, path)
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

    def _descriptor(self, fd: int) -> Descriptor:
        self._check_alive()
        descriptor = self._open.get(fd)
        if descriptor is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return descriptor

    def _writable(self, fd: int) -> Descriptor:
        descriptor = self._descriptor(fd)
        if descriptor.flags & os.O_ACCMODE == os.O_RDONLY:
            refuse(errno.EBADF, descriptor.path)
        return descriptor

    def _tell(self, mutation: Mutation) -> None:
        if self.on_write:
            self.on_write(mutation)

    def _write(self, label: str, descriptor: Descriptor, data: bytes, offset: int) -> None:
        if data:
            self._tell(Mutation(label, descriptor.path, offset, len(data), data))
            descriptor.file.write(data, offset)

    def _used(self) -> int:
        held = self._names.named() | {d.file.inode for d in self._open.values()}
        return sum(len(self._files[i].data_pages()) for i in held if i in self._files) * PAGE_BYTES

    def _write_many(
        self,
        label: str,
        descriptor: Descriptor,
        offsets: Sequence[int],
        buffers: Sequence[Buffer],
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


def refuse(number: int, path: Path) -> NoReturn:
    raise OSError(number, os.strerror(number), str(path))
