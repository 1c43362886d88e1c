"""What a destination's status says of copies: what one will bring, and how far one is."""

from collections.abc import Sequence
from typing import Any

from aimfuse.coordinator.acks import Ack
from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.cursor import SyncState
from aimfuse.coordinator.delivery import Flight
from aimfuse.journal.fold import Fold


def folded(fold: Fold, applied: int) -> dict[str, int] | None:
    """Return what left the spool unsent, None if the mirror, at file *applied*, has it."""
    if fold.through <= applied:
        return None
    return {"through": int(fold.through), "dirty_bytes": fold.dirty_bytes(applied)}


def progress(
    sync: SyncState | None, ack: Ack | None, outgoing: Sequence[Flight], backlog: Backlog,
    rate_bytes_s: float,
) -> dict[str, Any] | None:  # fmt: skip
    """Return how far the copy is: done is what the store has; None without one.

    What is left goes by what was sent, too, for a file of a copy can take minutes. Once all of
    the copy is there, it is of the journal that makes it consistent.
    """
    if sync is None:
        return None
    at = step(sync, ack)
    sent = sum(flight.sent for flight in outgoing)
    left = max(0, sync.total_bytes - sync.done_bytes - sent)
    behind = _journal(sync, ack, backlog) if at == "journal" else None
    if behind is not None:
        left = max(0, behind["total_bytes"] - behind["done_bytes"] - sent)
    return {
        "done_bytes": sync.done_bytes,
        "sent_bytes": sent,
        "total_bytes": sync.total_bytes,
        "journal": behind,
        "eta_s": left / rate_bytes_s if rate_bytes_s > 0 else None,
        "rate_bytes_s": rate_bytes_s,
        "staged": sync.staged,
        "round": sync.round,
        "why": _why(sync),
        "step": at,
    }


def _journal(sync: SyncState, ack: Ack | None, backlog: Backlog) -> dict[str, int]:
    """Return how much of the journal behind the copy there is, and is there."""
    theirs = ack.copy_of(sync.sync_id) if ack else None
    first, last = int(sync.head.number), sync.to or backlog.newest
    received = max(first, theirs.received if theirs else 0)
    return {
        "done_bytes": backlog.bytes_between(first, min(received, last)),
        "total_bytes": backlog.bytes_between(first, last),
    }


def _why(sync: SyncState) -> str | None:
    if not sync.round:
        return sync.why or None
    more = f"files through {sync.head.number} have left the spool since it began"
    return f"{sync.why}; {more}" if sync.why else more


def step(sync: SyncState, ack: Ack | None) -> str:
    """Return what is done to the copy now: copying, journal, checking or switching."""
    theirs = ack.copy_of(sync.sync_id) if ack else None
    if theirs is None or not theirs.done or theirs.round < sync.round:
        return "copying"
    if ack and ack.phase == "switching":
        return "switching"
    return "checking" if sync.to is not None and theirs.received >= sync.to else "journal"
