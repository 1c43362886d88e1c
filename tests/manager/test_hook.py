"""A hook that has to be ended leaves nothing running that it started."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from aimfuse.manager import hook
from aimfuse.manager.hook import Hook, Interrupted, Interrupts
from tests.e2e.host import is_running, until

LEAVES_ONE = """\
#!/bin/sh
(trap '' TERM; exec sleep 600) &
echo $! > "${0%.sh}.pid"
wait
"""


@pytest.fixture
def leaves_one(tmp_path: Path) -> Path:
    script = tmp_path / "hook.sh"
    script.write_text(LEAVES_ONE)
    script.chmod(0o755)
    return script


def interrupt_when_there(path: Path) -> None:
    """Be the user who presses Ctrl-C once the hook has started something."""
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    os.kill(os.getpid(), signal.SIGINT)


def test_what_a_hook_started_ends_with_it_even_if_it_does_not_hear(
    leaves_one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "KILL_S", 0.2)
    pid, interrupts = leaves_one.with_suffix(".pid"), Interrupts()
    user = threading.Thread(target=interrupt_when_there, args=(pid,))
    user.start()
    with pytest.raises(Interrupted), interrupts.caught():
        Hook(str(leaves_one), timeout_s=60.0).run("freeze", {}, interrupts)
    user.join()
    until(lambda: not is_running(int(pid.read_text())))


def test_a_hook_that_was_just_being_started_when_a_signal_came_is_ended_as_well(
    leaves_one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "KILL_S", 0.2)
    pid, interrupts = leaves_one.with_suffix(".pid"), Interrupts()

    begin = subprocess.Popen

    def begin_slowly(*words: object, **how: object) -> object:
        """Come back when the program is at work and a signal has come."""
        child = begin(*words, **how)  # type: ignore[call-overload]
        interrupt_when_there(pid)
        return child

    monkeypatch.setattr(subprocess, "Popen", begin_slowly)
    with pytest.raises(Interrupted), interrupts.caught():
        Hook(str(leaves_one), timeout_s=60.0).run("freeze", {}, interrupts)
    until(lambda: not is_running(int(pid.read_text())))
