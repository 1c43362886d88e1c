"""The control socket: other processes ask the driver, one JSON object a line each way.

A unix socket of mode 0600 in the state directory; only root and the driver's own user are
answered. Requests: status, roll, applied, checkpoint, bookmark, reload, stop,
verify.
"""

import json
import logging
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from aimfuse.errors import AimfuseError, UsageError, explain

log = logging.getLogger(__name__)

SOCKET_NAME = "control.sock"
REQUEST_BYTES_MAX = 64 * 1024
REQUEST_S_MAX = 3600.0
CONNECTIONS_MAX = 64
ACCEPT_RETRY_S = 1.0

_PEER = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for, and whether they have hung up, so that nobody waits for it."""

    said: dict[str, Any]
    has_gone: Callable[[], bool]


Handler = Callable[[Request], Awaitable[dict[str, Any]]]


def listen(state_dir: Path) -> trio.SocketListener:
    """Bind the control socket, replacing the one of a dead driver."""
    path = state_dir / SOCKET_NAME
    path.unlink(missing_ok=True)
    directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # By way of /proc, since the path of a socket may have only 107 bytes.
        sock.bind(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        path.chmod(0o600)
        sock.listen(CONNECTIONS_MAX)
    except OSError:
        sock.close()
        raise
    finally:
        os.close(directory)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def serve(listener: trio.SocketListener, handlers: dict[str, Handler]) -> None:
    """Answer requests until cancelled. A bad one costs its connection, nothing else."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                if _is_friend(stream):
                    await _converse(stream, handlers)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
                log.info("control connection ended: %s", exc)

    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except OSError as exc:  # Such as too many open files: the mount goes on.
                log.warning("control socket: %s", exc)
                await trio.sleep(ACCEPT_RETRY_S)
            else:
                nursery.start_soon(answer, stream)


async def _converse(stream: trio.SocketStream, handlers: dict[str, Handler]) -> None:
    buffer = b""
    while True:
        while b"\n" not in buffer:
            data = await stream.receive_some()
            if not data or len(buffer) + len(data) > REQUEST_BYTES_MAX:
                return
            buffer += data
        line, buffer = buffer.split(b"\n", 1)
        reply = await _reply(line, partial(_has_gone, stream.socket.fileno()), handlers)
        await stream.send_all(json.dumps(reply).encode() + b"\n")


async def _reply(
    line: bytes, has_gone: Callable[[], bool], handlers: dict[str, Handler]
) -> dict[str, Any]:
    try:
        return await _do(line, has_gone, handlers)
    except AimfuseError as exc:
        return {"ok": False, "error": str(exc), "hint": exc.hint, "exit_code": exc.exit_code}
    except (ValueError, trio.TooSlowError, OSError) as exc:
        return {"ok": False, "error": explain(exc) or "timed out", "hint": "", "exit_code": 1}
    except Exception as exc:
        # Whatever it is: it would end the whole mount if it went further.
        log.critical("a bug in a control request", exc_info=exc)
        return {"ok": False, "error": f"a bug: {exc!r}", "hint": "", "exit_code": 1}


async def _do(
    line: bytes, has_gone: Callable[[], bool], handlers: dict[str, Handler]
) -> dict[str, Any]:
    said = json.loads(line)
    command = said.get("cmd") if isinstance(said, dict) else None
    handler = handlers.get(str(command))
    if handler is None:
        raise UsageError(f"{command!r} is no request; known: {', '.join(sorted(handlers))}")
    with trio.fail_after(REQUEST_S_MAX):
        return await handler(Request(said, has_gone))


def _has_gone(link: int) -> bool:
    """Tell whether the other end is closed; one that only sends no more still listens."""
    poll = select.poll()
    poll.register(link, 0)  # A hang-up is told unasked.
    return any(event & select.POLLHUP for _fd, event in poll.poll(0))


def _is_friend(stream: trio.SocketStream) -> bool:
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _pid, uid, _gid = _PEER.unpack(raw)
    return uid in {0, os.getuid()}
