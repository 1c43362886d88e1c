"""What a destination's status says of copies: what one will bring, and how far one is."""

from aimfuse.coordinator.acks import Ack
from aimfuse.coordinator.cursor import SyncState
from aimfuse.journal.fold import Fold


def folded(fold: Fold, applied: int) -> dict[str, int] | None:
    """Return what left the spool unsent, None if the mirror, at file *applied*, has it."""
    if fold.through <= applied:
        return None
    return {"through": int(fold.through), "dirty_bytes": fold.dirty_bytes(applied)}


def step(sync: SyncState, ack: Ack | None) -> str:
    """Return what is done to the copy now: copying, journal, checking or switching."""
    theirs = ack.copy_of(sync.sync_id) if ack else None
    if theirs is None or not theirs.done or theirs.round < sync.round:
        return "copying"
    if ack and ack.phase == "switching":
        return "switching"
    return "checking" if sync.to is not None and theirs.received >= sync.to else "journal"
