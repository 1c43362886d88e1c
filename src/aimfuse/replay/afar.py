"""A store that lies elsewhere, behind the same `Disk` and `Look` as one that lies here.

Whoever reads the past of a store does so through these two. Here they answer for the paths
beneath one that stands for the distant store, by way of `Files`, whatever brings them; all
other paths are this host's own. Nothing of the store can be changed.
"""

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from aimfuse.disk import Disk, Places
from aimfuse.replay.look import NO_INODE, Entry, Look, kind_of
from aimfuse.replay.readers import Ranges
from aimfuse.units import MIB, SECOND_NS

COPY_BYTES = 4 * MIB
"""What one call copies at least, where there is as much."""

_FD_MIN = 1 << 30
"""Descriptors of distant files begin here: beyond any that the kernel gives."""

_BLOCK_BYTES = 4096
_ZEROS = bytes(MIB)


class About(Protocol):
    """What is known of a name: mode with its kind, bytes, owner, time in Unix s."""

    @property
    def mode(self) -> int: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def owner(self) -> int: ...  # noqa: D102
    @property
    def mtime_s(self) -> int: ...  # noqa: D102


class Files(Protocol):
    """The files of a distant store; paths are relative to it, and ``""`` is the store.

    Raises `OSError` for what the far file system refuses, `TransportError` for the way there.
    """

    def names(self, path: str) -> Iterable[tuple[str, About]]:
        """Return the names in a directory, and what they are."""

    def about(self, path: str) -> About | None:
        """Return what a name is, itself and not what it points to; None without one."""

    def open(self, path: str) -> Any:  # noqa: ANN401 - its owner knows what it is
        """Open a file for reading."""

    def size(self, file: Any) -> int:  # noqa: ANN401
        """Return the bytes that an open file has now."""

    def shut(self, file: Any) -> None:  # noqa: ANN401
        """Close a file."""

    def read(self, file: Any, offset: int, length: int) -> bytes:  # noqa: ANN401
        """Return *length* bytes, fewer only where the file ends."""

    def stream(
        self,
        file: Any,  # noqa: ANN401
        ranges: Iterable[tuple[int, int]],
    ) -> Generator[tuple[int, bytes]]:
        """Yield ranges, given as offset and end, in runs, in order, asking ahead."""


@dataclass(slots=True)
class _Opened:
    """An open distant file; `stream` goes on at `at`, with the run that waits in `next_run`."""

    file: Any
    path: str
    ranges: tuple[tuple[int, int], ...] | None = None
    at: int = -1
    stream: Iterator[tuple[int, bytes]] = field(default_factory=lambda: iter(()))
    next_run: tuple[int, bytes] | None = None


