"""Take a store over from the replayer that has it, for as long as a command needs it.

``STORE/wanted`` is locked by whoever wants the store, and so it ends with him, however he ends.
A replayer looks at it in each round, lets the store go at once, and takes it up again afterwards.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import BusyError

WANTED = "wanted"
LET_GO_S_MAX = 60.0
"""A round in the middle of a large file takes seconds."""

_POLL_S = 0.02
_MODE = 0o644
"""The replayer may be another user, and has to see the lock."""


def is_wanted(disk: Disk, store: Path) -> bool:
    """Tell whether somebody waits for the store, or has it from us; costs one look if not.

    Raises:
        OSError: as the disk gave it.
    """
    path = store / WANTED
    if not disk.exists(path):
        return False
    try:
        fd = disk.open("handover:look", path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):  # Another user's: he waits for the lock in vain.
        return False
    try:
        return not disk.take_lock(fd, shared=True)
    finally:
        disk.close(fd)


@contextmanager
def wanted(disk: Disk, store: Path, take: Callable[[], None]) -> Iterator[None]:
    """Have replayers let the store go, and *take* it, which raises `BusyError` until they have.

    Raises:
        BusyError: another command wants the store, too, or who has it does not let it go.
        OSError: the store's directory cannot be written to.
    """
    path = store / WANTED
    fd = disk.open("handover:want", path, os.O_RDWR | os.O_CREAT, _MODE)
    try:
        _insist(lambda: _want(disk, store, fd))
        _insist(take)
        yield
        with contextlib.suppress(OSError):
            disk.unlink("handover:unlink", path)
    finally:
        disk.close(fd)


def _want(disk: Disk, store: Path, fd: int) -> None:
    if not disk.take_lock(fd):  # Also for the moment in which a replayer looks at it.
        text = f"another command is at work on {store}"
        raise BusyError(text, hint="Wait for it, and try again.")


def _insist(take: Callable[[], None]) -> None:
    ends_s = time.monotonic() + LET_GO_S_MAX
    while True:
        try:
            take()
        except BusyError:
            if time.monotonic() >= ends_s:
                raise
            time.sleep(_POLL_S)
        else:
            return
