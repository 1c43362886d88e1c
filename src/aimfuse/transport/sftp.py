"""Deliver files to a store over SFTP, by a writer of our own that keeps a window in flight.

`SftpTransport` is the trio side. `_Session` lives on the asyncio thread, as does all of
asyncssh, whose own ``put`` cannot be cancelled while the link is dead, and leaves tasks
behind. Its errors are mapped in `Place.explain`, those of connecting in `ssh`; nothing of
asyncssh gets past these two.
"""

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import trio
from asyncssh import constants

from aimfuse.disk import process_disk
from aimfuse.errors import Unavailable
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
from aimfuse.transport.bridge import AsyncioThread, TrioSide
from aimfuse.transport.credit import CREDIT_BYTES_MAX, Credit
from aimfuse.transport.place import FOREIGN, Place, SourceError
from aimfuse.transport.ssh import CLOSE_S_MAX, Connector
from aimfuse.transport.window import Window
from aimfuse.units import MIB

T = TypeVar("T")
Work = Callable[["_Session"], Coroutine[Any, Any, T]]

_READ_BYTES = 32 * 1024
_FULL_BYTES = MIB
"""With less than this free, a write that failed for no stated reason failed for space."""

_WATCH_S = 0.5
log = logging.getLogger(__name__)


class SftpTransport:
    """A store on a host that speaks SFTP."""

    def __init__(self, place: Place, settings: TransportSettings) -> None:
        self._place = place
        self._settings = settings
        self._disk = process_disk()
        self._thread: AsyncioThread | None = None
        self._session: _Session | None = None

    @classmethod
    def from_url(cls, url: str, settings: TransportSettings) -> "SftpTransport":
        """Return the transport for ``sftp://[user@]host[:port]/path``.

        Raises:
            UsageError: the URL has no host or no path, or has a password in it.
        """
        return cls(Place.parse(url), settings)

    async def open(self) -> None:
        """Connect, check the host key, authenticate, make the store and its inbox."""
        assert self._thread is None, "a transport is opened once"
        self._thread = AsyncioThread("sftp")
        self._thread.start()
        self._session = _Session(self._place, self._settings)
        try:
            await self._run(lambda session: session.connect())
        except BaseException:
            await self.aclose()
            raise

    async def put(
        self,
        source: Path,
        name: str,
        *,
        progress: Progress = ignore_progress,
        pace: Pace | None = None,
        fresh: bool = False,
    ) -> None:
        """Send *source* as ``inbox/NAME.part``, sync, rename, sync the directory."""
        fd = self._disk.open("deliver:source", source, os.O_RDONLY)
        try:
            size = self._disk.size(fd)
            side = TrioSide()

            def read(at: int, length: int) -> bytes:
                return read_source(self._disk, source, fd, at, length)

            upload = _Upload(
                check_name(name),
                size,
                read,
                lambda count: side.tell(progress, count),
                None if pace is None else lambda count: side.ask(pace, count),
            )

            async def send(session: _Session) -> None:
                try:
                    await session.put(upload, fresh=fresh)
                finally:
                    side.tell_rest()

            await self._run(send)
        finally:
            self._disk.close(fd)

    async def put_bytes(self, data: bytes, name: str) -> None:
        """Send *data*, sync, rename, sync the directory."""

        def read(at: int, length: int) -> bytes:
            return data[at : at + length]

        upload = _Upload(check_name(name), len(data), read, ignore_progress, None)
        await self._run(lambda session: session.put(upload, fresh=True))

    async def get(self, name: str, limit_bytes: int) -> bytes | None:
        """Return the content of ``STORE/NAME``; None if there is no such file."""
        check_name(name)
        return await self._run(lambda session: session.get(name, limit_bytes))

    async def free_bytes(self) -> int | None:
        """Return what statvfs says; None if the server or the account has no such request."""
        return await self._run(lambda session: session.free_bytes())

    async def aclose(self) -> None:
        """Say good-bye for at most `CLOSE_S_MAX`, then tear the connection down."""
        thread, session = self._thread, self._session
        self._thread = self._session = None
        if thread is None:
            return
        with trio.CancelScope(shield=True):
            try:
                if session is not None:
                    await thread.run(session.close)
            finally:
                await thread.stop()

    async def _run(self, work: Work[T]) -> T:
        session = self._session
        if self._thread is None or session is None:
            raise Unavailable(f"{self._place}: the connection is closed")
        try:
            return await self._thread.run(lambda: work(session))
        except FOREIGN as exc:
            raise self._place.explain(exc) from exc


@dataclass(frozen=True, slots=True)
class _Upload:
    """One file on its way: how to read it, whom to tell, whom to ask before bytes go."""

    name: str
    size: int
    read: Callable[[int, int], bytes]
    tell: Callable[[int], None]
    ask: Callable[[int], Awaitable[None]] | None


