"""What to do with a store, from its ack, our cursor and what the source has. No side effects."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aimfuse.coordinator.acks import Ack, AckSync, Position
from aimfuse.coordinator.cursor import Cursor, SyncState
from aimfuse.errors import StoreError
from aimfuse.journal.fold import Fold
from aimfuse.journal.header import NO_DIGEST
from aimfuse.journal.journal import Head
from aimfuse.journal.superseded import Promotion


class Halt(StoreError):
    """Shipping to one destination cannot go on without its operator; nothing was sent."""


class Promoted(Halt):
    """The store is a source of its own now: this history has ended, for every destination."""

    def __init__(self, promotion: Promotion) -> None:
        fork = promotion.fork
        super().__init__(
            f"the store was promoted: behind {fork.epoch}:{fork.seq} another history goes on there",
            hint="See what this side has written since: aimfuse branch list IMAGE. To make it a "
            "mirror of the new source: aimfuse rejoin IMAGE URL.",
        )
        self.promotion = promotion


@dataclass(frozen=True, slots=True)
class AwaitStore:
    """Nobody acknowledges yet: wait, and look again."""

    reason: str


@dataclass(frozen=True, slots=True)
class BeginSync:
    """The store is empty, or a copy in it cannot be continued: start a first sync."""

    reason: str


@dataclass(frozen=True, slots=True)
class ContinueSync:
    """Go on with the sync in the cursor, from the file and place that the store names."""

    index: int
    start: Position


@dataclass(frozen=True, slots=True)
class BeginResync:
    """The journal between the mirror and the spool is gone: begin a staged copy.

    Of the dirty extents that the fold names, or of all, if *whole*.
    """

    reason: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Ship:
    """Send journal files, *first* first; *behind_copy*: those that a staged copy needs."""

    first: int
    behind_copy: bool = False


_WAITS = {
    "switching": "the store switches an earlier copy in",
    "rewinding": "the store is being promoted",
    "promoting": "the store is being promoted",
}
"""Phases in which a store takes nothing."""

Action = AwaitStore | BeginSync | BeginResync | ContinueSync | Ship


HeaderReader = Callable[[int], tuple[bytes, bytes] | None]
"""Returns (digest, previous digest) of a sealed file, None if it is not there."""


@dataclass(frozen=True, slots=True)
class History:
    """The source's own history: heads that are known, and a way to read headers.

    What left the spool unsent is in `fold`; file `lost`, if not 0, cannot be sent any more.
    """

    group: bytes
    newest: int
    oldest: int
    heads: tuple[Head, ...]
    read: HeaderReader
    fold: Fold = field(default_factory=Fold)
    lost: int = 0

    def digest(self, number: int) -> bytes | None:
        """Return the digest of file *number*: from a head, its header, or its successor's."""
        if number == 0:
            return NO_DIGEST
        for head in self.heads:
            if head.number == number:
                return head.digest
        if (own := self.read(number)) is not None:
            return own[0]
        following = self.read(number + 1)
        return following[1] if following is not None else None


def decide(ack: Ack | None, cursor: Cursor, history: History) -> Action:
    """Return what to do next.

    Raises:
        Halt: the store is another group's, has halted, or contradicts our history.
    """
    if ack is None:
        return AwaitStore("no ack.json yet: is `aimfuse replay` running there?")
    check_store(ack, history)
    if ack.is_empty:
        return _into_empty(ack, cursor)
    if ack.phase == "syncing":
        return _sync_under_way(ack, cursor, history)
    check_history(ack, history)
    if cursor.sync and cursor.sync.staged:
        theirs = ack.copy_of(cursor.sync.sync_id)
        if theirs is None or theirs.staged:
            return _resync_under_way(theirs, cursor.sync, ack, history)
    elif ack.phase in _WAITS:
        return AwaitStore(_WAITS[ack.phase])
    return _ship_or_copy(ack, cursor, history)


def check_store(ack: Ack, history: History) -> None:
    """Refuse a store that is not ours to write to.

    Raises:
        Promoted: it is a source of its own by now.
        Halt: it belongs to another group, or its replayer has halted.
    """
    if ack.group not in {None, history.group}:
        assert ack.group is not None
        raise Halt(
            f"the store belongs to another group, {ack.group.hex()}; this one is "
            f"{history.group.hex()}",
            hint="Give this destination a directory of its own in its `url`: "
            "a store takes one source.",
        )
    if ack.promoted is not None:
        raise Promoted(ack.promoted)
    if ack.phase == "halted":
        reason = ack.error or "no reason given"
        raise Halt(
            f"the store has halted: {reason}", hint="Run `aimfuse status STORE` on its host."
        )


