"""The few SFTP requests that a delivery needs, over any pair of byte streams.

Version 3 with OpenSSH's extensions, as in draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL.
A packet is its length:u32, kind:u8, and for all but the first in each direction id:u32, then
what the kind has; a string is its length:u32 and its bytes. Big-endian. Named and raising as
asyncssh's own client, in place of which it stands; a block to write is not copied on its way.
"""

import asyncio
import itertools
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import asyncssh
from asyncssh import constants

from aimfuse.units import KIB

_VERSION = 3
_INIT, _HELLO = 1, 2
_OPEN, _CLOSE, _READ, _WRITE, _FSTAT = 3, 4, 5, 6, 8
_REMOVE, _MKDIR, _STAT, _RENAME = 13, 14, 17, 18
_STATUS, _HANDLE, _DATA, _ATTRS = 101, 102, 103, 105
_EXTENDED, _EXTENDED_REPLY = 200, 201

_FSYNC = b"fsync@openssh.com"
_LIMITS = b"limits@openssh.com"
_POSIX_RENAME = b"posix-rename@openssh.com"
_STATVFS = b"statvfs@openssh.com"

_PACKET_BYTES_MAX = 256 * KIB
_WRITE_BYTES_SAFE = 32 * KIB
"""What every server takes that does not say what it takes."""

_ERRORS: dict[int, Callable[[str], asyncssh.SFTPError]] = {
    constants.FX_EOF: asyncssh.SFTPEOFError,
    constants.FX_NO_SUCH_FILE: asyncssh.SFTPNoSuchFile,
    constants.FX_PERMISSION_DENIED: asyncssh.SFTPPermissionDenied,
    constants.FX_FAILURE: asyncssh.SFTPFailure,
    constants.FX_BAD_MESSAGE: asyncssh.SFTPBadMessage,
    constants.FX_NO_CONNECTION: asyncssh.SFTPNoConnection,
    constants.FX_CONNECTION_LOST: asyncssh.SFTPConnectionLost,
    constants.FX_OP_UNSUPPORTED: asyncssh.SFTPOpUnsupported,
}
_Waiter = asyncio.Future[tuple[int, bytes]]
_U32 = struct.Struct(">I")
_HEAD = struct.Struct(">IBI")
_PLACE = struct.Struct(">QI")
_LIMITS_REPLY = struct.Struct(">4Q")
_STATVFS_REPLY = struct.Struct(">11Q")


class Sender(Protocol):
    """Where requests go."""

    def write(self, *parts: bytes) -> None:
        """Send *parts* after everything sent before; never waits."""


class Receiver(Protocol):
    """Where answers come from."""

    async def readexactly(self, count_bytes: int) -> bytes:
        """Return so many bytes; raises `asyncssh.Error` when there will be no more."""


class Limits(NamedTuple):
    """What the server takes at once."""

    max_write_len: int


class Space(NamedTuple):
    """What is free on a file system, in units of *frsize* bytes."""

    bavail: int
    frsize: int


