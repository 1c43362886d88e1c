"""What a destination's status says of copies: what one will bring, and how far one is."""

from collections.abc import Sequence
from typing import Any

from aimfuse.coordinator.acks import Ack
from aimfuse.coordinator.cursor import SyncState
from aimfuse.coordinator.delivery import Flight
from aimfuse.journal.fold import Fold


def folded(fold: Fold, applied: int) -> dict[str, int] | None:
    """Return what left the spool unsent, None if the mirror, at file *applied*, has it."""
    if fold.through <= applied:
        return None
    return {"through": int(fold.through), "dirty_bytes": fold.dirty_bytes(applied)}


def progress(
    sync: SyncState | None, ack: Ack | None, outgoing: Sequence[Flight], rate_bytes_s: float
) -> dict[str, Any] | None:
    """Return how far the copy is: done is what the store has; None without one.

    What is left goes by what was sent, too, for a file of a copy can take minutes.
    """
    if sync is None:
        return None
    sent = sum(flight.sent for flight in outgoing)
    left = max(0, sync.total_bytes - sync.done_bytes - sent)
    return {
        "done_bytes": sync.done_bytes,
        "total_bytes": sync.total_bytes,
        "eta_s": left / rate_bytes_s if rate_bytes_s > 0 else None,
        "rate_bytes_s": rate_bytes_s,
        "staged": sync.staged,
        "round": sync.round,
        "why": sync.why or None,
        "step": step(sync, ack),
    }


def step(sync: SyncState, ack: Ack | None) -> str:
    """Return what is done to the copy now: copying, journal, checking or switching."""
    theirs = ack.copy_of(sync.sync_id) if ack else None
    if theirs is None or not theirs.done or theirs.round < sync.round:
        return "copying"
    if ack and ack.phase == "switching":
        return "switching"
    return "checking" if sync.to is not None and theirs.received >= sync.to else "journal"