class _Session:
    """Connection, SFTP channel and window. Everything here runs on the asyncio thread."""

    def __init__(self, place: Place, settings: TransportSettings) -> None:
        self._place = place
        self._settings = settings
        self._connector = Connector(settings)
        self._inbox = place.store.rstrip(b"/") + b"/" + INBOX.encode()
        self._sftp: asyncssh.SFTPClient | None = None
        self._window: Window | None = None
        self._inbox_handle: asyncssh.SFTPClientFile | None = None

    async def connect(self) -> None:
        """Connect within the time allowed for it; leaves an open SFTP channel."""
        place = self._place
        async with asyncio.timeout(self._settings.connect_s_max):
            connection = await self._connector.connect(place.host, place.port, place.user)
            self._sftp = await connection.start_sftp_client()
            await self._make_directories()
            # OpenSSH syncs directories by a file handle on them; others refuse the open.
            with contextlib.suppress(asyncssh.SFTPError):
                self._inbox_handle = await self._open_file(self._inbox, asyncssh.FXF_READ)
        settings, largest = self._settings, self._sftp.limits.max_write_len
        if settings.block_bytes_max is not None:
            largest = min(largest, max(settings.block_bytes_max, BLOCK_BYTES_FLOOR))
        self._window = Window(largest, settings.parallel_blocks, _now_s())

    async def put(self, upload: _Upload, *, fresh: bool) -> None:
        """Send the file whole; on any failure at most its part file has changed."""
        final = self._inbox + b"/" + upload.name.encode()
        part = final + PART_SUFFIX.encode()
        try:
            file, at = await self._open_part(part, upload.size, fresh=fresh)
            try:
                await self._send(file, upload, at)
                await self._make_file_durable(file, part)
                kept = (await self._answer(file.stat())).size
            except BaseException:
                await self._let_go(file)
                raise
            await self._answer(file.close())
            if kept != upload.size:
                message = f"{self._place}: {upload.name} has {kept} bytes, not {upload.size}"
                raise Unavailable(message)
            await self._answer(self._replace(part, final))
            if self._inbox_handle is not None:
                await self._make_durable(self._inbox_handle)
        except (asyncssh.SFTPError, ExceptionGroup) as exc:
            await self._complain_if_full(exc)
            raise

    async def get(self, name: str, limit_bytes: int) -> bytes | None:
        """Return the file's content, None if it is missing; small files only."""
        path = self._place.store.rstrip(b"/") + b"/" + name.encode()
        try:
            file = await self._open_file(path, asyncssh.FXF_READ)
        except asyncssh.SFTPNoSuchFile:
            return None
        except asyncssh.SFTPPermissionDenied as exc:
            raise unreadable(str(self._place), name) from exc
        data = bytearray()
        try:
            while len(data) <= limit_bytes:
                block: bytes = await self._answer(file.read(_READ_BYTES, len(data)))
                if not block:
                    return bytes(data)
                data += block
        finally:
            await self._let_go(file)
        raise Unavailable(f"{self._place}/{name} is larger than {limit_bytes} bytes")

    async def free_bytes(self) -> int | None:
        """Return what is free for an unprivileged writer, None if the server will not say."""
        try:
            info = await self._answer(self._client.statvfs(self._inbox))
        except (asyncssh.SFTPOpUnsupported, asyncssh.SFTPPermissionDenied):
            return None
        return info.bavail * info.frsize

    async def close(self) -> None:
        """End the connection, politely if that is quick."""
        await self._connector.close()

    @property
    def _client(self) -> asyncssh.SFTPClient:
        if self._sftp is None:
            raise Unavailable(f"{self._place}: the connection is closed")
        return self._sftp

    async def _answer(self, request: Awaitable[T]) -> T:
        """Await one request; a server that is silent for too long loses the connection."""
        try:
            async with asyncio.timeout(self._settings.stall_s_max):
                return await request
        except TimeoutError:
            self._connector.abort()
            raise

    async def _open_file(self, path: bytes, flags: int) -> asyncssh.SFTPClientFile:
        # Block size 0: one write is one request, and its task is ours.
        attrs = asyncssh.SFTPAttrs()
        if flags & asyncssh.FXF_CREAT:
            attrs.permissions = FILE_MODE
        opening = self._client.open(path, flags, attrs, encoding=None, block_size=0)
        return await self._answer(opening)

    async def _make_directories(self) -> None:
        if await self._is_directory(self._inbox):
            return
        if not self._settings.makes_store:
            raise no_store(str(self._place))
        for path in (self._place.store, self._inbox):
            try:
                attrs = asyncssh.SFTPAttrs(permissions=DIRECTORY_MODE)
                await self._answer(self._client.mkdir(path, attrs))
            except asyncssh.SFTPError:
                if not await self._is_directory(path):
                    raise

    async def _is_directory(self, path: bytes) -> bool:
        try:
            attrs = await self._answer(self._client.stat(path))
        except asyncssh.SFTPNoSuchFile:
            return False
        return attrs.type == constants.FILEXFER_TYPE_DIRECTORY

    async def _open_part(
        self, part: bytes, size: int, *, fresh: bool
    ) -> tuple[asyncssh.SFTPClientFile, int]:
        """Return the part file, open for writing, and the offset to go on from.

        A connection cut in mid-file leaves a prefix: the size says where to go on. After a power
        cut it may not be one: the far side finds damage and asks again, here as *fresh*.
        """
        at = 0
        if not fresh:
            with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                at = (await self._answer(self._client.stat(part))).size or 0
        if fresh or at > size:
            return await self._open_anew(part), 0
        return await self._open_file(part, asyncssh.FXF_WRITE | asyncssh.FXF_CREAT), at

    async def _open_anew(self, part: bytes) -> asyncssh.SFTPClientFile:
        """Return an empty part file that nobody else has open, in the place of the old one."""
        new = part.removesuffix(PART_SUFFIX.encode()) + NEW_PART_SUFFIX.encode()
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_TRUNC
        file = await self._open_file(new, flags)
        try:
            await self._answer(self._replace(new, part))
        except BaseException:
            await self._let_go(file)
            raise
        return file

    async def _send(self, file: asyncssh.SFTPClientFile, upload: _Upload, at: int) -> None:
        """Write the file from *at* on, several blocks in flight, until all are answered."""
        window = self._window
        assert window is not None
        credit = None
        if upload.ask is not None:
            credit = Credit(upload.ask, self._settings.block_bytes_max or CREDIT_BYTES_MAX)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch(window))
            async with asyncio.TaskGroup() as blocks:
                while at < upload.size:
                    length = min(window.block_bytes(), upload.size - at)
                    if credit is not None:
                        await credit.take(length, upload.size - at, _now_s())
                    await window.enter(length, _now_s())
                    # From here to the new task nothing awaits, so the room is given back.
                    data = _read_block(upload, at, length, window)
                    block = blocks.create_task(self._send_block(file, data, at, upload.tell))
                    # Not in the task: one that is cancelled before its first step never runs.
                    block.add_done_callback(functools.partial(_leave, window, length))
                    at += length
            watch.cancel()

    async def _send_block(
        self, file: asyncssh.SFTPClientFile, data: bytes, at: int, tell: Callable[[int], None]
    ) -> None:
        window = self._window
        assert window is not None
        sent_s = _now_s()
        await file.write(data, at)
        window.learn(len(data), sent_s, _now_s())
        tell(len(data))

    async def _watch(self, window: Window) -> None:
        """Fail when blocks are in flight and nothing has been answered for too long."""
        while True:
            await asyncio.sleep(min(_WATCH_S, self._settings.stall_s_max))
            silent_s = _now_s() - window.answered_s
            if window.in_flight_bytes and silent_s > self._settings.stall_s_max:
                self._connector.abort()
                raise Unavailable(f"{self._place}: no answer for {silent_s:.0f} s")

    async def _make_file_durable(self, file: asyncssh.SFTPClientFile, part: bytes) -> None:
        try:
            await self._make_durable(file)
        except asyncssh.SFTPError:
            # A kernel tells of lost pages once: nothing sent so far may be continued.
            with contextlib.suppress(asyncssh.Error):
                await self._answer((await self._open_anew(part)).close())
            raise

    async def _make_durable(self, file: asyncssh.SFTPClientFile) -> None:
        """Have the server sync the file; one that cannot is no reason to stop: the ack counts."""
        try:
            await self._answer(file.fsync())
        except asyncssh.SFTPOpUnsupported:
            log.info("%s: the server cannot sync files", self._place)

    async def _replace(self, part: bytes, final: bytes) -> None:
        try:
            await self._client.posix_rename(part, final)
        except asyncssh.SFTPOpUnsupported:
            # Without the extension a rename refuses an existing name.
            with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                await self._client.remove(final)
            await self._client.rename(part, final)

    async def _let_go(self, file: asyncssh.SFTPClientFile) -> None:
        """Close a handle on the way out of a failure, without waiting long for a dead peer."""
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await file.close()
        except (asyncssh.Error, OSError):
            self._connector.abort()

    async def _complain_if_full(self, exc: BaseException) -> None:
        """Raise a better error if the server's disk is full: SFTP itself only says "failure"."""
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        free_bytes: int | None = None
        if isinstance(exc, asyncssh.SFTPNoSpaceOnFilesystem | asyncssh.SFTPQuotaExceeded):
            free_bytes = 0
        elif isinstance(exc, asyncssh.SFTPFailure):
            with contextlib.suppress(asyncssh.Error, OSError):
                free_bytes = await self.free_bytes()
        if free_bytes is not None and free_bytes < _FULL_BYTES:
            hint = "Free space there; sending goes on by itself."
            raise Unavailable(f"{self._place} is full", hint=hint) from exc


def _read_block(upload: _Upload, at: int, length: int, window: Window) -> bytes:
    """Read a block for which the window has given room; give that back if it fails."""
    try:
        data = upload.read(at, length)
    except OSError as exc:
        window.leave(length)
        raise SourceError(exc) from exc
    if len(data) < length:
        window.leave(length)
        raise SourceError(OSError(f"{upload.name} became shorter while it was sent"))
    return data


def _leave(window: Window, length: int, _block: asyncio.Task[None]) -> None:
    window.leave(length)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
