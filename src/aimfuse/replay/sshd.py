"""An SFTP server inside aimfuse, for hosts and demonstrations without an sshd.

It serves one directory tree, confined, over SFTP and nothing else: no shell, no commands, no
forwarding. Clients come in with a public key from the authorised keys file, which is read
again for every connection; what stands in front of a key there may limit it to some stores.
asyncssh runs on its own thread, file operations in worker threads.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import asyncssh
import trio

from aimfuse.disk import Disk, process_disk, publish, read_file
from aimfuse.errors import BusyError, UsageError, explain
from aimfuse.replay.confined import PRIVATE, ConfinedTree, Handle, normalise
from aimfuse.transport.bridge import AsyncioThread
from aimfuse.units import KIB, MIB

T = TypeVar("T")

WINDOW_BYTES = 16 * MIB
"""What a client may send before it hears from us; long links need it."""

CLOSE_S_MAX = 1.0
_KEY_BYTES_MAX = 64 * KIB
_LOGIN_S_MAX = 30
_KEEPALIVE_S = 15
_DEFAULT_PORT = 22
_WILDCARDS = {"", "0.0.0.0", "::"}  # noqa: S104 - compared with, not listened on
_OTHERS = 0o077

STORE_OPTION = "store"
"""In front of a key: ``store="NAME"``, once or more, lets it in to these stores alone."""

READ_OPTION = "read-only"
"""In front of a key: it restores, and can change nothing, so that it cannot hold the past."""

DELIVER_OPTION = "deliver-only"
"""In front of a key: it mirrors, and cannot read what is mirrored."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """A listening server, and what a client's operator needs to trust it."""

    host: str
    port: int
    fingerprint: str
    """SHA-256 of the host key, as OpenSSH writes it."""
    host_key_line: str
    """Ready for a known_hosts file."""


@asynccontextmanager
async def open_server(
    directory: Path,
    host: str,
    port: int,
    authorised_keys: Path | None = None,
    disk: Disk | None = None,
) -> AsyncGenerator[Server]:
    """Serve *directory* while the block runs; port 0 takes a free one.

    The host key is made on first use and kept in ``.aimfuse/host_key``. When the block ends
    every connection is cut.

    Args:
        directory: the root that clients see as ``/``.
        host: the address to listen on.
        port: the TCP port.
        authorised_keys: a file in OpenSSH's format; default ``.aimfuse/authorized_keys``.
        disk: what writes; tests put a failing one here.

    Raises:
        UsageError: no key is authorised, or the host key can be read by others.
        BusyError: the address is taken or not ours.
    """
    private = directory / os.fsdecode(PRIVATE)
    keys = authorised_keys or private / "authorized_keys"
    tree, host_key = await trio.to_thread.run_sync(
        lambda: _prepare(directory, private, keys, disk or process_disk())
    )
    thread = AsyncioThread("sftp-server")
    thread.start()
    listener = _Listener(tree, keys)
    try:
        bound = await thread.run(lambda: listener.listen(host, port, host_key))
        yield _describe(host, bound, host_key)
    finally:
        with trio.CancelScope(shield=True):
            await thread.run(listener.close)
            await thread.stop()
        tree.close()


def _prepare(
    directory: Path, private: Path, keys: Path, disk: Disk
) -> tuple[ConfinedTree, asyncssh.SSHKey]:
    try:
        disk.mkdir("serve:mkdir", private)
        _read_authorised(keys)
        host_key = _host_key(disk, private / "host_key")
        return ConfinedTree(directory, disk), host_key
    except OSError as exc:
        hint = "It has to be a directory that this user may write to."
        raise UsageError(f"{directory} cannot be served: {explain(exc)}", hint=hint) from exc


