"""Have changed settings taken over by whoever serves the group, and say what came of it."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from aimfuse import config
from aimfuse.config import CONFIG_NAME
from aimfuse.errors import AimfuseError, BusyError, ConfigError
from aimfuse.journal.locks import SHIP_LOCK
from aimfuse.manager import control_client
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import lock_holder, read_json

POLL_S = 0.05
WAIT_S_MAX = 10.0
REPORT_NAME = "coordinator.json"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Which keys are in force now, which at the next mount, and who is there to obey."""

    applied: tuple[str, ...]
    at_next_mount: tuple[str, ...]
    mounted: bool
    shipping: bool


def reload(state_dir: Path) -> Reloaded:
    """Check the settings, have driver and coordinator take them over, and wait for both.

    The coordinator then tries again at once what it had put off.

    Raises:
        ConfigError: something is wrong; nothing was taken over.
        BusyError: one of the two did not answer, or the file changed meanwhile.
    """
    settings = config.load(state_dir)
    config.check_places(state_dir / CONFIG_NAME, settings.destinations)
    digest = settings.digest
    applied: list[str] = []
    later: list[str] = []
    mounted = True
    try:
        answer = Fields(control_client.call(state_dir, {"cmd": "reload"}))
    except control_client.NotMounted:
        mounted = False
    else:
        if answer.text("digest") != digest:
            raise _changed(state_dir)
        applied += map(str, answer.items("applied"))
        later += map(str, answer.items("at_next_mount"))
    shipping = lock_holder(state_dir / SHIP_LOCK) is not None
    if shipping:
        applied += await_coordinator(state_dir, digest)
        _retry_now(state_dir)
    return Reloaded(tuple(applied), tuple(later), mounted, shipping)


def _retry_now(state_dir: Path) -> None:
    """Have the coordinator try again at once what waits, also where no setting changed."""
    pid = Fields(read_json(state_dir / REPORT_NAME)).count("pid")
    # It has reported, so it heeds the signal by now; and it is nobody else while it has the lock.
    if pid and pid == lock_holder(state_dir / SHIP_LOCK):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGHUP)


def follow(state_dir: Path) -> None:
    """Wait until whoever ships follows the settings as they are; the driver reads them anyway.

    If nobody ships, a driver that can be asked looks at once whether somebody has to.

    Raises:
        ConfigError, BusyError: as `await_coordinator`.
    """
    digest = config.load(state_dir).digest
    if lock_holder(state_dir / SHIP_LOCK) is None:
        with contextlib.suppress(AimfuseError):
            control_client.call(state_dir, {"cmd": "reload"})
    await_coordinator(state_dir, digest)


def await_coordinator(state_dir: Path, digest: str) -> list[str]:
    """Wait until the coordinator follows the settings of *digest*; return what they changed.

    Raises:
        ConfigError: it refuses them.
        BusyError: it does not take them over.
    """
    end_s = time.monotonic() + WAIT_S_MAX
    path = state_dir / CONFIG_NAME
    while (pid := lock_holder(state_dir / SHIP_LOCK)) is not None:
        told = Fields(read_json(state_dir / REPORT_NAME))
        if told.count("pid") == pid and told.text("settings") == digest:
            return [str(one) for one in told.items("changed")]
        if time.monotonic() > end_s:
            if error := told.text("error"):
                raise ConfigError(path, "file", error, hint=told.text("hint"))
            raise BusyError(
                f"the coordinator (process {pid}) has not taken the settings over",
                hint="Look at `aimfuse status` and at its log, then try again.",
            )
        time.sleep(POLL_S)
    return []  # It ended; the next one reads them anew.


def _changed(state_dir: Path) -> BusyError:
    return BusyError(f"{state_dir / CONFIG_NAME} changed meanwhile", hint="Run this again.")