class Requests:
    """An SFTP client. Methods raise what asyncssh's raise; several may wait at once."""

    def __init__(self, sender: Sender, receiver: Receiver) -> None:
        self._sender = sender
        self._receiver = receiver
        self._ids = itertools.count()
        self._waiting: dict[int, _Waiter] = {}
        self._extensions: dict[bytes, bytes] = {}
        self._lost: asyncssh.Error | None = None
        self.limits = Limits(_WRITE_BYTES_SAFE)

    async def start(self) -> None:
        """Greet the server and learn what it can."""
        self._sender.write(struct.pack(">IBI", 5, _INIT, _VERSION))
        kind, hello = await self._packet()
        if kind != _HELLO or len(hello) < _U32.size:
            raise asyncssh.SFTPBadMessage("no SFTP server answers")
        at = _U32.size
        while at < len(hello):
            name, at = _string(hello, at)
            self._extensions[name], at = _string(hello, at)

    async def run(self) -> None:
        """Take answers until there are none any more; then whoever waits fails."""
        try:
            while True:
                kind, body = await self._packet()
                waiter = self._waiting.pop(_number(body, 0), None)
                if waiter is None:
                    raise asyncssh.SFTPBadMessage("an answer to nothing")
                if not waiter.done():
                    waiter.set_result((kind, body[_U32.size :]))
        except asyncssh.Error as exc:
            self._end(exc)
        finally:
            self._end(asyncssh.SFTPConnectionLost("the connection is closed"))

    async def learn_limits(self) -> None:
        """Ask what the server takes at once, if it can tell."""
        if _LIMITS in self._extensions:
            reply = await self._ask(_EXTENDED, _packed(_LIMITS), wanted=_EXTENDED_REPLY)
            _packet, _read, write, _handles = _unpacked(_LIMITS_REPLY, reply)
            self.limits = Limits(write or _WRITE_BYTES_SAFE)

    async def open(
        self,
        path: bytes,
        flags: int,
        attrs: asyncssh.SFTPAttrs,
        *,
        encoding: None = None,  # noqa: ARG002 - asyncssh's has it
        block_size: int = 0,  # noqa: ARG002
    ) -> "OpenFile":
        """Open a file."""
        words = _packed(path) + _U32.pack(flags) + attrs.encode(_VERSION)
        handle, _end = _string(await self._ask(_OPEN, words, wanted=_HANDLE), 0)
        return OpenFile(self, handle)

    async def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """Describe a name, links followed."""
        return _attrs(await self._ask(_STAT, _packed(path), wanted=_ATTRS))

    async def mkdir(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        """Make a directory."""
        await self._ask(_MKDIR, _packed(path) + attrs.encode(_VERSION))

    async def remove(self, path: bytes) -> None:
        """Remove a file."""
        await self._ask(_REMOVE, _packed(path))

    async def rename(self, old: bytes, new: bytes) -> None:
        """Rename to a name that nobody has."""
        await self._ask(_RENAME, _packed(old) + _packed(new))

    async def posix_rename(self, old: bytes, new: bytes) -> None:
        """Rename, replacing what has the name."""
        await self._extended(_POSIX_RENAME, _packed(old) + _packed(new))

    async def statvfs(self, path: bytes) -> Space:
        """Tell what is free."""
        reply = await self._extended(_STATVFS, _packed(path), wanted=_EXTENDED_REPLY)
        fields = _unpacked(_STATVFS_REPLY, reply)
        return Space(bavail=fields[4], frsize=fields[1])

    def _end(self, lost: asyncssh.Error) -> None:
        """Fail whoever waits, and whoever asks from now on."""
        if self._lost is None:
            self._lost = lost
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(self._lost)

    async def _extended(self, name: bytes, words: bytes, wanted: int = _STATUS) -> bytes:
        if name not in self._extensions:
            raise asyncssh.SFTPOpUnsupported(f"{name.decode()} not supported")
        return await self._ask(_EXTENDED, _packed(name) + words, wanted=wanted)

    async def _ask(
        self, kind: int, words: bytes, block: bytes = b"", *, wanted: int = _STATUS
    ) -> bytes:
        """Send a request, then *block* as its last string's bytes; return what is answered."""
        if self._lost is not None:
            raise self._lost
        number = next(self._ids) & 0xFFFFFFFF
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter
        length = _HEAD.size - _U32.size + len(words) + len(block)
        head = _HEAD.pack(length, kind, number) + words
        self._sender.write(head, block) if block else self._sender.write(head)
        answer, body = await waiter
        if answer == _STATUS:
            _raise_failure(body)
        if answer != wanted:
            raise asyncssh.SFTPBadMessage(f"an answer of another kind: {answer}")
        return body

    async def _packet(self) -> tuple[int, bytes]:
        length = _number(await self._receiver.readexactly(_U32.size), 0)
        if not _U32.size < length <= _PACKET_BYTES_MAX:
            raise asyncssh.SFTPBadMessage(f"a packet of {length} bytes")
        packet = await self._receiver.readexactly(length)
        return packet[0], packet[1:]


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file."""

    client: Requests
    handle: bytes

    async def read(self, size: int, offset: int) -> bytes:
        """Return up to *size* bytes; none at the file's end."""
        words = _packed(self.handle) + _PLACE.pack(offset, size)
        try:
            return _string(await self.client._ask(_READ, words, wanted=_DATA), 0)[0]  # noqa: SLF001
        except asyncssh.SFTPEOFError:
            return b""

    async def write(self, data: bytes, offset: int) -> int:
        """Write a block; return its size."""
        words = _packed(self.handle) + _PLACE.pack(offset, len(data))
        await self.client._ask(_WRITE, words, data)  # noqa: SLF001
        return len(data)

    async def stat(self) -> asyncssh.SFTPAttrs:
        """Describe it."""
        words = _packed(self.handle)
        return _attrs(await self.client._ask(_FSTAT, words, wanted=_ATTRS))  # noqa: SLF001

    async def fsync(self) -> None:
        """Have the server make it durable."""
        await self.client._extended(_FSYNC, _packed(self.handle))  # noqa: SLF001

    async def close(self) -> None:
        """Close it."""
        await self.client._ask(_CLOSE, _packed(self.handle))  # noqa: SLF001


def _packed(text: bytes) -> bytes:
    return _U32.pack(len(text)) + text


def _number(data: bytes, at: int) -> int:
    if len(data) < at + _U32.size:
        raise asyncssh.SFTPBadMessage("a packet was cut short")
    number: int = _U32.unpack_from(data, at)[0]
    return number


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    start = at + _U32.size
    end = start + _number(data, at)
    if end > len(data):
        raise asyncssh.SFTPBadMessage("a packet was cut short")
    return data[start:end], end


def _unpacked(fields: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) < fields.size:
        raise asyncssh.SFTPBadMessage("a packet was cut short")
    return fields.unpack_from(data)


def _raise_failure(body: bytes) -> None:
    code = _number(body, 0)
    if code == constants.FX_OK:
        return
    said = _string(body, _U32.size)[0].decode(errors="replace") if len(body) > _U32.size else ""
    raise _ERRORS.get(code, asyncssh.SFTPFailure)(said or os.strerror(5))


def _attrs(data: bytes) -> asyncssh.SFTPAttrs:
    """Return size and permissions, which is all that is asked for, and the kind."""
    flags, at = _number(data, 0), _U32.size
    attrs = asyncssh.SFTPAttrs()
    if flags & constants.FILEXFER_ATTR_SIZE:
        attrs.size = _number(data, at) << 32 | _number(data, at + 4)
        at += 8
    if flags & constants.FILEXFER_ATTR_UIDGID:
        at += 8
    if flags & constants.FILEXFER_ATTR_PERMISSIONS:
        attrs.permissions = _number(data, at)
        if stat.S_ISDIR(attrs.permissions):
            attrs.type = constants.FILEXFER_TYPE_DIRECTORY
    return attrs
