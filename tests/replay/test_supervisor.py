"""A supervised process is restarted when it dies and never outlives its supervisor."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from aimfuse.supervisor import RestartPolicy, Supervisor
from tests.replay.stores import until

QUICK = RestartPolicy(wait_s_min=0.01, wait_s_max=0.05, stop_s_max=0.5)
SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # It went before or while it was read.
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def next_pid(supervisor: Supervisor, after: int | None = None) -> int:
    await until(lambda: supervisor.pid not in {None, after})
    assert supervisor.pid is not None
    return supervisor.pid


@pytest.mark.expects_warnings
async def test_a_child_that_dies_is_started_again() -> None:
    supervisor = Supervisor("sleeper", SLEEPER, policy=QUICK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        first = await next_pid(supervisor)
        os.kill(first, signal.SIGKILL)
        second = await next_pid(supervisor, first)
        assert is_alive(second)
        assert supervisor.restarts == 1
        nursery.cancel_scope.cancel()
    assert not is_alive(second)
    assert supervisor.pid is None


@pytest.mark.expects_warnings
async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = (sys.executable, "-S", "-c", STUBBORN, str(ready))
    supervisor = Supervisor("stubborn", command, policy=QUICK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        pid = await next_pid(supervisor)
        await until(ready.exists)
        nursery.cancel_scope.cancel()
    assert not is_alive(pid)


@pytest.mark.expects_warnings
async def test_a_command_that_cannot_start_is_tried_again() -> None:
    supervisor = Supervisor("nothing", ("/does/not/exist",), policy=QUICK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await until(lambda: supervisor.restarts >= 3)
        nursery.cancel_scope.cancel()


def test_waits_double_up_to_the_ceiling() -> None:
    policy = RestartPolicy(wait_s_min=0.5, wait_s_max=4.0)
    assert [policy.wait_s(failures) for failures in (1, 2, 3, 4, 5, 500)] == [0.5, 1, 2, 4, 4, 4]


PARENT = """
import sys, trio
from aimfuse.supervisor import Supervisor
async def main():
    supervisor = Supervisor("child", [sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        while supervisor.pid is None:
            await trio.sleep(0.01)
        await trio.sleep(0.3)
        print(supervisor.pid, flush=True)
trio.run(main)
"""


async def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(await trio.to_thread.run_sync(parent.stdout.readline))
        assert is_alive(child)
        parent.kill()
    await until(lambda: not is_alive(child))