def _read_authorised(path: Path) -> asyncssh.SSHAuthorizedKeys:
    try:
        return asyncssh.read_authorized_keys(str(path))
    except (OSError, ValueError) as exc:
        hint = f"Append the source's public key (~/.ssh/id_ed25519.pub there) to {path}."
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise UsageError(f"nobody could log in: {path}: {reason}", hint=hint) from exc


def _host_key(disk: Disk, path: Path) -> asyncssh.SSHKey:
    """Return the host key, made now if there is none."""
    if not disk.exists(path):
        made = asyncssh.generate_private_key("ssh-ed25519", comment="aimfuse")
        publish(disk, "serve:host-key", path, made.export_private_key())
    if path.stat().st_mode & _OTHERS:
        raise UsageError(f"{path} can be read by others", hint=f"Run `chmod 600 {path}`.")
    try:
        return asyncssh.import_private_key(read_file(disk, path, _KEY_BYTES_MAX))
    except ValueError as exc:
        hint = "Move it away to have a new one made; clients then have to trust that one."
        raise UsageError(f"{path}: {exc}", hint=hint) from exc


def _describe(host: str, port: int, key: asyncssh.SSHKey) -> Server:
    name = socket.gethostname() if host in _WILDCARDS else host
    place = name if port == _DEFAULT_PORT else f"[{name}]:{port}"
    algorithm, data = key.export_public_key().decode().split()[:2]
    return Server(name, port, key.get_fingerprint(), f"{place} {algorithm} {data}")


class _Listener:
    """The listening socket and the connections that came of it; on the asyncio thread."""

    def __init__(self, tree: ConfinedTree, keys: Path) -> None:
        self._tree = tree
        self._keys = keys
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()

    async def listen(self, host: str, port: int, host_key: asyncssh.SSHKey) -> int:
        """Listen; return the port."""
        try:
            self._acceptor = await asyncssh.listen(
                host,
                port,
                server_factory=lambda: _Gate(self._keys, self._connections),
                server_host_keys=[host_key],
                sftp_factory=lambda channel: _ConfinedSftp(channel, self._tree),
                allow_scp=False,
                agent_forwarding=False,
                x11_forwarding=False,
                password_auth=False,
                kbdint_auth=False,
                host_based_auth=False,
                gss_host=None,
                compression_algs=None,
                login_timeout=_LOGIN_S_MAX,
                keepalive_interval=_KEEPALIVE_S,
                window=WINDOW_BYTES,
            )
        except OSError as exc:
            hint = "Is another server there already, and is the address one of this host's?"
            reason = exc.strerror or exc
            raise BusyError(f"cannot listen on {host} port {port}: {reason}", hint=hint) from exc
        bound: int = self._acceptor.get_port()
        return bound

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._acceptor is not None:
            self._acceptor.close()
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.wait_closed()
        if self._acceptor is not None:
            await self._acceptor.wait_closed()


