"""How far back a store's past reaches, without listing its history: by what its replayer says.

A history has hundreds of thousands of files. Its replayer knows the oldest one that counts, and
its report says it. What it says is held against the state and the files at both ends; where they
do not bear it out, whoever asks has to list.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk, read_file
from aimfuse.errors import JournalError
from aimfuse.journal.excerpt import read_front
from aimfuse.journal.names import JournalName
from aimfuse.replay.ack import ACK_BYTES_MAX
from aimfuse.replay.kept import HISTORY, PRUNED, Floor, find_first
from aimfuse.replay.look import Look
from aimfuse.replay.state import Head, Json, StoreState
from aimfuse.replay.store import ACK
from aimfuse.replay.undo import read_undo
from aimfuse.units import Epoch, FileNumber, natural


@dataclass(frozen=True, slots=True)
class Glance:
    """The oldest state that can be had, why none before it, and what the history holds."""

    oldest: Head
    why: str
    files: int
    size_bytes: int


def glance(disk: Disk, look: Look, store: Path, state: StoreState, floor: Floor) -> Glance | None:
    """Return what can be said of the past of a store that has a mirror; None: list it.

    Raises:
        OSError: a file could not be read.
    """
    assert state.head is not None
    said = _said(disk, store)
    if said is None or floor.is_off:
        return None
    name, size = said
    first, why = find_first(state, floor)
    base = name.number - 1
    if not first <= base < state.head.number:
        return None
    newest = JournalName(state.head.epoch, state.head.number)
    history = store / HISTORY
    for one in (name, newest):
        if look.entry(history / one.sealed) is None:
            return None
    try:
        oldest = read_undo(disk, history, name, read_front).mark.head
    except (FileNotFoundError, JournalError):  # Pruned meanwhile; listing says the rest.
        return None
    return Glance(oldest, why if base == first else PRUNED, state.head.number - base, size)


def _said(disk: Disk, store: Path) -> tuple[JournalName, int] | None:
    try:
        ack = json.loads(read_file(disk, store / ACK, ACK_BYTES_MAX))
        said: Json = ack["history"]
        name = JournalName(Epoch(natural(said["epoch"])), FileNumber(natural(said["oldest"])))
        return name, natural(said["bytes"])
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return None
