"""Set a bookmark: freeze the application, flush what the kernel holds, mark, thaw."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError, BusyError, HookFailed, explain
from aimfuse.manager import control_client
from aimfuse.manager.control_client import Answer
from aimfuse.manager.fields import Fields
from aimfuse.manager.guard import Guard
from aimfuse.manager.hook import Hook, Interrupted, Interrupts

ANSWER_S = 5.0
"""What the driver gets beside the time that it may wait for room."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is asked for; *timeout_s* is for each of freezing, flushing, marking, thawing."""

    state_dir: Path
    label: str
    timeout_s: float
    hook: Hook | None = None


def set_mark(wanted: Mark) -> Answer:
    """Set the bookmark and return the driver's answer, with ``flushed`` and ``problem`` in it.

    ``problem`` is None, or says what went wrong once the bookmark was set: the thaw hook failed,
    or a signal came. `Mark.hook` was run with thaw whenever it was run with freeze.

    Raises:
        BusyError: not mounted, or no room in time. No bookmark was set.
        HookFailed: freeze failed. No bookmark was set.
        Interrupted: a signal came before the bookmark was set.
        DriverError: the driver refused, such as a label that is taken.
    """
    status = Fields(control_client.call(wanted.state_dir, {"cmd": "status"}))
    request = {"cmd": "bookmark", "label": wanted.label, "timeout_s": wanted.timeout_s}
    control_client.call(wanted.state_dir, {**request, "check": True})  # Before anything freezes.
    volumes = [one.text("name") for one in status.parts("volumes")]
    mountpoint = Path(status.text("mountpoint"))

    def mark() -> Answer:
        flushed = _flush([mountpoint / name for name in volumes], wanted.timeout_s)
        try:
            answer = control_client.call(wanted.state_dir, request, wanted.timeout_s + ANSWER_S)
        except (BusyError, Interrupted) as exc:
            exc.args = (f"{exc}; whether the bookmark was set is not known",)
            raise
        return {**answer, "label": wanted.label, "flushed": flushed, "problem": None}

    if wanted.hook is None:
        return mark()
    is_directory = Path(status.text("image")).is_dir()
    environment = {
        "AIMFUSE_LABEL": wanted.label,
        "AIMFUSE_IMAGE": status.text("image"),
        "AIMFUSE_MOUNTPOINT": str(mountpoint),
        "AIMFUSE_VOLUME": str(mountpoint if is_directory else mountpoint / volumes[0]),
    }
    return _frozen(wanted.hook, environment, mark)


def _frozen(hook: Hook, environment: dict[str, str], mark: Callable[[], Answer]) -> Answer:
    """Do *mark* between freeze and thaw."""
    interrupts = Interrupts()
    answer: Answer | None = None
    failure: AimfuseError | None = None
    with interrupts.caught(), Guard(hook, environment) as guard:
        position = ""
        try:
            _freeze(guard, environment, interrupts)
            with interrupts.may_come():
                answer = mark()
            position = f"{answer['epoch']}:{answer['seq']}"
            guard.note("marked", position)
        except AimfuseError as exc:
            failure = exc
        finally:  # Also for a fault of ours.
            thaw = _thaw(guard, {**environment, "AIMFUSE_POSITION": position})
    if answer is None:
        assert failure is not None
        failure.args = (f"{failure}; {thaw or 'the application was thawed'}",)
        raise failure
    signalled = str(Interrupted(interrupts.noted)) if interrupts.noted else ""
    return {**answer, "problem": thaw or signalled or None}


def _freeze(guard: Guard, environment: dict[str, str], interrupts: Interrupts) -> None:
    try:
        guard.run("freeze", environment, interrupts)
    except (HookFailed, Interrupted) as exc:
        exc.args = (f"{exc}; no bookmark was set",)
        raise


def _thaw(guard: Guard, environment: dict[str, str]) -> str:
    try:
        guard.run("thaw", environment)
    except HookFailed as exc:
        return f"{exc}; the application may still be frozen"
    return ""


def _flush(paths: list[Path], timeout_s: float) -> bool:
    """Have the kernel hand over what it holds of the volumes; False where we may not look.

    Raises:
        BusyError: it takes too long.
        OSError: the driver refused it.
    """
    outcome: list[Any] = []

    def work() -> None:
        try:
            for path in paths:
                _sync(path)
        except OSError as exc:
            outcome.append(exc)
        else:
            outcome.append(None)

    thread = threading.Thread(target=work, daemon=True)  # Nothing interrupts an fsync.
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        hint = "The spool may be full: see `aimfuse status`. Or give a longer --timeout."
        raise BusyError("the volume could not be flushed in time", hint=hint)
    if isinstance(outcome[0], PermissionError):
        return False
    if outcome[0] is not None:
        raise AimfuseError(f"the volume could not be flushed: {explain(outcome[0])}")
    return True


def _sync(path: Path) -> None:
    disk = Disk()
    try:
        fd = disk.open("mark:open", path, os.O_RDONLY)
    except FileNotFoundError:
        return  # Renamed or removed meanwhile.
    try:
        disk.fsync("mark:sync", fd)
    finally:
        disk.close(fd)