class FarDisk(Disk):
    """The disk of this host, and on it, under the path *store*, a store of another."""

    def __init__(
        self,
        files: Files,
        store: Path,
        data_of: Callable[[str], Ranges | None],
        local: Disk | None = None,
    ) -> None:
        """Reach *store* by *files*; *data_of* tells where in a file data lies, if that is known.

        The steps of everything here are told to *local*.
        """
        self._files = files
        self._data_of = data_of
        self._store = store
        self._local = local or Disk()
        self._opened: dict[int, _Opened] = {}
        self._fds = count(_FD_MIN)

    def step(self, label: str) -> None:
        """Pass it on."""
        self._local.step(label)

    def open(self, label: str, path: Path, flags: int, mode: int = 0o600) -> int:
        """Open a distant file for reading, or one of this host."""
        inside = self._inside(path)
        if inside is None:
            return super().open(label, path, flags, mode)
        self.step(label)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        with _named(path):
            opened = _Opened(self._files.open(inside), inside)
        fd = next(self._fds)
        self._opened[fd] = opened
        return fd

    def close(self, fd: int) -> None:
        """Close it."""
        if fd < _FD_MIN:
            super().close(fd)
            return
        self._files.shut(self._opened.pop(fd).file)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Return up to *length* bytes; fewer only at the end of the file."""
        if fd < _FD_MIN:
            return super().pread(fd, length, offset)
        with _named(self._store / self._opened[fd].path):
            return self._files.read(self._opened[fd].file, offset, length)

    def pread_places(self, fd: int, memory: memoryview, places: Places) -> int:
        """Read *places* whole into *memory*, in order, many asked for ahead; return how many."""
        if fd < _FD_MIN:
            return super().pread_places(fd, memory, places)
        opened, found = self._opened[fd], list(zip(*places, strict=True))
        ranges = ((offset, offset + length) for _at, offset, length in found)
        with (
            _named(self._store / opened.path),
            closing(self._files.stream(opened.file, ranges)) as runs,
        ):
            for done, (at, offset, length) in enumerate(found):
                if not _fill(memory[at : at + length], offset, runs):
                    return done
        return len(found)

    def size(self, fd: int) -> int:
        """Return the size in bytes."""
        return super().size(fd) if fd < _FD_MIN else self._files.size(self._opened[fd].file)

    def is_file(self, fd: int) -> bool:
        """Tell whether it is a plain file; of what was opened from afar its server has seen to."""
        return fd >= _FD_MIN or super().is_file(fd)

    def allocated(self, fd: int) -> int:
        """Return the bytes of data that will be read of the file."""
        if fd < _FD_MIN:
            return super().allocated(fd)
        opened, size = self._opened[fd], self.size(fd)
        found = self._data_of(opened.path)
        opened.ranges = ((0, size),) if found is None else tuple(found)
        return sum(end - start for start, end in self.data_ranges(fd, 0, size))

    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield each stretch that may be no hole, once `allocated` was asked; or all."""
        if fd < _FD_MIN:
            yield from super().data_ranges(fd, start, end)
            return
        for low, high in _or_all(self._opened[fd].ranges, end):
            if max(low, start) < min(high, end):
                yield max(low, start), min(high, end)

    def clone(self, label: str, source: int, target: int) -> bool:
        """Clone, which cannot be from there to here."""
        return source < _FD_MIN and super().clone(label, source, target)

    def copy_range(self, label: str, source: int, target: int, offset: int, length: int) -> int:
        """Copy bytes from one file to the same place of another; zeros are left out.

        So *target* has to be empty there. What comes next in the order of `data_ranges` is
        asked for meanwhile.
        """
        if source < _FD_MIN:
            return super().copy_range(label, source, target, offset, length)
        self.step(label)
        opened = self._opened[source]
        if opened.at != offset:
            opened.stream = self._files.stream(
                opened.file, _behind(_or_all(opened.ranges, self.size(source)), offset)
            )
            opened.next_run = next(opened.stream, None)
        at = offset
        with _named(self._store / opened.path):
            while (run := opened.next_run) is not None and run[0] == at:
                here, rest = run[1][: offset + length - at], run[1][offset + length - at :]
                for start, data in _data_in(at, here):
                    self.pwrite(label, target, [data], start)
                at += len(here)
                # A run may go on behind what is asked for: the rest is for the next call.
                opened.next_run = (at, rest) if rest else next(opened.stream, None)
                if not here or at - offset >= min(COPY_BYTES, length):
                    break
        opened.at = opened.next_run[0] if opened.next_run else -1
        return at - offset

    def take_lock(self, fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        """Take a lock; nobody can from afar."""
        return fd < _FD_MIN and super().take_lock(fd, shared=shared, wait=wait)

    def exists(self, path: Path) -> bool:
        """Tell whether the name exists, whatever it is."""
        inside = self._inside(path)
        if inside is None:
            return super().exists(path)
        with _named(path):
            return self._files.about(inside) is not None

    def listdir(self, path: Path) -> list[str]:
        """Return the names in the directory, sorted."""
        inside = self._inside(path)
        if inside is None:
            return super().listdir(path)
        with _named(path):
            return sorted(name for name, _about in self._files.names(inside))

    def _inside(self, path: Path) -> str | None:
        """Return a path within the store, or None for one of this host."""
        if not path.is_relative_to(self._store):
            return None
        return str(path.relative_to(self._store)).removeprefix(".")


class FarLook(Look):
    """What lies in a distant store, and on this host. Inode numbers there are unknown."""

    tells_sizes = True

    def __init__(self, files: Files, store: Path) -> None:
        """Reach *store* by *files*."""
        self._files = files
        self._store = store

    def scan(self, directory: Path) -> Iterator[str]:
        """Yield the names in the directory."""
        if not directory.is_relative_to(self._store):
            yield from super().scan(directory)
            return
        with _named(directory):
            names = self._files.names(self._inside(directory))
        yield from (name for name, _about in names)

    def sized(self, directory: Path) -> Iterator[tuple[str, int]]:
        """Yield the names in the directory and their bytes: a server's list says both."""
        if not directory.is_relative_to(self._store):
            yield from super().sized(directory)
            return
        with _named(directory):
            names = self._files.names(self._inside(directory))
        yield from ((name, one.size) for name, one in names)

    def entry(self, path: Path) -> Entry | None:
        """Return what *path* is, or None when nothing has that name (any more)."""
        if not path.is_relative_to(self._store):
            return super().entry(path)
        with _named(path):
            about = self._files.about(self._inside(path))
        return None if about is None else _entry(about)

    def _inside(self, path: Path) -> str:
        return str(path.relative_to(self._store)).removeprefix(".")


def _entry(about: About) -> Entry:
    return Entry(
        kind_of(about.mode), NO_INODE, about.size, 1, about.owner, about.mtime_s * SECOND_NS
    )


def _fill(memory: memoryview, offset: int, runs: Iterator[tuple[int, bytes]]) -> bool:
    """Take from *runs* what *memory* holds from byte *offset* on; tell whether all of it came."""
    got = 0
    while got < len(memory):
        at, data = next(runs, (-1, b""))
        if at != offset + got or not data:
            return False  # The file ends before.
        memory[got : got + len(data)] = data
        got += len(data)
    return True


def _or_all(ranges: tuple[tuple[int, int], ...] | None, end: int) -> tuple[tuple[int, int], ...]:
    return ((0, end),) if ranges is None else ranges


def _behind(ranges: Iterable[tuple[int, int]], offset: int) -> Iterator[tuple[int, int]]:
    return ((max(start, offset), end) for start, end in ranges if end > offset)


def _data_in(at: int, data: bytes) -> Iterator[tuple[int, bytes | memoryview]]:
    """Yield what of *data* is to be written, with its place: blocks of zeros are not."""
    if data == _ZEROS[: len(data)]:
        return
    if _ZEROS[:_BLOCK_BYTES] not in data:
        yield at, data
        return
    view, begun = memoryview(data), -1
    for start in range(0, len(data), _BLOCK_BYTES):
        block = data[start : start + _BLOCK_BYTES]
        is_data = block != _ZEROS[: len(block)]
        if is_data and begun < 0:
            begun = start
        if not is_data and begun >= 0:
            yield at + begun, view[begun:start]
            begun = -1
    if begun >= 0:
        yield at + begun, view[begun:]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say in an error which file it was."""
    try:
        yield
    except OSError as exc:
        exc.filename = exc.filename or str(path)
        raise
