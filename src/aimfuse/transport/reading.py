"""Read the files of a store over SFTP: many blocks in flight, going on after a cut.

For callers that wait, each call for its answer: whoever restores has nothing else to do
meanwhile. asyncssh runs on a thread of its own. A connection that is lost is made again, for as
long as `PATIENCE_S` allows without any progress, and what was under way is asked for anew.
"""

import asyncio
import contextlib
import errno
import os
import stat
import threading
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import asyncssh

from aimfuse.errors import Refused, Unavailable
from aimfuse.transport.base import (
    FILE_MODE,
    INBOX,
    PART_SUFFIX,
    TransportSettings,
    check_name,
)
from aimfuse.transport.bridge import AsyncioThread
from aimfuse.transport.place import FOREIGN, Place
from aimfuse.transport.ssh import Connector
from aimfuse.transport.window import BLOCK_BYTES_MAX, Window

T = TypeVar("T")

PATIENCE_S = 60.0
"""Time without any progress after which a lost connection is given up."""

PARALLEL_BLOCKS = 64
"""Blocks in flight once the link has proved fast: 16 MiB fill one of 100 ms at 160 MiB/s."""

RUN_BYTES = 4 * BLOCK_BYTES_MAX
"""What crosses from the asyncio thread at once: a crossing costs about 80 us."""

RUNS_MAX = 24
"""Runs of a stream that are asked for or wait to be taken: bounds what it holds in memory."""

NAMES_MAX = 4_000_000
"""Names in a directory: a store that makes a file every second has 1,200,000 in a week."""

_RETRY_S_MIN, _RETRY_S_MAX = 0.2, 5.0
_MEANINGS = {
    asyncssh.SFTPNoSuchFile: errno.ENOENT,
    asyncssh.SFTPNoSuchPath: errno.ENOENT,
    asyncssh.SFTPPermissionDenied: errno.EACCES,
    asyncssh.SFTPWriteProtect: errno.EROFS,
    asyncssh.SFTPNoSpaceOnFilesystem: errno.ENOSPC,
    asyncssh.SFTPFailure: errno.EIO,
    asyncssh.SFTPOpUnsupported: errno.EOPNOTSUPP,
}
_KIND_MODES = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFLNK}


class About(NamedTuple):
    """What the server says of a name: mode with its kind, bytes, owner, time in Unix s."""

    mode: int
    size: int
    owner: int
    mtime_s: int


@dataclass(eq=False, slots=True)
class File:
    """An open file; on a new connection it is opened again, by its path."""

    path: bytes
    handles: dict["_Link", "asyncssh.SFTPClientFile"] = field(default_factory=dict)


