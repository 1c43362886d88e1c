"""Hold a store's past while it is read: nothing that is needed is pruned or changed unseen."""

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import BusyError, StoreError, UsageError
from aimfuse.journal.locks import STORE_LOCK
from aimfuse.journal.names import JournalName, parse
from aimfuse.replay.look import Look
from aimfuse.replay.past import Past, look_at, why_out_of_reach
from aimfuse.replay.pins import Pin
from aimfuse.replay.state import Phase


@contextmanager
def pinned(disk: Disk, store: Path) -> Iterator[Pin | None]:
    """Hold the history while it is read; on a medium that cannot be written nobody prunes."""
    history = store / "history"
    if not disk.exists(history):
        yield None
        return
    try:
        pin = Pin(disk, history)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            hint = "Run it as the user who replays there."
            raise UsageError(f"{history} cannot be held: {exc.strerror}", hint=hint) from exc
        yield None
        return
    try:
        yield pin
    finally:
        pin.release()


def readable(disk: Disk, store: Path, look: Look, held: contextlib.ExitStack) -> Past:
    """Return the past of a store whose mirror can be read now, keeping replayers off if need be.

    Where a file is applied without undo file nobody can tell what the mirror is meanwhile.
    """
    past = look_at(disk, store, look)
    if past.reach is None:
        why = past.state.doubt or f"it is {past.state.phase.value}"
        hint = "Wait for it; `aimfuse history` says more."
        if past.state.phase is Phase.PROMOTED:
            why = why_out_of_reach(past.state)
            hint = f"Mount it: aimfuse mount {store} MOUNTPOINT. Its past is kept by its mirrors."
        raise StoreError(f"{store} has no consistent mirror now: {why}", hint=hint)
    assert past.state.head is not None
    is_blind = past.floor.is_off or past.floor.number > past.state.head.number
    if not is_blind or not disk.exists(store / STORE_LOCK):
        return past
    fd = disk.open("restore:lock", store / STORE_LOCK, os.O_RDONLY | os.O_NONBLOCK)
    held.callback(disk.close, fd)
    if not disk.take_lock(fd):
        text = f"{store} is being replayed without history, so its mirror cannot be read meanwhile"
        raise BusyError(text, hint="Stop the replayer, or let it keep history and try again.")
    past = look_at(disk, store, look)
    assert past.state.head is not None
    names = map(parse, disk.listdir(store / "work"))
    following = past.state.head.number + 1
    if any(isinstance(one, JournalName) and one.number == following for one in names):
        text = f"{store}: file {following} may be half applied"
        raise StoreError(text, hint=f"Run `aimfuse replay --once {store}` first.")
    return past
