"""Destinations that are in the settings no more, and what is kept for them.

Settings are edited by hand and may lack a table by mistake. So the account of a destination,
its directory with the cursor, goes on keeping files until a command takes it away.
"""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aimfuse.coordinator.cursor import CursorFile
from aimfuse.coordinator.retention import LOCK_S_MAX
from aimfuse.disk import Disk, try_lock
from aimfuse.errors import BusyError, StateLost
from aimfuse.journal.locks import RETENTION_LOCK

DESTINATIONS = "destinations"
TRASH = ".removed-"
"""Begins the name of an account on its way out; no destination can be called so."""

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Leftover:
    """An account without settings; `pin` is the file above which all stay, None pins none."""

    name: str
    pin: int | None


def leftovers(disk: Disk, state_dir: Path, known: Iterable[str]) -> list[Leftover]:
    """Return the accounts of destinations that are not among the *known*.

    Raises:
        OSError: the directory of accounts cannot be read.
    """
    known = set(known)
    return [
        Leftover(name, _pin(disk, state_dir / DESTINATIONS / name))
        for name in _accounts(disk, state_dir)
        if name not in known
    ]


def remove_account(disk: Disk, state_dir: Path, name: str) -> bool:
    """Take the account of *name* away: nothing is kept for it any more; blocks.

    The one step that counts is a rename. What a crash leaves of the rest goes with the next
    removal.

    Returns:
        Whether there was one.

    Raises:
        BusyError: files are being released for too long.
        OSError: as the disk gave it.
    """
    place = state_dir / DESTINATIONS / name
    fd = disk.open("retention:open", state_dir / RETENTION_LOCK, os.O_RDWR | os.O_CREAT)
    try:
        _take(fd, state_dir / RETENTION_LOCK)
        existed = disk.exists(place)
        if existed:
            trash = place.with_name(f"{TRASH}{name}-{time.time_ns()}")
            disk.rename("account:remove", place, trash)
            disk.sync_dir("account:sync_dir", place.parent)
    finally:
        disk.close(fd)
    _sweep(disk, place.parent)
    return existed


def _take(fd: int, path: Path) -> None:
    end_s = time.monotonic() + LOCK_S_MAX
    while not try_lock(fd):
        if time.monotonic() > end_s:
            raise BusyError(f"{path} stayed taken for {LOCK_S_MAX:.0f} s", hint="Try again.")
        time.sleep(_POLL_S)


def _accounts(disk: Disk, state_dir: Path) -> list[str]:
    place = state_dir / DESTINATIONS
    try:
        names = disk.listdir(place)
    except FileNotFoundError:
        return []
    return sorted(
        name for name in names
        if not name.startswith(".") and CursorFile(disk, place / name, "").exists()
    )  # fmt: skip


def _pin(disk: Disk, directory: Path) -> int | None:
    try:
        return CursorFile(disk, directory, "").read().pin
    except (StateLost, OSError):
        return 0  # What it needs is unknown: it may be everything.


def _sweep(disk: Disk, place: Path) -> None:
    """Delete what removed accounts held; what cannot be deleted waits for the next time."""
    with contextlib.suppress(OSError):
        for name in disk.listdir(place):
            if name.startswith(TRASH):
                _delete(disk, place / name)


def _delete(disk: Disk, path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for name in disk.listdir(path):
            _delete(disk, path / name)
        disk.rmdir("account:rmdir", path)
    else:
        disk.unlink("account:unlink", path)
