"""Thaw what a bookmark's hook froze, if `aimfuse bookmark` was killed before it could.

A process in a session of its own, started before the hook is. It reads from a pipe what is done,
a word and a value a line, and the kernel ends that pipe with the process that writes to it:

    runs PID        a hook runs, with all that it starts in the group PID; 0: it is over
    marked E:N      the bookmark is set, as record N of epoch E
    thawed yes      nothing is left to be done

If the pipe ends without the last of these, what runs is ended, and the hook is run with thaw.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from aimfuse.errors import HookFailed, explain
from aimfuse.manager.hook import STDERR, Hook, Interrupts, end_group

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_END_S = 10.0
"""Longest wait for a guard that has nothing left to do."""


class Guard:
    """The guard of one bookmark, seen from the process that sets it. One that died does no harm."""

    def __init__(self, hook: Hook, environment: Mapping[str, str]) -> None:
        """Start it, to run *hook* with thaw in *environment*.

        Raises:
            HookFailed: it cannot be started; nothing was run.
        """
        self._hook = hook
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-B", "-P", "-m", __name__, hook.command, repr(hook.timeout_s)],
                stdin=subprocess.PIPE, stdout=STDERR, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip
        except OSError as exc:
            raise HookFailed(
                f"no guard could be started, so nothing was frozen: {explain(exc)}"
            ) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Let it end: whatever is to be said of the thaw was said."""
        self.note("thawed", "yes")
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=_END_S)

    def run(
        self, phase: str, environment: Mapping[str, str], interrupts: Interrupts | None = None
    ) -> None:
        """Run the hook as `Hook.run` does, so that the guard knows of it."""
        assert self._process.stdin is not None
        try:
            self._hook.run(phase, environment, interrupts, self._process.stdin.fileno())
        finally:
            self.note("runs", 0)

    def note(self, word: str, value: object) -> None:
        """Tell it what is being done now."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            os.write(self._process.stdin.fileno(), f"{word} {value}\n".encode())


def watch(lines: Iterable[str], hook: Hook) -> str:
    """Follow *lines* to their end; thaw if need be, and return what is to be said about it."""
    told = dict(line.split(maxsplit=1) for line in lines)
    told = {word: value.strip() for word, value in told.items()}
    if "runs" not in told or "thawed" in told:
        return ""
    if told["runs"] != "0":
        end_group(int(told["runs"]))
    try:
        hook.run("thaw", {"AIMFUSE_POSITION": told.get("marked", "")})
    except HookFailed as exc:
        return f"`aimfuse bookmark` was killed: {exc}; the application may still be frozen"
    was_set = f"; the bookmark was set at {told['marked']}" if "marked" in told else ""
    return f"`aimfuse bookmark` was killed: the application was thawed{was_set}"


def main() -> None:
    """Be the guard: the command and its time limit are the arguments."""
    for number in _SIGNALS:  # Who ends a whole service ends the other, too: the pipe tells us.
        signal.signal(number, lambda _number, _frame: None)  # Not inherited, as ignoring would be.
    command, timeout_s = sys.argv[1:]
    said = watch(sys.stdin, Hook(command, float(timeout_s)))
    if said:
        with contextlib.suppress(OSError):
            os.write(STDERR, f"aimfuse: {said}\n".encode())


if __name__ == "__main__":
    main()
