"""Talk to a mounted group's driver: one JSON object per line each way, over its control socket.

A socket's address has room for 107 bytes and a state directory's path may be longer, so the
socket is reached through a descriptor of its directory.
"""

import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from aimfuse.errors import AimfuseError, BusyError

SOCKET_NAME = "control.sock"
ANSWER_BYTES_MAX = 4 * 1024 * 1024
CALL_S_MAX = 5.0
"""How long `status` may take; requests that wait for the disk are given longer."""

_READ_BYTES = 64 * 1024
_WAY_OUT = "Mount it first: aimfuse mount IMAGE MOUNTPOINT."

Answer = dict[str, Any]


class NotMounted(BusyError):
    """Nobody listens: there is no driver, or it is starting or closing."""


class DriverGone(BusyError):
    """The driver took the request and went away; whether it carried it out is unknown."""


class DriverError(AimfuseError):
    """The driver refused a request, in its own words, with its hint and its exit code."""

    def __init__(self, answer: Answer) -> None:
        """Take over what the driver said."""
        super().__init__(str(answer.get("error", "refused")), hint=str(answer.get("hint") or ""))
        code = answer.get("exit_code")
        # Instances, not the class: the driver knows what kind of error it was.
        self.exit_code = code if isinstance(code, int) and 0 < code < 128 else 1  # type: ignore[misc]  # noqa: PLR2004


def call(state_dir: Path, request: Answer, timeout_s: float = CALL_S_MAX) -> Answer:
    """Send *request* to the group's driver and return its answer; blocks.

    Raises:
        NotMounted: nobody listens; nothing was asked.
        BusyError: its driver does not answer in time; then it may still carry the request out.
        DriverGone: the driver ended before it answered.
        DriverError: the driver said no.
    """
    with (
        _foreign_errors(state_dir, timeout_s),
        _address(state_dir) as address,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link,
    ):
        link.settimeout(timeout_s)
        link.connect(address)
        link.sendall(_line(request))
        answer = bytearray()
        while not answer.endswith(b"\n") and len(answer) <= ANSWER_BYTES_MAX:
            data = link.recv(_READ_BYTES)
            if not data:
                break
            answer += data
    return _parse(state_dir, bytes(answer))


@contextmanager
def _address(state_dir: Path) -> Generator[str]:
    fd = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET_NAME}"
    finally:
        os.close(fd)


@contextmanager
def _foreign_errors(state_dir: Path, timeout_s: float) -> Generator[None]:
    try:
        yield
    except TimeoutError as exc:
        message = f"{state_dir}: the driver did not answer within {timeout_s:g} s"
        raise BusyError(message, hint="Look at its log; `aimfuse status` shows who it is.") from exc
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise NotMounted(f"{state_dir}: not mounted", hint=_WAY_OUT) from exc
    except ConnectionError as exc:
        message = f"{state_dir}: the driver went away before it answered"
        raise DriverGone(message, hint="See `aimfuse status`, then mount it again.") from exc
    except PermissionError as exc:
        message = f"{state_dir}: belongs to another user"
        raise BusyError(message, hint="Run this as the user who mounted it, or as root.") from exc
    except OSError as exc:
        raise BusyError(f"{state_dir}: {exc.strerror or exc}", hint=_WAY_OUT) from exc


def _line(request: Answer) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _parse(state_dir: Path, line: bytes) -> Answer:
    if not line.endswith(b"\n"):
        _nonsense(state_dir)
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        _nonsense(state_dir)
    if not isinstance(answer, dict):
        _nonsense(state_dir)
    if answer.get("ok") is False:
        raise DriverError(answer)
    return answer


def _nonsense(state_dir: Path) -> NoReturn:
    message = f"{state_dir}: the driver went away before it answered, or is no driver"
    raise DriverGone(message, hint="See `aimfuse status`, then mount it again.")
