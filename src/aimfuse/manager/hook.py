"""Run an operator's hook: ``CMD freeze`` before a mark is set, ``CMD thaw`` after it, always.

Once freeze was begun, thaw is run whatever happens: freeze failed or took too long, the mark could
not be set, Ctrl-C, SIGTERM, SIGHUP. A hook is run without a shell, in a session of its own, so that
a signal meant for us does not end it half-way.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from types import FrameType

from aimfuse.errors import AimfuseError, HookFailed, UsageError

STDERR = 2
KILL_S = 5.0
"""How long a hook that took too long gets to end by itself."""
_POLL_S = 0.02

# A guard learns whom to end before there is anything to be ended: its pipe stays open in here
# until the hook is what runs, so it does not end in between. Python ignores two signals; a hook
# must not. No byte code is written: what is frozen may be the file system that it lies on.
_LAUNCHER = """
import contextlib, os, signal, sys
guard = int(sys.argv[1])
with contextlib.suppress(OSError):
    os.write(guard, b"runs %d\\n" % os.getpid())
os.set_inheritable(guard, False)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as exc:
    sys.exit(f"{sys.argv[2]}: {exc.strerror}")
"""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGNALLED = 128


class Interrupted(AimfuseError):
    """A signal ended the work; whatever was frozen is thawed."""

    def __init__(self, number: int) -> None:
        """Name the signal; the exit code is that of a shell."""
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = _SIGNALLED + number  # type: ignore[misc]


class Hook:
    """A command of the operator's, and how long each run of it may take."""

    def __init__(self, command: str, timeout_s: float) -> None:
        """Split *command* as a shell does, without running one.

        Raises:
            UsageError: it is no command, or there is no such program.
        """
        hint = "Name a program that takes freeze or thaw as its last argument."
        try:
            self._words = shlex.split(command)
        except ValueError as exc:
            raise UsageError(f"{command!r} is no command: {exc}", hint=hint) from exc
        if not self._words or shutil.which(self._words[0]) is None:
            raise UsageError(f"{command!r} cannot be run: there is no such program", hint=hint)
        self.command = command
        self.timeout_s = timeout_s

    def run(
        self,
        phase: str,
        environment: Mapping[str, str],
        interrupts: "Interrupts | None" = None,
        guard: int | None = None,
    ) -> None:
        """Run it with *phase* as its last argument; what it prints goes to standard error.

        Signals that *interrupts* notes end it while it is waited for: not while it is started,
        when it may run already and nobody knows of it, nor while it is being ended. *guard* is the
        pipe to a `Guard`, which hears of the process.

        Raises:
            HookFailed: it could not be started, failed, or took too long and was ended.
            Interrupted: a signal came, and it was ended.
        """
        launcher = [sys.executable, "-B", "-I", "-S", "-c", _LAUNCHER, str(guard)]
        try:
            child = subprocess.Popen(
                [*([] if guard is None else launcher), *self._words, phase],
                stdin=subprocess.DEVNULL, stdout=STDERR, start_new_session=True,
                pass_fds=[] if guard is None else [guard],
                env={**os.environ, **environment, "AIMFUSE_PHASE": phase},
            )  # fmt: skip
        except OSError as exc:
            raise HookFailed(f"`{self._shown(phase)}` cannot be run: {exc.strerror}") from exc
        try:
            with interrupts.may_come() if interrupts else contextlib.nullcontext():
                code = child.wait(self.timeout_s)
        except subprocess.TimeoutExpired as exc:
            message = f"`{self._shown(phase)}` took longer than {self.timeout_s:g} s"
            raise HookFailed(message) from exc
        finally:
            if child.poll() is None:
                end_group(child.pid, child)
        if code:
            raise HookFailed(f"`{self._shown(phase)}` failed with exit code {code}")

    def _shown(self, phase: str) -> str:
        return shlex.join([*self._words, phase])


def end_group(pid: int, leader: subprocess.Popen[bytes] | None = None) -> None:
    """End a hook that is still running, and all that it started; twice, if need be.

    It is the group *pid* that has to be gone, not the hook alone: a shell that dies of its signal
    may leave what takes its time over it, or what it was just starting and has heard nothing.
    *leader* is the hook, where it is ours to be waited for.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(OSError):
            os.killpg(pid, number)
        end_s = time.monotonic() + KILL_S
        while _is_running(pid, leader) and time.monotonic() < end_s:
            time.sleep(_POLL_S)


def _is_running(pid: int, leader: subprocess.Popen[bytes] | None) -> bool:
    """Tell whether the hook runs, or anything of its group that we may signal.

    A hook that is not ours to be waited for runs as long as there is anything at all.
    """
    if leader is not None and leader.poll() is None:
        return True
    try:
        os.killpg(pid, 0)
    except PermissionError:  # Such as all that sudo runs.
        return leader is None
    except OSError:
        return False
    return True


class Interrupts:
    """Turns the first signal that would end this process into `Interrupted`, while it may come."""

    def __init__(self) -> None:
        self.noted = 0
        self._is_open = False

    @contextlib.contextmanager
    def caught(self) -> Generator[None]:
        """Hold signals back but where `may_come` lets the first one in; Ctrl-Z stops nothing."""
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, lambda _number, _frame: None)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def may_come(self) -> Generator[None]:
        """Let the first signal end what is done here.

        Raises:
            Interrupted: one came, in here or shortly before.
        """
        self._is_open = True
        try:
            if self.noted:
                raise Interrupted(self.noted)
            yield
        finally:
            self._is_open = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        first, self.noted = not self.noted, self.noted or number
        if first and self._is_open:
            raise Interrupted(number)
