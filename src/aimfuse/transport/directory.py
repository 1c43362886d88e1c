"""Deliver to a store in the local file tree: a disk, a stick, a network mount.

Copying runs in worker threads, a stretch of several MiB per hop: a hop costs up to 100 us.
A mount that hangs hangs its worker; a cancelled call waits for the stretch it is in.
"""

import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import trio

from aimfuse.disk import Disk, process_disk, publish, read_file
from aimfuse.errors import OUT_OF_SPACE, Unavailable, UsageError, explain
from aimfuse.transport.base import (
    BLOCK_BYTES_FLOOR,
    DIRECTORY_MODE,
    FILE_MODE,
    INBOX,
    NEW_PART_SUFFIX,
    PART_SUFFIX,
    Pace,
    Progress,
    TransportSettings,
    check_name,
    ignore_progress,
    no_store,
    read_source,
    unreadable,
)
from aimfuse.units import MIB

T = TypeVar("T")

STRETCH_BYTES = 4 * MIB
THREADS_MAX = 8


class DirectoryTransport:
    """A store at a path. Nothing is held between calls, so closing is nothing."""

    def __init__(
        self, store: Path, disk: Disk | None = None, settings: TransportSettings | None = None
    ) -> None:
        largest = settings.block_bytes_max if settings else None
        self._stretch_bytes = STRETCH_BYTES
        if largest is not None:
            self._stretch_bytes = min(STRETCH_BYTES, max(largest, BLOCK_BYTES_FLOOR))
        # Of its own: a mount that hangs takes these threads, and none of other destinations.
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self._makes_store = settings is None or settings.makes_store
        self._store = store
        self._inbox = store / INBOX
        self._disk = disk or process_disk()

    @classmethod
    def from_url(cls, url: str, settings: TransportSettings | None = None) -> "DirectoryTransport":
        """Return the transport for ``dir:///path`` or a plain absolute path.

        Raises:
            UsageError: the path is not absolute, or the URL has a host or a query.
        """
        if url.startswith("/"):
            return cls(Path(url), settings=settings)
        parts = urlsplit(url)
        if parts.netloc or parts.query or parts.fragment or not parts.path.startswith("/"):
            raise UsageError(f"{url!r} has no absolute path", hint="Write dir:///absolute/path.")
        return cls(Path(unquote(parts.path)), settings=settings)

    async def open(self) -> None:
        """Make the store and its inbox; their parent has to be there."""
        await self._in_thread(self._make_directories)

    async def put(
        self,
        source: Path,
        name: str,
        *,
        progress: Progress = ignore_progress,
        pace: Pace | None = None,
        fresh: bool = False,
    ) -> None:
        """Copy *source* to ``inbox/NAME.part``, sync, rename, sync the directory."""
        target = self._inbox / check_name(name)
        with self._open_source(source) as reader:
            size = self._disk.size(reader)
            writer, at = await self._in_thread(lambda: self._open_part(target, size, fresh=fresh))
            try:
                while at < size:
                    length = min(self._stretch_bytes, size - at)
                    if pace is not None:
                        await pace(length)
                    await self._copy(source, reader, writer, at, length)
                    progress(length)
                    at += length
                await self._in_thread(lambda: self._finish(writer, target, size))
            finally:
                self._disk.close(writer)

    async def put_bytes(self, data: bytes, name: str) -> None:
        """Write *data* beside, sync, rename, sync the directory."""
        target = self._inbox / check_name(name)
        await self._in_thread(lambda: publish(self._disk, "deliver-small", target, data, FILE_MODE))

    async def get(self, name: str, limit_bytes: int) -> bytes | None:
        """Return the content of ``STORE/NAME``; None if there is no such file."""
        path = self._store / check_name(name)

        def read() -> bytes | None:
            try:
                return read_file(self._disk, path, limit_bytes + 1)
            except FileNotFoundError:
                self._disk.listdir(self._inbox)  # The file is missing, or is the whole store?
                return None
            except PermissionError as exc:
                raise unreadable(str(self._store), name) from exc

        data = await self._in_thread(read)
        if data is not None and len(data) > limit_bytes:
            raise Unavailable(f"{path} is larger than {limit_bytes} bytes")
        return data

    async def free_bytes(self) -> int | None:
        """Return what an unprivileged writer can still use."""
        return await self._in_thread(lambda: self._disk.free_bytes(self._inbox))

    async def aclose(self) -> None:
        """Do nothing: nothing is open."""
        await trio.lowlevel.checkpoint()

    def _make_directories(self) -> None:
        if not (self._makes_store or self._disk.exists(self._inbox)):
            raise no_store(str(self._store))
        self._disk.mkdir("deliver:mkdir-store", self._store, DIRECTORY_MODE)
        self._disk.mkdir("deliver:mkdir-inbox", self._inbox, DIRECTORY_MODE)
        self._disk.listdir(self._inbox)  # Raises if what is there is no directory.

    @contextmanager
    def _open_source(self, source: Path) -> Generator[int]:
        fd = self._disk.open("deliver:source", source, os.O_RDONLY)
        try:
            yield fd
        finally:
            self._disk.close(fd)

    def _open_part(self, target: Path, size: int, *, fresh: bool) -> tuple[int, int]:
        """Return a descriptor for the part file and the offset to go on from."""
        part = target.with_name(target.name + PART_SUFFIX)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        if not fresh:
            fd = self._disk.open("deliver:create", part, flags, FILE_MODE)
            at = self._disk.size(fd)
            if at <= size:
                return fd, at
            self._disk.close(fd)  # Of another, longer file.
        new = target.with_name(target.name + NEW_PART_SUFFIX)
        fd = self._disk.open("deliver:create-anew", new, flags | os.O_TRUNC, FILE_MODE)
        try:
            self._disk.rename("deliver:begin-anew", new, part)
        except BaseException:
            self._disk.close(fd)
            raise
        return fd, 0

    async def _copy(self, source: Path, reader: int, writer: int, at: int, length: int) -> None:
        """Copy one stretch. A source that ends early is its owner's error, not the store's."""
        data = await trio.to_thread.run_sync(read_source, self._disk, source, reader, at, length)
        if len(data) < length:
            raise OSError(errno.EIO, "the source became shorter while it was sent")
        await self._in_thread(lambda: self._disk.pwrite("deliver:write", writer, [data], at))

    def _finish(self, fd: int, target: Path, size: int) -> None:
        part = target.with_name(target.name + PART_SUFFIX)
        try:
            self._disk.fdatasync("deliver:sync", fd)  # Contents first: a rename may overtake them.
        except OSError:
            # The kernel tells of lost pages once. Nothing sent so far may be believed again.
            self._disk.truncate("deliver:distrust", fd, 0)
            raise
        kept = part.stat().st_size
        if kept != size:
            raise Unavailable(f"{part} has {kept} bytes instead of {size}")
        self._disk.rename("deliver:rename", part, target)
        self._disk.sync_dir("deliver:sync-dir", target.parent)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run *work* on the store in a worker thread; the one place that maps its errors."""
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as exc:
            if exc.errno in OUT_OF_SPACE:
                hint = "Free space there; sending goes on by itself."
                raise Unavailable(f"{self._store} is full: {exc.strerror}", hint=hint) from exc
            hint = "Is it mounted, and may this user write there?"
            said = explain(exc) if exc.filename else f"{self._store}: {explain(exc)}"
            raise Unavailable(said, hint=hint) from exc
