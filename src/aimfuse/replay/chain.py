"""Decide where a journal file belongs, seen from the last applied position.

A file follows the head if its number is the next one, it names the head's digest, and either
goes on in the same epoch with the next seq, or begins a later epoch that names exactly the
head as its parent. Everything else at that place is another history.
"""

from aimfuse.journal.reader import AimFile
from aimfuse.replay.state import Head, HistoryBroken
from aimfuse.units import Epoch, FileNumber, Seq

FIRST_SEQ = 1


def follow(head: Head, aim: AimFile) -> Head:
    """Return the position after *aim*, which bears the number behind *head*.

    Raises:
        HistoryBroken: it does not continue this history. Nothing was changed.
    """
    identity, seal = aim.identity, aim.seal
    assert identity.number == head.number + 1
    first_seq = _first_seq(head, aim)
    if seal.prev_digest != head.digest:
        raise fork(aim, f"it does not continue from file {head.number}, which is applied here")
    if seal.record_count and seal.first_seq != first_seq:
        raise HistoryBroken(
            f"fork: {aim.path.name} begins at record {identity.epoch}:{seal.first_seq}, "
            f"{identity.epoch}:{first_seq} is next"
        )
    return Head(
        Epoch(identity.epoch),
        FileNumber(identity.number),
        Seq(seal.last_seq if seal.record_count else first_seq - 1),
        seal.digest,
        seal.last_time_ns or head.time_ns,
    )


def _first_seq(head: Head, aim: AimFile) -> int:
    identity = aim.identity
    if identity.epoch == head.epoch:
        return head.seq + 1
    parent = identity.parent
    if identity.epoch < head.epoch:
        raise fork(aim, f"it is of epoch {identity.epoch}, epoch {head.epoch} is applied here")
    if (parent.epoch, parent.seq, parent.digest) != (head.epoch, head.seq, head.digest):
        raise fork(
            aim,
            f"its epoch {identity.epoch} branched off at {parent.epoch}:{parent.seq}, "
            f"{head.epoch}:{head.seq} is applied here",
        )
    return FIRST_SEQ


def fork(aim: AimFile, detail: str) -> HistoryBroken:
    """Return the error for a second history under a number that this store already knows."""
    return HistoryBroken(
        f"fork: {aim.path.name} tells another history: {detail}; "
        "the source went back in time, or a second source sends into this store"
    )
