"""Keep one child process running: restart it when it dies, end it with us, in every case.

The child gets SIGTERM when the supervisor is cancelled, SIGKILL when it does not go in time,
and SIGKILL from the kernel if this process dies without a word.
"""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import trio

log = logging.getLogger(__name__)

# Between fork and exec in a process with threads no Python of ours may run, so a small program
# asks for the signal and then becomes the child. Asking comes too late if the parent is gone
# already, hence the look at its id.
_LAUNCHER = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Waits between restarts double up to a ceiling; a steady run starts over at the least."""

    wait_s_min: float = 0.5
    wait_s_max: float = 30.0
    steady_s: float = 60.0
    stop_s_max: float = 10.0

    def wait_s(self, failures: int) -> float:
        """Return the pause after *failures* short runs in a row, from 1."""
        return min(self.wait_s_max, self.wait_s_min * 2.0 ** min(failures - 1, 32))


class Supervisor:
    """One child process. `pid` is None while it does not run; `restarts` counts its deaths."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        policy: RestartPolicy | None = None,
    ) -> None:
        """Supervise *command*, called *name* in the log. Its output goes where ours goes."""
        self.name = name
        self.pid: int | None = None
        self.restarts = 0
        self._command = tuple(command)
        self._policy = policy or RestartPolicy()

    async def run(self) -> NoReturn:
        """Keep the child running until cancelled; then it is gone when this returns.

        Call it from a task on the main thread: the kernel ends the child with the *thread*
        that started it.
        """
        failures = 0
        while True:
            started_s = trio.current_time()
            code = await self._run_once()
            steady = trio.current_time() - started_s >= self._policy.steady_s
            failures = 1 if steady else failures + 1
            self.restarts += 1
            wait_s = self._policy.wait_s(failures)
            log.warning("%s ended with %d; again in %.1f s", self.name, code, wait_s)
            await trio.sleep(wait_s)

    async def _run_once(self) -> int:
        """Start the child and return its exit code; if cancelled, end it first."""
        try:
            process = self._start()
        except OSError as exc:
            log.warning("%s cannot be started: %s", self.name, exc)
            await trio.lowlevel.checkpoint()
            return -1
        self.pid = process.pid
        try:
            with _pidfd(process.pid) as pidfd:
                try:
                    await trio.lowlevel.wait_readable(pidfd)
                finally:
                    with trio.CancelScope(shield=True):
                        await self._stop(process, pidfd)
        finally:
            self.pid = None
        return process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()))
        return subprocess.Popen(
            (*launcher, *self._command),
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for us: we end it in order.
        )

    async def _stop(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        if process.poll() is None:
            process.terminate()
        with trio.move_on_after(self._policy.stop_s_max):
            await trio.lowlevel.wait_readable(pidfd)
        if process.poll() is None:
            log.warning("%s did not end in time and is killed", self.name)
            process.kill()
            await trio.lowlevel.wait_readable(pidfd)
        process.wait()  # It is gone; this takes its exit code.


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)
