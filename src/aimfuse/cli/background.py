"""Start a command again in the background, and wait until it says that it is ready."""

import os
import subprocess
import sys
from pathlib import Path

import typer

from aimfuse.errors import AimfuseError


def announce(message: str, ready_fd: int | None) -> None:
    """Tell whoever waits for it that the command is ready: a parent process, or a person."""
    if ready_fd is None:
        typer.echo(message)
    else:
        os.write(ready_fd, f"{message}\n".encode())
        os.close(ready_fd)


def start_in_background(arguments: list[str], log_path: Path) -> str:
    """Start the command of *arguments* without --background; return what it announced.

    Raises:
        AimfuseError: it ended before it was ready, with its exit code and its last words.
    """
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "aimfuse"]
    command += [word for word in arguments if word != "--background"]
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            [*command, "--ready-fd", str(writer)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=[writer], start_new_session=True,
        )  # fmt: skip
    os.close(writer)
    with os.fdopen(reader) as ready:
        message = ready.read().strip()
    if message:
        return message
    code = child.wait()
    tail = log_path.read_text(errors="replace").strip().splitlines()[-2:]
    raise _BackgroundFailure(code, tail, log_path)


class _BackgroundFailure(AimfuseError):
    """The mount ended before it was ready."""

    def __init__(self, code: int, tail: list[str], log_path: Path) -> None:
        message = next((line for line in tail if line.startswith("aimfuse: ")), "not mounted")
        hint = tail[-1] if len(tail) > 1 and tail[-1] != message else f"See {log_path}."
        super().__init__(message.removeprefix("aimfuse: "), hint=hint)
        self.exit_code = code or 1  # type: ignore[misc]