class SftpFiles:
    """The files of one store. Paths are relative to it, ``""`` is the store itself.

    Every method may raise `Unavailable` (the link is gone and did not come back) or `Refused`,
    and `OSError` as the server said it.
    """

    def __init__(
        self, url: str, settings: TransportSettings, patience_s: float = PATIENCE_S,
        names_max: int = NAMES_MAX,
    ) -> None:  # fmt: skip
        """Take the URL apart; nothing is connected yet.

        Raises:
            UsageError: the URL has no host or no path, or has a password in it.
        """
        self._place = Place.parse(url)
        self._settings = replace(settings, parallel_blocks=PARALLEL_BLOCKS)
        self._patience_s = patience_s
        self._names_max = names_max
        self._thread = AsyncioThread("sftp-read")
        self._thread.start()
        self._is_closed = False
        self._link: _Link | None = None
        self._lock = threading.RLock()

    def close(self) -> None:
        """Say good-bye, briefly; may be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._drop()
            self._thread.end()

    def connect(self) -> None:
        """Connect now, without patience: a first failure is the operator's to see."""
        with self._lock, self._explained():
            if self._link is None:
                link = _Link(self._place, self._settings)
                self._wait(link.connect())
                self._link = link

    def names(self, path: str) -> list[tuple[str, About]]:
        """Return the names in a directory, in no order, and what they are."""
        return self._call(lambda link: link.names(self._path(path), self._names_max))

    def about(self, path: str) -> About | None:
        """Return what a name is, links not followed; None if there is none."""
        return self._call(lambda link: link.about(self._path(path)))

    def open(self, path: str) -> File:
        """Open a file for reading."""
        file = File(self._path(path))
        self._call(lambda link: link.handle(file))
        return file

    def size(self, file: File) -> int:
        """Return the bytes that an open file has now."""
        return self._call(lambda link: link.size(file))

    def shut(self, file: File) -> None:
        """Close a file."""
        link = self._link
        if link is not None and link in file.handles:
            with contextlib.suppress(Unavailable, OSError), self._explained():
                self._wait(link.shut(file))

    def read(self, file: File, offset: int, length: int) -> bytes:
        """Return *length* bytes; fewer only where the file ends."""
        first = min(length, BLOCK_BYTES_MAX)  # Callers ask for much, and most files are small.
        data = self._call(lambda link: link.read(file, offset, first))
        if len(data) < first or first == length:
            return data
        end = min(offset + length, self.size(file))
        return data + b"".join(more for _at, more in self.stream(file, [(offset + first, end)]))

    def stream(self, file: File, ranges: Iterable[tuple[int, int]]) -> Generator[tuple[int, bytes]]:
        """Yield ranges, given as offset and end, in runs of up to `RUN_BYTES`, in order.

        Many are asked for ahead. A run that is shorter than asked for ends where the file ends.
        """
        wanted = _runs(ranges)
        ahead: deque[tuple[int, int, Future[bytes] | None, _Link | None]] = deque()
        try:
            while True:
                while len(ahead) < RUNS_MAX and (run := next(wanted, None)) is not None:
                    ahead.append((*run, *self._ask(file, *run)))
                if not ahead:
                    return
                at, length, answer, link = ahead.popleft()
                yield at, self._taken(file, at, length, answer, link)
        finally:
            for _at, _length, answer, _link in ahead:
                if answer is not None:
                    answer.cancel()

    def deliver(self, data: bytes, name: str) -> None:
        """Put a small file into the store's inbox, whole or not at all; not synced."""
        check_name(name)
        self._call(lambda link: link.deliver(data, name.encode()))

    # Crossing.

    def _path(self, path: str) -> bytes:
        store = self._place.store
        return store.rstrip(b"/") + b"/" + os.fsencode(path) if path else store

    def _ask(self, file: File, at: int, length: int) -> tuple[Future[bytes] | None, "_Link | None"]:
        """Send for a run on the connection there is, without waiting."""
        link = self._link
        if link is None:
            return None, None
        return self._thread.submit(link.read(file, at, length)), link

    def _taken(
        self, file: File, at: int, length: int, answer: Future[bytes] | None, link: "_Link | None"
    ) -> bytes:
        """Return a run that was asked for, asking again if its connection was lost."""
        if answer is not None:
            try:
                data: bytes = answer.result()
            except (*FOREIGN, CancelledError):  # Explained where it is asked for again.
                self._drop(link)
            else:
                return data
        return self._call(lambda now: now.read(file, at, length))

    def _call(self, work: Callable[["_Link"], Coroutine[Any, Any, T]]) -> T:
        """Do one thing, over a new connection if need be; the first try comes at once."""
        ends_s, pause_s = time.monotonic() + self._patience_s, _RETRY_S_MIN
        while True:
            link = self._link
            try:
                with self._explained():
                    if link is None:
                        self.connect()
                        continue
                    return self._wait(work(link))
            except Unavailable:
                self._drop(link)
                if time.monotonic() + pause_s > ends_s:
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_S_MAX)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        answer = self._thread.submit(work)
        try:
            return answer.result()
        except BaseException:
            answer.cancel()
            raise

    def _drop(self, lost: "_Link | None" = None) -> None:
        """Let the connection go, if it is still the one that was *lost*."""
        with self._lock:
            link = self._link
            if link is None or lost not in {None, link}:
                return
            self._link = None
            with contextlib.suppress(*FOREIGN):
                self._wait(link.close())

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what asyncssh says into our errors, or into the system's of the same meaning."""
        try:
            yield
        except CancelledError as exc:
            raise Unavailable(f"{self._place}: the connection was lost") from exc
        except FOREIGN as exc:
            raise _meaning(exc) or self._place.explain(exc) from exc


