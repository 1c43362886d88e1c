"""Run programs and wait, so that Ctrl-C or SIGTERM ends the demo between two steps, never in one.

A signal only sets a flag. Whoever waits looks at it, so that nothing is made without being
noted for the clean-up; children are in process groups of their own and do not get the Ctrl-C.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

POLL_S = 0.05
PROGRAM_S_MAX = 120.0
AIMFUSE = (sys.executable, "-m", "aimfuse")


class Interrupted(Exception):
    """Somebody wants us to stop; carries the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Failed(Exception):
    """A step of the demo did not do what it should."""


class Patience:
    """Waits that a signal ends."""

    def __init__(self) -> None:
        self._signal = 0
        self._is_cleaning = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if self._signal or self._is_cleaning:
            with contextlib.suppress(OSError):  # print() must not be entered twice.
                os.write(2, b"\naimfuse demo: cleaning up, one moment\n")
        self._signal = self._signal or number

    def check(self) -> None:
        """Raise `Interrupted` if a signal came and the clean-up has not begun."""
        if self._signal and not self._is_cleaning:
            raise Interrupted(self._signal)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Let nothing interrupt the block: it takes away what was made."""
        was_cleaning, self._is_cleaning = self._is_cleaning, True
        try:
            yield
        finally:
            self._is_cleaning = was_cleaning

    def pause(self, seconds: float) -> None:
        """Sleep."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.check()
            time.sleep(min(POLL_S, left_s))
        self.check()

    def until(self, condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        """Wait until *condition* is true.

        Raises:
            Failed: it was not after *seconds*.
        """
        end_s = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= end_s:
                raise Failed(f"waited {seconds:.0f} s in vain until {what}")
            self.pause(POLL_S)

    def run(
        self, *command: str | Path, ok: Sequence[int] = (0,), interruptible: bool = False
    ) -> str:
        """Run a program to its end and return what it printed.

        A signal waits for that end, unless the program is one that makes nothing.

        Raises:
            Failed: it ended with a code that is not among *ok*, or not in time.
        """
        self.check()
        words = [str(word) for word in command]
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, process_group=0,
        )  # fmt: skip
        output: list[str] = []
        assert child.stdout is not None
        reader = threading.Thread(target=_read_all, args=(child.stdout, output))
        reader.start()
        end_s = time.monotonic() + PROGRAM_S_MAX
        try:
            while child.poll() is None and time.monotonic() < end_s:
                if interruptible:
                    self.check()
                time.sleep(POLL_S)
        finally:
            end(child)
            reader.join()
            child.stdout.close()
        text = "".join(output).strip()
        if child.returncode not in ok:
            raise Failed(f"`{' '.join(words)}` ended with {child.returncode}: {text}")
        return text

    def aimfuse(self, *words: str | Path, interruptible: bool = False) -> str:
        """Run an aimfuse command as a user would."""
        return self.run(*AIMFUSE, *words, interruptible=interruptible)


def _read_all(stream: IO[str], output: list[str]) -> None:
    output.append(stream.read())


def end(child: subprocess.Popen[str], seconds: float = 15.0) -> None:
    """Ask a child to end, then make it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()