class _Gate(asyncssh.SSHServer):
    """Lets in whoever has an authorised key, under any user name, to SFTP only."""

    def __init__(self, keys: Path, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._keys = keys
        self._connections = connections
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Remember the connection."""
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self._connection is not None:
            self._connections.discard(self._connection)
        if exc is not None:
            log.info("a connection ended: %s", exc)

    def begin_auth(self, username: str) -> bool:
        """Read the authorised keys as they are now. Without any, nobody gets in."""
        assert self._connection is not None
        try:
            self._connection.set_authorized_keys(_read_authorised(self._keys))
        except UsageError as exc:
            log.warning("login as %s refused: %s", ascii(username), exc)
        return True


class _ConfinedSftp(asyncssh.SFTPServer):
    """SFTP requests, translated to the confined tree; whatever is not here is refused."""

    def __init__(self, channel: "asyncssh.SSHServerChannel[bytes]", tree: ConfinedTree) -> None:
        super().__init__(channel)
        connection = channel.get_connection()
        assert isinstance(connection, asyncssh.SSHServerConnection)
        stores = connection.get_key_option(STORE_OPTION)
        if stores is not None and not isinstance(stores, list):
            stores = ()  # True: no store was named.
        self._tree = tree.limited(
            stores,
            reads_only=connection.get_key_option(READ_OPTION) is not None,
            delivers_only=connection.get_key_option(DELIVER_OPTION) is not None,
        )

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Open a file; the client's wishes for its mode are not heard."""
        del attrs
        if pflags & asyncssh.FXF_APPEND:
            raise asyncssh.SFTPOpUnsupported("append: write at an offset instead")
        reads, writes = pflags & asyncssh.FXF_READ, pflags & asyncssh.FXF_WRITE
        flags = os.O_RDWR if reads and writes else os.O_WRONLY if writes else os.O_RDONLY
        for wanted, flag in (
            (asyncssh.FXF_CREAT, os.O_CREAT),
            (asyncssh.FXF_TRUNC, os.O_TRUNC),
            (asyncssh.FXF_EXCL, os.O_EXCL),
        ):
            flags |= flag if pflags & wanted else 0
        return await _in_thread(lambda: self._tree.open(path, flags))

    async def close(self, file_obj: object) -> None:
        """Close."""
        await _in_thread(lambda: self._tree.release(_handle(file_obj)))

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        """Read; a long wish is met in part."""
        return await _in_thread(lambda: self._tree.read(_handle(file_obj), offset, size))

    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        """Write all."""
        return await _in_thread(lambda: self._tree.write(_handle(file_obj), offset, data))

    async def fsync(self, file_obj: object) -> None:
        """Sync a file, or a directory, which asyncssh's own server cannot."""
        await _in_thread(lambda: self._tree.sync(_handle(file_obj)))

    async def fstat(self, file_obj: object) -> os.stat_result:
        """Describe an open file."""
        return await _in_thread(lambda: os.fstat(_handle(file_obj).fd))

    async def stat(self, path: bytes) -> os.stat_result:
        """Describe a name; links are not followed here either."""
        return await _in_thread(lambda: self._tree.stat(path))

    async def lstat(self, path: bytes) -> os.stat_result:
        """Describe a name."""
        return await _in_thread(lambda: self._tree.stat(path))

    async def statvfs(self, path: bytes) -> os.statvfs_result:
        """Describe the file system."""
        return await _in_thread(lambda: self._tree.statvfs(path))

    async def fstatvfs(self, file_obj: object) -> os.statvfs_result:
        """Describe the file system of an open file."""
        return await _in_thread(lambda: os.fstatvfs(_handle(file_obj).fd))

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        """List a directory."""
        for name, info in await _in_thread(lambda: self._tree.names(path)):
            yield asyncssh.SFTPName(name, attrs=asyncssh.SFTPAttrs.from_local(info))

    async def mkdir(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        """Make a directory, durable."""
        del attrs
        await _in_thread(lambda: self._tree.mkdir(path))

    async def rename(self, oldpath: bytes, newpath: bytes) -> None:
        """Rename, refusing an existing name."""
        await _in_thread(lambda: self._tree.rename(oldpath, newpath, replace=False))

    async def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        """Rename, replacing."""
        await _in_thread(lambda: self._tree.rename(oldpath, newpath, replace=True))

    def realpath(self, path: bytes) -> bytes:
        """Return the path made absolute. There are no links to resolve."""
        return normalise(path)

    def map_path(self, path: bytes) -> bytes:
        """Stop whatever asyncssh does by itself before it touches the file system."""
        raise asyncssh.SFTPPermissionDenied(f"not offered here: {path.decode(errors='replace')}")

    def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        """Refuse."""
        del file_obj, attrs
        raise asyncssh.SFTPPermissionDenied("attributes are not for clients to set")

    def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        """Refuse."""
        del oldpath, newpath
        raise asyncssh.SFTPPermissionDenied("no links here")


def _handle(file_obj: object) -> Handle:
    assert isinstance(file_obj, Handle)
    return file_obj


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)