def check_history(ack: Ack, history: History) -> None:
    """Refuse a store whose mirror is not a prefix of our history.

    Raises:
        Halt: it is ahead of us, or its newest file is not the one that we wrote.
    """
    if ack.confirmed > history.newest:
        raise Halt(
            f"the store holds files up to {ack.confirmed}, this source has written "
            f"{history.newest}: the source went back in time, or is not the only one",
            hint="Was the image or its state directory restored from a copy? "
            "Keep both sides as they are and compare them before going on.",
        )
    if ack.applied is None:
        return
    ours = history.digest(ack.applied.number)
    if ours is not None and ours != ack.applied.digest:
        raise Halt(
            f"the store's file {ack.applied.number} is not the one that this source wrote: "
            "two sources have written into one history",
            hint="Keep both sides as they are and compare them before going on.",
        )


def _into_empty(ack: Ack, cursor: Cursor) -> Action:
    sync = cursor.sync
    if sync is None or sync.staged:
        return BeginSync("the store is empty")
    if sync.next_index == 0 and ack.sync is None:
        return ContinueSync(0, (0, 0))
    return BeginSync("the store was emptied during the first sync")


def _sync_under_way(ack: Ack, cursor: Cursor, history: History) -> Action:
    sync = cursor.sync
    if ack.sync is None or sync is None or sync.staged:
        return BeginSync("the store holds a part of a copy that this source knows nothing of")
    if history.lost > sync.head.number:
        return BeginSync("files that the copy needs cannot be sent")
    if ack.sync.sync_id == sync.sync_id:
        if ack.sync.round < sync.round:  # What was overtaken begins from the front.
            return ContinueSync(ack.sync.next_index, (0, 0))
        return ContinueSync(ack.sync.next_index, ack.sync.next)
    if sync.next_index == 0:
        return ContinueSync(0, (0, 0))
    return BeginSync("the store holds a part of another copy")


def is_overtaken(sync: SyncState, history: History) -> bool:
    """Tell whether files behind the copy's origin have left the spool since."""
    return history.fold.through > sync.head.number or history.lost > sync.head.number


def _resync_under_way(
    theirs: AckSync | None, sync: SyncState, ack: Ack, history: History
) -> Action:
    if history.lost > sync.head.number:
        return BeginResync(f"file {history.lost} cannot be sent", whole=True)
    if theirs is None:
        return _resync_unknown_there(sync, ack, history)
    if theirs.round < sync.round:
        return ContinueSync(theirs.next_index, (0, 0))
    if theirs.done and theirs.round == sync.round and not is_overtaken(sync, history):
        return Ship(max(theirs.received, int(sync.head.number)) + 1, behind_copy=True)
    return ContinueSync(theirs.next_index, theirs.next)


def _resync_unknown_there(sync: SyncState, ack: Ack, history: History) -> Action:
    if ack.phase == "switching":
        return AwaitStore("the store switches an earlier copy in")
    if ack.needs_sync and ack.needs_sync != sync.why:  # This one may be of a part.
        return BeginResync(ack.needs_sync, whole=not ack.differs)
    is_older = sync.head.number < ack.applied_number  # Such a copy is refused there, for ever.
    if sync.next_index == 0 and not is_older:
        return ContinueSync(0, (0, 0))
    is_known = is_older or history.fold.covers(ack.confirmed)
    needs_all = bool(ack.needs_sync and not ack.differs)
    return BeginResync(sync.why, whole=needs_all or not is_known)


def _ship_or_copy(ack: Ack, cursor: Cursor, history: History) -> Action:
    """Ship if the files are there that the mirror needs next, else begin a staged copy.

    Nothing is in doubt here: the store is ours, and it is not ahead.
    """
    first, fold = ack.confirmed + 1, history.fold
    if ack.needs_sync:  # A rejoined mirror says where it differs, and lacks the journal besides.
        return BeginResync(ack.needs_sync, whole=not ack.differs)
    if history.lost >= first:
        return BeginResync(f"file {history.lost} cannot be sent", whole=True)
    if fold.through >= first:
        why = f"files {first} to {fold.through} left the full spool before they were sent"
        return BeginResync(why, whole=not fold.covers(ack.confirmed))
    if first < history.oldest and first <= history.newest:
        why = f"file {first} is needed there but has left the spool"
        if cursor.number > ack.confirmed:
            why = f"the store lost files {first} to {cursor.number}, which it had confirmed"
        return BeginResync(why, whole=True)
    return Ship(first)