def _meaning(exc: BaseException) -> OSError | None:
    """Return the system's error of the same meaning, for what the far file system refused."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    for kind, number in _MEANINGS.items():
        if type(exc) is kind:
            return OSError(number, os.strerror(number))
    return None


class _Link:
    """One connection. Everything here runs on the asyncio thread."""

    def __init__(self, place: Place, settings: TransportSettings) -> None:
        self._place = place
        self._settings = settings
        self._connector = Connector(settings)
        self._sftp: asyncssh.SFTPClient | None = None
        self._window: Window | None = None

    async def connect(self) -> None:
        """Connect within the time allowed for it."""
        place = self._place
        async with asyncio.timeout(self._settings.connect_s_max):
            connection = await self._connector.connect(place.host, place.port, place.user)
            self._sftp = await connection.start_sftp_client()
        largest = self._sftp.limits.max_read_len
        self._window = Window(largest, self._settings.parallel_blocks, _now_s())

    async def close(self) -> None:
        """End it, politely if that is quick."""
        await self._connector.close()

    async def names(self, path: bytes, names_max: int) -> list[tuple[str, About]]:
        """List a directory; no answer for one that is missing."""
        found: list[tuple[str, About]] = []
        async with (
            asyncio.timeout(self._settings.stall_s_max) as limit,
            contextlib.aclosing(self._scan(path)) as names,
        ):
            async for one in names:
                limit.reschedule(_now_s() + self._settings.stall_s_max)
                found.append((os.fsdecode(one.filename), _about(one.attrs)))
                if len(found) > names_max:
                    raise Refused(
                        f"{self._place}: there are more than {names_max:,} names",
                        hint="Is that a store, and its server the right one?",
                    )
        return [one for one in found if one[0] not in {".", ".."}]

    async def _scan(self, path: bytes) -> AsyncGenerator[asyncssh.SFTPName]:
        async for one in self._client.scandir(path):
            yield one

    async def about(self, path: bytes) -> About | None:
        """Describe a name."""
        try:
            return _about(await self._answer(self._client.lstat(path)))
        except asyncssh.SFTPNoSuchFile:
            return None

    async def handle(self, file: File) -> "asyncssh.SFTPClientFile":
        """Return the file, open on this connection."""
        if self not in file.handles:
            opening = self._client.open(
                file.path, asyncssh.FXF_READ, asyncssh.SFTPAttrs(), encoding=None, block_size=0
            )
            file.handles[self] = await self._answer(opening)
        return file.handles[self]

    async def size(self, file: File) -> int:
        """Return its bytes."""
        attrs = await self._answer((await self.handle(file)).stat())
        return attrs.size or 0

    async def shut(self, file: File) -> None:
        """Close it."""
        await self._answer(file.handles.pop(self).close())

    async def read(self, file: File, offset: int, length: int) -> bytes:
        """Read a run, its blocks side by side as far as the window has room."""
        handle, window = await self.handle(file), self._window
        assert window is not None
        blocks: list[Awaitable[bytes]] = []
        at, end = offset, offset + length
        async with asyncio.TaskGroup() as group:
            while at < end:
                size = min(window.block_bytes(), end - at)
                blocks.append(group.create_task(self._read_block(handle, at, size)))
                at += size
        return b"".join([await block for block in blocks])

    async def deliver(self, data: bytes, name: bytes) -> None:
        """Write beside, then rename."""
        final = self._place.store.rstrip(b"/") + b"/" + INBOX.encode() + b"/" + name
        part = final + PART_SUFFIX.encode()
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_TRUNC
        attrs = asyncssh.SFTPAttrs(permissions=FILE_MODE)
        file = await self._answer(
            self._client.open(part, flags, attrs, encoding=None, block_size=0)
        )
        try:
            await self._answer(file.write(data, 0))
        finally:
            await self._answer(file.close())
        await self._answer(self._client.posix_rename(part, final))

    @property
    def _client(self) -> asyncssh.SFTPClient:
        if self._sftp is None:
            raise Unavailable(f"{self._place}: the connection is closed")
        return self._sftp

    async def _read_block(self, handle: "asyncssh.SFTPClientFile", at: int, length: int) -> bytes:
        window = self._window
        assert window is not None
        data = b""
        while len(data) < length:  # A server may give less than was asked for.
            wanted = length - len(data)
            await window.enter(wanted, _now_s())
            sent_s = _now_s()
            try:
                more: bytes = await self._answer(handle.read(wanted, at + len(data)))
            finally:
                window.leave(wanted)
            window.learn(len(more), sent_s, _now_s())
            if not more:
                break
            data += more[:wanted]  # One that gives more shifts what comes behind it.
        return data

    async def _answer(self, request: Awaitable[T]) -> T:
        """Await one request; a server that is silent for too long loses the connection."""
        try:
            async with asyncio.timeout(self._settings.stall_s_max):
                return await request
        except TimeoutError:
            self._connector.abort()
            raise


def _runs(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, end in ranges:
        for at in range(start, end, RUN_BYTES):
            yield at, min(RUN_BYTES, end - at)


def _about(attrs: asyncssh.SFTPAttrs) -> About:
    kind = _KIND_MODES.get(attrs.type, 0)
    mode = stat.S_IMODE(attrs.permissions or 0) | (kind or stat.S_IFMT(attrs.permissions or 0))
    return About(mode, attrs.size or 0, attrs.uid or 0, int(attrs.mtime or 0))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
