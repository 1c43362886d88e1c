"""Start programs, wait for them, and leave nothing behind, also after Ctrl-C.

A signal only sets a flag; whoever waits looks at it. So no program is ever started without
being noted for the clean-up. Programs are in process groups of their own and do not get the
Ctrl-C themselves.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

AIMFUSE = (sys.executable, "-m", "aimfuse")
LOW_PRIORITY = ("nice", "-n", "19")
"""For whatever stands for another machine: it must not take this one's processors."""

POLL_S = 0.02
END_S_MAX = 20.0
PROGRAM_S_MAX = 300.0

Child = subprocess.Popen[bytes]
Words = Sequence[str | Path]


class Interrupted(Exception):
    """Somebody wants us to stop; carries the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Failed(Exception):
    """A measurement could not be made."""


class Runner:
    """Runs programs with a signal in mind."""

    def __init__(self) -> None:
        self._signal = 0
        # An aimfuse that is installed has its byte code; without it each start compiles all again.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self._signal = self._signal or number

    def check(self) -> None:
        """Raise `Interrupted` once a signal has come."""
        if self._signal:
            raise Interrupted(self._signal)

    def until(
        self,
        condition: Callable[[], object],
        what: str,
        seconds: float = 120.0,
        poll_s: float = POLL_S,
    ) -> None:
        """Wait until *condition* is true, looking every *poll_s*.

        Raises:
            Failed: it was not after *seconds*.
            Interrupted: a signal came.
        """
        end_s = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() >= end_s:
                raise Failed(f"waited {seconds:.0f} s in vain until {what}")
            time.sleep(poll_s)

    def run(self, *words: str | Path) -> str:
        """Run a program to its end and return its standard output.

        Raises:
            Failed: it ended with another code than 0, or not in time.
            Interrupted: a signal came; the program has been ended.
        """
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                _texts(words), stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                process_group=0,
            )  # fmt: skip
            try:
                self.until(
                    lambda: child.poll() is not None, f"{words[0]} ended", PROGRAM_S_MAX, 0.005
                )
            finally:
                end(child)
            for stream in (output, errors):
                stream.seek(0)
            if child.returncode != 0:
                said = errors.read().decode(errors="replace").strip()
                raise Failed(f"{' '.join(_texts(words))}: exit code {child.returncode}: {said}")
            return output.read().decode(errors="replace")

    @contextlib.contextmanager
    def running(self, words: Words, log: Path, cwd: Path | None = None) -> Generator[Child]:
        """Keep a program running while the block does; what it says goes to *log*."""
        with log.open("wb") as said:
            child = subprocess.Popen(
                _texts(words), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                process_group=0, cwd=cwd,
            )  # fmt: skip
        try:
            yield child
        finally:
            end(child)

    def until_mounted(self, child: Child, volume: Path, log: Path) -> None:
        """Wait until *volume* is there, in the file system that *child* mounts.

        Raises:
            Failed: the child ended, or took too long.
        """

        def is_there() -> bool:
            self.check_alive(child, log)
            return os.path.ismount(volume.parent) and volume.exists()

        self.until(is_there, f"{volume} is mounted", 30.0)

    def check_alive(self, child: Child, log: Path) -> None:
        """Raise `Failed` with the child's last words if it has ended."""
        if child.poll() is not None:
            words = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise Failed(f"a process ended with {child.returncode}: {' / '.join(words)}")


def end(child: Child) -> None:
    """Ask a child to end, then make it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()


@contextlib.contextmanager
def unmounting(mountpoint: Path) -> Generator[None]:
    """See to it that nothing is mounted at *mountpoint* after the block.

    Without a look at it: the mount of a driver that was killed is there and cannot be looked at.
    """
    try:
        yield
    finally:
        for option in ("-u", "-uz"):
            subprocess.run(
                ("fusermount3", option, str(mountpoint)), check=False, capture_output=True
            )


def _texts(words: Words) -> list[str]:
    return [str(word) for word in words]
