"""Wait for destinations to catch up, and for a mount to go away."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from aimfuse import config as configuration
from aimfuse.config.keys import RESERVED
from aimfuse.errors import (
    BusyError,
    ConfigError,
    HaltedError,
    Refused,
    TransportError,
    Unavailable,
    UsageError,
)
from aimfuse.journal.locks import GROUP_LOCK
from aimfuse.manager import control_client, users
from aimfuse.manager.control_client import Answer
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import lock_holder, read_json, read_slots
from aimfuse.manager.held import Held, read_held
from aimfuse.manager.target import mounts
from aimfuse.units import counted

POLL_S = 0.1
STOP_S_MAX = 600.0
"""How long a driver may take to write back what it holds before it goes."""

HOPELESS = {"halted", "refused", "paused", "reserved", "superseded"}
"""States that no waiting ends: somebody has to act."""


class Stage(Enum):
    """How far a record must have come before `flush` returns."""

    DURABLE = "durable"
    RECEIVED = "received"
    APPLIED = "applied"


class InUse(BusyError):
    """The mount still has users; nothing was changed."""


_WITHOUT_MIRROR = {"empty", "syncing", "catching_up"}

_STATUS_KEY = {Stage.RECEIVED: "received", Stage.APPLIED: "applied"}


@dataclass(frozen=True, slots=True)
class Behind:
    """A destination that has not come to the file yet, and where it is."""

    name: str
    at_number: int
    state: str
    error: str
    held: Held | None = None
    """What its store holds back for, where that keeps it from getting there."""

    def describe(self, number: int) -> str:
        """Return how far it is from file *number*, for people."""
        left = number - self.at_number
        what = f"{counted(left, 'file')} behind" if left > 0 else "not consistent yet"
        error = f": {self.error}" if self.error else ""
        return f"{self.name} is {what} ({self.state}{error})"


def flush(
    state_dir: Path, stage: Stage, timeout_s: float, only: Sequence[str] = (),
    say: Callable[[str], None] = lambda _line: None,
) -> Answer:  # fmt: skip
    """Make everything accepted so far come to *stage* everywhere, or at the *only* named.

    Who is kept from it on purpose is told to *say* at once.

    Returns:
        ``number`` and ``epoch`` of the file that holds the newest of it, the ``stage``, and
        the ``destinations`` that were waited for.

    Raises:
        BusyError: the group is not mounted.
        UsageError: there is no destination to wait for, or none of that name.
        Unavailable: the time is over; the message says who is behind. All of it is durable
            in the journal, and goes on its way.
        Refused: a destination will not get there before somebody acts.
    """
    end_s = time.monotonic() + timeout_s
    names: list[str] = []
    if stage is not Stage.DURABLE:
        names = destination_names(
            state_dir, only, or_else=", or use --wait durable", timeout_s=timeout_s
        )
    answer = control_client.call(state_dir, {"cmd": "roll"}, timeout_s)
    number = Fields(answer).count("number")
    told: set[str] = set()
    while behind := [b for name in names if (b := _behind(state_dir, name, stage, number))]:
        if hopeless := [one for one in behind if one.state in HOPELESS]:
            raise _not_there(stage, number, hopeless, timed_out=False)
        for one in behind:
            if one.held and (line := f"{one.name}: {one.error}. {one.held.remedy}") not in told:
                told.add(line)
                say(line)
        if time.monotonic() >= end_s:
            raise _not_there(stage, number, behind, timed_out=True)
        time.sleep(POLL_S)
    return {
        "number": number,
        "epoch": Fields(answer).count("epoch"),
        "stage": stage.value,
        "destinations": names,
    }


def destination_names(
    state_dir: Path, only: Sequence[str], *, or_else: str = "", timeout_s: float = 0.0
) -> list[str]:
    """Return the names of a mounted group's destinations, or the *only* ones that are wanted.

    Raises:
        BusyError: the group is not mounted, or its driver does not answer in *timeout_s*, which
            counts as no less than a status may take.
        UsageError: there is none, or none of that name.
    """
    status = _status(state_dir, timeout_s)
    known = [
        one.text("name") for one in status.parts("destinations") if one.text("state") != "removed"
    ]
    if unknown := [name for name in only if name not in known]:
        hint = f"Known: {', '.join(known) or 'none'}."
        raise UsageError(f"no destination is called {unknown[0]!r}", hint=hint)
    reserved = {
        one.text("name") for one in status.parts("destinations") if one.text("url") == RESERVED
    }
    names = list(only) or [name for name in known if name not in reserved]
    if not names:
        raise UsageError(
            f"{state_dir} has no destination to wait for",
            hint=f"Add one with aimfuse mount --to URL{or_else}.",
        )
    return names


def _behind(state_dir: Path, name: str, stage: Stage, number: int) -> Behind | None:
    """Return where the destination is, or None when it is there."""
    place = state_dir / "destinations" / name
    status = Fields(read_json(place / "status.json"))  # First: a copy may begin in between.
    cursor, problem = read_slots(place / "cursor")
    at = Fields(cursor)
    key = "number" if stage is Stage.RECEIVED else "applied"
    reached = max(at.count(key), status.part(_STATUS_KEY[stage]).count("number"))
    phase = status.part("ack").text("phase")
    consistent = at.text("state") == "shipping" and phase in {"", "consistent"}
    # While a copy is on its way these numbers are where that begins, and not what is there; and
    # a first one is of no use before the journal behind it has come, too.
    is_copying = bool(cursor and cursor.get("sync")) or phase in _WITHOUT_MIRROR
    is_begun = at.text("state") in {"shipping", "halted"} and not is_copying
    if reached >= number and (consistent or (stage is Stage.RECEIVED and is_begun)):
        return None
    state = "halted" if at.text("state") == "halted" else status.text("state") or "new"
    if state == "paused" and not is_paused(state_dir, name):
        state = "stopped"  # Said by a coordinator that has gone; the next one will begin.
    error = problem or at.text("reason") or status.text("error")
    held = read_held(status.part("ack"))
    if error or (stage is Stage.RECEIVED and not held.is_closed):
        return Behind(name, reached, state, error)
    return Behind(name, reached, state, held.describe(), held or None)


def is_paused(state_dir: Path, name: str) -> bool:
    """Tell whether the settings have the destination paused; one that they lack counts as such."""
    try:
        return configuration.load(state_dir).destination(name).paused
    except (ConfigError, UsageError):
        return True


def _not_there(
    stage: Stage, number: int, behind: Sequence[Behind], *, timed_out: bool
) -> TransportError:
    who = "; ".join(one.describe(number) for one in behind)
    message = f"durable here, but not {stage.value} everywhere: {who}"
    if remedies := [one.held.remedy for one in behind if one.held]:
        return Unavailable(message, hint=" ".join(dict.fromkeys(remedies)))
    if timed_out:
        hint = "It goes on by itself; aimfuse dashboard shows how far. Or give a longer --timeout."
        return Unavailable(message, hint=hint)
    return Refused(message, hint="See aimfuse status for what to do.")


def unmount(
    state_dir: Path, timeout_s: float, find_users: Callable[[Path], list[str]] = users.mount_users
) -> Path | None:
    """Stop the group's driver once nobody uses its mount, and wait until both are gone.

    Users get *timeout_s* seconds to go: a detached loop device takes a moment. So does a driver
    to say where it is mounted. Nothing is forced, and the unmount is never a lazy one with
    somebody still writing.

    Returns:
        The mountpoint that is gone.

    Raises:
        BusyError: not mounted; still in use, and by whom (nothing was changed then); or the
            driver is still busy after `STOP_S_MAX`.
        HaltedError: it is gone, but its end was not a clean one: the disk failed or is full.
    """
    try:
        status = _status(state_dir, timeout_s)
    except control_client.NotMounted as exc:
        if lock_holder(state_dir / GROUP_LOCK) is not None:  # It is starting or closing.
            raise
        hint = "There is nothing to unmount."
        raise control_client.NotMounted(f"{state_dir}: not mounted", hint=hint) from exc
    where = status.text("mountpoint")
    mountpoint = Path(where) if where else None
    try:
        if mountpoint is not None:
            _wait_unused(mountpoint, timeout_s, find_users)
        with contextlib.suppress(control_client.DriverGone):  # So it did what it was asked to.
            _stop(state_dir, mountpoint, find_users)
    except InUse as exc:
        raise _explained(exc, _status(state_dir, timeout_s)) from exc
    end_s = time.monotonic() + STOP_S_MAX
    while lock_holder(state_dir / GROUP_LOCK) is not None or mountpoint in mounts():
        if time.monotonic() >= end_s:
            raise BusyError(
                f"{state_dir}: the driver is still writing back",
                hint="Leave it alone; aimfuse status shows when it is gone.",
            )
        time.sleep(POLL_S)
    if status.text("state") != "halted":
        _check_clean(state_dir)
    return mountpoint


def unmount_view(mountpoint: Path, timeout_s: float) -> None:
    """Unmount a view of a store's past once nobody uses it; what was written to it is gone then.

    Raises:
        BusyError: still in use, and by whom, or the system says no. Nothing was changed.
    """
    _wait_unused(mountpoint, timeout_s, users.mount_users)
    command = ["fusermount3", "-u", "--", str(mountpoint)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as exc:
        hint = "Unmount it with umount as root."
        raise BusyError(f"{command[0]}: {exc.strerror}", hint=hint) from exc
    if done.returncode:
        raise BusyError(done.stderr.strip(), hint="End whoever uses it, then repeat.")


def _status(state_dir: Path, timeout_s: float) -> Fields:
    """Ask the driver how it is; whoever has time to wait lets a slow one have that time."""
    wait_s = max(control_client.CALL_S_MAX, timeout_s)
    return Fields(control_client.call(state_dir, {"cmd": "status"}, wait_s))


def _check_clean(state_dir: Path) -> None:
    checkpoint, _ = read_slots(state_dir / "checkpoint")
    if (
        checkpoint is None
        or checkpoint.get("clean")
        or lock_holder(state_dir / GROUP_LOCK) is not None
    ):
        return
    raise HaltedError(
        f"{state_dir}: unmounted, but its end was not a clean one",
        hint="Its log says why. Make room or look at the disks, then mount it again before "
        "anything else uses the image: recovery redoes the journal.",
    )


def _stop(
    state_dir: Path, mountpoint: Path | None, find_users: Callable[[Path], list[str]]
) -> None:
    try:
        control_client.call(state_dir, {"cmd": "stop"}, STOP_S_MAX)
    except control_client.DriverError as exc:
        # Somebody came in the last moment, or is one that only the kernel can see.
        found = find_users(mountpoint) if mountpoint else []
        raise (_in_use(mountpoint, found) if mountpoint and found else exc) from exc


def _in_use(mountpoint: Path, found: list[str]) -> InUse:
    return InUse(
        f"{mountpoint} is in use by {users.named(found)}",
        hint="Unmount file systems, detach loop devices (losetup -d) and end programs first, "
        "then repeat.",
    )


def _explained(exc: InUse, status: Fields) -> InUse:
    """Say so if the users cannot go: who waits for a full spool cannot even be killed."""
    if status.text("state") != "spool-full":
        return exc
    return InUse(
        f"{exc}; its writers wait for room: {status.text('reason')}",
        hint="Bring the destinations back, free space, or take a destination out of group.toml: "
        "until then not even kill ends a writer. Then repeat.",
    )


def _wait_unused(
    mountpoint: Path, timeout_s: float, find_users: Callable[[Path], list[str]]
) -> None:
    end_s = time.monotonic() + timeout_s
    while found := find_users(mountpoint):
        if time.monotonic() >= end_s:
            raise _in_use(mountpoint, found)
        time.sleep(POLL_S)
