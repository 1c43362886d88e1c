"""Try a command on a point of the past: a view in a process of its own, the command, the end.

A process can serve one mount only, so each view is a child. It holds the end of a pipe: when
this process dies, the child unmounts and is gone with all that was written to the scratch.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError, BusyError, UsageError
from aimfuse.mountpoint import VIEW_FSTYPE, mounted_source

PLACE = "{}"
PREFIX = "aimfuse-bisect-"
UNMOUNT_S_MAX = 15.0
"""How long what the command has left behind may take to let go of the view."""

_POLL_S = 0.1
_NOT_RUN = {126, 127}
_SIGNALLED = range(129, 129 + signal.NSIG)
"""Exit codes of a shell: the command could not be run; it was ended by a signal."""


class TrialFailed(AimfuseError):
    """A check said neither good nor bad, so a search cannot go on."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried on each point: *command*, with ``{}`` for a path.

    It is that of *volume*, or of the only one that there is; with *as_directory* that of the
    directory in which all of them are. What is written goes to *scratch*; without, nothing is.
    """

    store: Path
    command: str
    scratch: Path | None
    volume: str | None = None
    as_directory: bool = False

    def run(self, position: str) -> bool:
        """Tell whether the command succeeds on the state behind record *position*.

        Its output goes to the standard error.

        Raises:
            AimfuseError: the point cannot be shown; the code and the words are those of `view`.
            TrialFailed: the command could not be run, or was ended by a signal.
            BusyError: what it left behind uses the view and does not let go.
        """
        with _mountpoint() as mountpoint, self._shown(position, mountpoint):
            command = self.command.replace(
                PLACE, shlex.quote(str(self._target(position, mountpoint)))
            )
            code = subprocess.run(
                ["/bin/sh", "-c", command], check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr
            ).returncode
        if code in _NOT_RUN:
            hint = "Try it on a view by hand: aimfuse view STORE MOUNTPOINT --scratch."
            raise UsageError(f"the check could not be run (exit code {code})", hint=hint)
        if code < 0 or code in _SIGNALLED:
            number = -code if code < 0 else code - 128
            hint = "A check says no by an exit code from 1 to 125. Run the search again."
            raise TrialFailed(f"the check was ended by signal {number}", hint=hint)
        return code == 0

    def _target(self, position: str, mountpoint: Path) -> Path:
        if self.volume is not None:
            return mountpoint / self.volume
        if self.as_directory:
            return mountpoint
        paths = list(mountpoint.iterdir())
        if len(paths) != 1:
            raise UsageError(f"{len(paths)} volumes were there at {position}",
                             hint="Name one of them with --volume.")  # fmt: skip
        return paths[0]

    @contextmanager
    def _shown(self, position: str, mountpoint: Path) -> Iterator[None]:
        """Have the view mounted while the block lasts."""
        reader, ready = os.pipe()
        alive, ours = os.pipe()
        words = [sys.executable, "-m", "aimfuse", "view", str(self.store), str(mountpoint)]
        words += ["--at", position, "--ready-fd", str(ready), "--while-open", str(alive)]
        words += ["--volume", self.volume] if self.volume is not None else []
        words += ["--scratch-dir", str(self.scratch)] if self.scratch else []
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                pass_fds=[ready, alive], start_new_session=True,
            )  # fmt: skip
            try:
                os.close(ready)
                os.close(alive)
                with os.fdopen(reader) as pipe:
                    is_ready = bool(pipe.read())
                if not is_ready:
                    raise _failure(child.wait(), said)
                yield
                _unmount(mountpoint, child)
                if code := child.wait():  # It could not read something that the check wanted.
                    raise _failure(code, said)
            finally:
                os.close(ours)  # Whatever happened, the view ends now.
                child.wait()
                if mounted_source(mountpoint, VIEW_FSTYPE) is not None:  # It was killed.
                    _fusermount("-uz", mountpoint)


def check_command(command: str) -> None:
    """Refuse a command that does not say where the path goes."""
    if PLACE not in command:
        hint = f"Write {PLACE} where the path of the volume belongs: 'e2fsck -fn {PLACE}'."
        raise UsageError(f"{command!r} names no volume", hint=hint)


def _failure(code: int, said: IO[bytes]) -> AimfuseError:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    told = [index for index, line in enumerate(lines) if line.startswith("aimfuse: ")]
    message = lines[told[-1]].removeprefix("aimfuse: ") if told else "the view ended at once"
    hint = " ".join(lines[told[-1] + 1 :]) if told else "\n".join(lines[-3:])
    failure = AimfuseError(message, hint=hint)
    failure.exit_code = code or 1  # type: ignore[misc]
    return failure


def _unmount(mountpoint: Path, child: "subprocess.Popen[bytes]") -> None:
    end_s = time.monotonic() + UNMOUNT_S_MAX
    while True:
        done = _fusermount("-u", mountpoint)
        if not done.returncode or child.poll() is not None:
            return
        if time.monotonic() >= end_s:
            raise BusyError(
                f"the check has left something that uses the view: {done.stderr.strip()}",
                hint="Let it unmount what it mounts, detach its loop devices, end what it starts.",
            )
        time.sleep(_POLL_S)


def _fusermount(how: str, mountpoint: Path) -> "subprocess.CompletedProcess[str]":
    command = ["fusermount3", how, "--", str(mountpoint)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@contextmanager
def _mountpoint() -> Iterator[Path]:
    """Have an empty directory; those that a killed search left are removed."""
    disk = Disk()
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # Somebody else's, or in use.
            disk.rmdir("bisect:rmdir_left", left)
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            disk.rmdir("bisect:rmdir", path)
