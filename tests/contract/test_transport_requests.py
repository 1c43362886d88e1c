"""The SFTP requests to the program ``ssh``, and answers of a server that make no sense."""

import asyncio
import struct
from collections.abc import Awaitable, Callable

import asyncssh
import pytest

from aimfuse.transport.requests import Requests


class Server:
    """Answers each request with the next of *answers*, then hangs up."""

    def __init__(self, *answers: bytes) -> None:
        self.stream = asyncio.StreamReader()
        self.requests: list[bytes] = []
        self._answers = list(answers)

    def write(self, *parts: bytes) -> None:
        self.requests.append(b"".join(parts))
        if self._answers:
            self.stream.feed_data(self._answers.pop(0))
        else:
            self.stream.feed_eof()

    async def readexactly(self, count_bytes: int) -> bytes:
        try:
            return await self.stream.readexactly(count_bytes)
        except asyncio.IncompleteReadError:
            raise asyncssh.ConnectionLost("gone") from None


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", 1 + len(body), kind) + body


def text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def number(value: int) -> bytes:
    return struct.pack(">I", value)


HELLO = packet(2, number(3) + text(b"limits@openssh.com") + text(b"1"))
LIMITS = packet(201, number(0) + struct.pack(">4Q", 1 << 18, 1 << 18, 50_000, 0))


def ask(*answers: bytes, call: Callable[[Requests], Awaitable[object]]) -> object:
    """Return what *call* gives on a session whose server answers so."""

    async def run() -> object:
        server = Server(*answers)
        client = Requests(server, server)
        await client.start()
        taking = asyncio.create_task(client.run())
        try:
            await client.learn_limits()
            return await call(client)
        finally:
            taking.cancel()
            await asyncio.wait([taking])

    return asyncio.run(run())


async def limit(client: Requests) -> int:
    return client.limits.max_write_len


async def describe(client: Requests) -> int | None:
    return (await client.stat(b"/a")).size


def test_what_the_server_takes_at_once_is_asked_for_where_it_can_tell() -> None:
    assert ask(HELLO, LIMITS, call=limit) == 50_000
    assert ask(packet(2, number(3)), call=limit) == 32 * 1024


def test_sizes_above_four_gigabytes_are_understood() -> None:
    attrs = packet(105, number(1) + number(1 | 2) + struct.pack(">QII", 5 << 32 | 7, 0, 0))
    assert ask(HELLO, LIMITS, attrs, call=describe) == 5 << 32 | 7


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, asyncssh.SFTPNoSuchFile),
        (3, asyncssh.SFTPPermissionDenied),
        (4, asyncssh.SFTPFailure),
        (8, asyncssh.SFTPOpUnsupported),
        (99, asyncssh.SFTPFailure),
    ],
)
def test_a_refusal_has_its_meaning(code: int, kind: type[asyncssh.SFTPError]) -> None:
    status = packet(101, number(1) + number(code) + text(b"so it is") + text(b"en"))
    with pytest.raises(kind, match="so it is"):
        ask(HELLO, LIMITS, status, call=describe)


def test_an_extension_that_the_server_lacks_is_not_asked_for() -> None:
    with pytest.raises(asyncssh.SFTPOpUnsupported):
        ask(HELLO, LIMITS, call=lambda client: client.posix_rename(b"/a", b"/b"))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(packet(105, number(1)), id="cut short"),
        pytest.param(packet(105, number(1) + number(1) + b"\0\0\0\1"), id="attributes cut short"),
        pytest.param(packet(105, number(77) + number(0)), id="to nothing"),
        pytest.param(packet(103, number(1) + text(b"x")), id="of another kind"),
        pytest.param(packet(101, number(1) + number(0)), id="done, in place of an answer"),
        pytest.param(packet(101, number(1) + number(4) + number(9) + b"x"), id="text cut short"),
        pytest.param(number(0), id="empty"),
        pytest.param(number(1 << 30), id="much too large"),
        pytest.param(packet(105, b""), id="without a number"),
    ],
)
def test_an_answer_that_makes_no_sense_ends_the_request(answer: bytes) -> None:
    with pytest.raises(asyncssh.SFTPBadMessage):
        ask(HELLO, LIMITS, answer, call=describe)


@pytest.mark.parametrize(
    "hello",
    [
        pytest.param(b"Welcome to the far host!\n", id="a banner"),
        pytest.param(packet(101, number(0) + number(4)), id="another packet"),
        pytest.param(packet(2, number(3) + number(50) + b"x"), id="cut short"),
    ],
)
def test_what_greets_us_otherwise_is_no_sftp_server(hello: bytes) -> None:
    with pytest.raises(asyncssh.SFTPBadMessage):
        ask(hello, call=limit)


def test_whoever_waits_when_the_server_hangs_up_and_whoever_asks_later_is_told() -> None:
    async def twice(client: Requests) -> None:
        with pytest.raises(asyncssh.ConnectionLost, match="gone"):
            await client.stat(b"/a")
        await client.stat(b"/b")

    with pytest.raises(asyncssh.ConnectionLost, match="gone"):
        ask(HELLO, LIMITS, call=twice)
