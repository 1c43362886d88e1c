"""Promote: let a store go on by itself as a source, with nobody else's help.

Everything that has arrived and is in order is applied first. A replayer that has the store lets it
go for the time; once the store has decided, whoever opens it next finishes what was begun.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import BusyError, CorruptRecord, OutOfReach, StoreError, UsageError
from aimfuse.journal.excerpt import read_front
from aimfuse.journal.names import JournalName, parse
from aimfuse.journal.reader import read_header, read_sealed
from aimfuse.replay import promotion, rewind
from aimfuse.replay.handover import wanted
from aimfuse.replay.heartbeat import read_heartbeat
from aimfuse.replay.kept import is_whole, list_kept, measured
from aimfuse.replay.lacking import find_lacking
from aimfuse.replay.look import Look
from aimfuse.replay.past import Past, look_at, read_state
from aimfuse.replay.pins import holders, unpinned
from aimfuse.replay.point import Finder, Point, Wanted
from aimfuse.replay.promoted import describe
from aimfuse.replay.session import Session
from aimfuse.replay.state import PROMOTION, Head, Json, Phase, Promoted, StoreState
from aimfuse.replay.store import INBOX, Store
from aimfuse.replay.undo import read_undo

FAILURES_MAX = 3
"""Failed rounds in a row before a promotion gives up."""

Report = Callable[[str, int, int], None]
"""Gets what is being done, and how much of how much is done."""

_UNDER_WAY = PROMOTION - {Phase.PROMOTED}


@dataclass(frozen=True, slots=True)
class Request:
    """Where the store is to go on; with *force* also from a mirror that may be no state at all."""

    at: Wanted
    force: bool = False
    dry_run: bool = False


def promote(disk: Disk, path: Path, request: Request, report: Report) -> Json:
    """Make the store at *path* a source; return what was done, as JSON.

    Raises:
        UsageError: it is no store, or the point cannot be meant.
        OutOfReach: the past does not go back to that point.
        BusyError: whoever has the store does not let it go, or somebody reads its past.
        StoreError: it has no mirror that could go on; the message says what there is instead.
        JournalError: a file of the history is damaged, or what it needs is gone.
        OSError: a disk failed. Once it was decided, the next attempt goes on.
    """
    look = Look()
    for name in (INBOX, "state.0"):
        if not disk.exists(path / name):
            hint = "Name the directory of one store, the one with inbox/ and mirror/ in it."
            raise UsageError(f"{path} is no store that was ever replayed", hint=hint)
    if request.dry_run:
        return _foretell(disk, path, request, look)
    with opened(disk, path, look) as session:
        return promote_open(session, request, report)


@contextmanager
def opened(disk: Disk, path: Path, look: Look) -> Iterator[Session]:
    """Have the store, from a replayer if need be, which takes it up again afterwards."""
    session = Session(disk, path, look, read_ahead=True)
    with wanted(disk, path, session.store.lock):
        try:
            yield session
        finally:
            session.close()


def promote_open(session: Session, request: Request, report: Report) -> Json:
    """Promote the store that *session* has open; see `promote`."""
    store = session.store
    is_begun = read_state(store.disk, store.path, store.look).phase in _UNDER_WAY
    if request.at.is_newest:
        session.hold_nothing_back()
    _work(session, report, "applying what has arrived")
    if store.state.phase is not Phase.PROMOTED:
        why = _check_mirror(store, force=request.force)
        lacking = find_lacking(store, session.report() or {})
        warnings = _warnings(store, why)
        promoted = replace(_ordered(session, request, report), gap=why)
        _begin(store, promoted, force=request.force)
        session.go_on()
        _work(session, _as_rewound(store, report), "going back")
        return describe(store, lacking=lacking, warnings=warnings)
    if not request.at.is_newest and not is_begun:
        _refuse_again(store)
    return describe(
        store, lacking=find_lacking(store, session.report() or {}), already=not is_begun
    )


def _ordered(session: Session, request: Request, report: Report) -> Promoted:
    """Choose the fork; what a delay or a pause holds back is applied only if it lies there."""
    store = session.store
    try:
        return _order(store, look_at(store.disk, store.path, store.look), request)
    except OutOfReach:
        held = (session.report() or {}).get("held")
        if not held:
            raise
    session.hold_nothing_back()
    _work(session, report, "applying what was held back")
    return _order(store, look_at(store.disk, store.path, store.look), request)


def _as_rewound(store: Store, report: Report) -> Report:
    """Return a report that gives the bytes of history that were taken back."""
    promoted, sizes = store.state.promoted, dict[int, int]()
    assert promoted is not None
    for number, one in list_kept(store.look, store.history).items():
        if promoted.fork.number < number <= promoted.newest.number:
            sizes[number] = one.size_bytes

    def taken_back(what: str, _done: int, _total: int) -> None:
        head = store.state.head.number if store.state.head else 0
        report(what, sum(size for one, size in sizes.items() if one > head), sum(sizes.values()))

    return taken_back


def _refuse_again(store: Store) -> None:
    raise UsageError(
        f"{store.path} is promoted already",
        hint=f"It is a source now, and goes on from where it is: aimfuse status {store.path}",
    )


def _work(session: Session, report: Report, what: str) -> None:
    """Let the session do all that it can.

    Raises:
        StoreError: its disk fails, or it has stopped for a fault.
    """
    most = 0
    while session.round() or session.failures:
        if session.failures >= FAILURES_MAX:
            raise StoreError(session.error, hint="Look at the store's disk, then run it again.")
        left = session.waiting_bytes
        most = max(most, left)
        report(what, most - left, most)
    if session.error:
        raise StoreError(session.error)
    state = session.store.state
    if session.halted and state.phase is not Phase.HALTED:
        raise StoreError(session.halted)


# May it be?


def _check_mirror(store: Store, *, force: bool) -> str:
    """Refuse a mirror that is no state of its source; return why it may be none, or "".

    Raises:
        StoreError: as it is, or only with *force*.
    """
    state = store.state
    is_begun = state.phase not in {Phase.EMPTY, Phase.SYNCING} and state.head is not None
    if not is_begun or state.sync is None or state.sync.to is None:
        raise StoreError(_no_copy(store), hint=_instead(store))
    if state.phase is Phase.SWITCHING:
        text = f"{store.path}: a copy is being switched in and cannot be finished"
        raise StoreError(text, hint=f"See what it waits for: aimfuse status {store.path}")
    why = _why_doubtful(store)
    if why and not force:
        raise StoreError(f"{store.path} has no consistent mirror: {why}", hint=_FORCE)
    return why and f"a mirror was taken as it is, by force: {why}"


def _warnings(store: Store, why: str) -> list[str]:
    said = [why] if why else []
    if store.state.phase is Phase.HALTED:
        said.append(f"the store had halted: {store.state.reason}")
    return said


def _no_copy(store: Store) -> str:
    state = store.state
    if state.phase is Phase.EMPTY:
        return f"{store.path} has nothing of its source yet: its first copy has not begun"
    return f"{store.path} has only a part of its first copy, which is no state of any disk"


def _instead(store: Store) -> str:
    if store.state.phase is not Phase.EMPTY:
        return (
            f"What has come lies in {store.path / 'volumes'}, by number, for whoever wants to look "
            "into it. Promote another store of the group, or restore from one."
        )
    return "Promote another store of the group, or restore from one."


def _why_doubtful(store: Store) -> str:
    """Return why the mirror may be a mixture of several times, or ""."""
    state = store.state
    if not is_whole(state):  # It may have halted on the way, too.
        to = state.sync.to if state.sync else None
        head = state.head.number if state.head else 0
        return state.doubt or f"the copy needs files {head + 1} to {to}, which have not come"
    past = look_at(store.disk, store.path, store.look)
    if past.reach is None or past.state.head is None:
        return f"it had halted in the middle of a copy: {state.reason}"
    if past.floor.number > past.state.head.number and not past.floor.is_off:
        return f"file {past.floor.number} may be half applied, and cannot be taken back"
    return ""


_FORCE = (
    "What is there can be taken all the same, with --force: run fsck on it, and expect damage. Or "
    "promote another store of the group."
)


# Where to?


def _order(store: Store, past: Past, request: Request) -> Promoted:
    """Choose the fork, and make sure that the way back to it is whole.

    Raises:
        OutOfReach, JournalError, OSError: it is not. Nothing was changed.
        StoreError: there is no epoch left for it. Nothing was changed.
    """
    head = store.state.head
    assert head is not None
    epoch = promotion.next_epoch(head, read_heartbeat(store).epoch)
    fork, seq = head, 0
    if past.reach is not None and not request.at.is_newest:
        fork, seq = _fork_at(store, past, Finder(store.disk, past).find(request.at))
    elif not request.at.is_newest:
        raise OutOfReach(
            f"{request.at.text} is out of reach: this mirror has no past",
            hint="Without --at the store goes on from what it has.",
        )
    rewind.check_way(store, fork)
    return Promoted(epoch, fork, time.time_ns(), seq, head)


def _fork_at(store: Store, past: Past, point: Point) -> tuple[Head, int]:
    """Return the file boundary at or before *point*, and the last record of the next file."""
    head = store.state.head
    assert head is not None
    base, seq = point.base, 0
    if point.redo is not None:
        path = past.history / point.redo.name.sealed
        seal = read_header(store.disk, path)[1]
        undo = read_undo(store.disk, past.history, point.redo.name, read_front)
        if seal is None or read_sealed(store.disk, path).seal.digest != undo.mark.of:
            raise CorruptRecord(path, 0, "it is not the file that its undo file takes back")
        is_whole = point.seq == seal.last_seq
        base, seq = base + is_whole, 0 if is_whole else point.seq
    if base == head.number:
        return head, 0
    return read_undo(store.disk, past.history, past.kept[base + 1].name, read_front).mark.head, seq


def _begin(store: Store, promoted: Promoted, *, force: bool) -> None:
    """Decide, while nobody can begin to read the past.

    Raises:
        BusyError: somebody reads it, and it is not forced.
    """
    with unpinned(store.disk, store.history) as limit:
        if limit is not None and not force:
            readers = holders(store.disk, store.history) or "unknown"
            raise BusyError(
                f"the past of {store.path} is being read, by process {readers}",
                hint="End the restore or the view first; --force makes it fail instead.",
            )
        promotion.begin(store, promoted)


def _foretell(disk: Disk, path: Path, request: Request, look: Look) -> Json:
    """Return what a promotion would do, from what is applied now; changes nothing."""
    past = look_at(disk, path, look)
    state = past.state
    if state.phase is Phase.PROMOTED:
        return {"store": str(path), "dry_run": True, "already": True}
    if past.reach is None or state.head is None:
        why = state.doubt or state.reason or f"it is {state.phase.value}"
        raise StoreError(f"{path} has no consistent mirror now: {why}", hint=_FORCE)
    promotion.next_epoch(state.head)
    point = Finder(disk, past).find(request.at)
    behind = [one for one in past.reach.sets if one.name.number > point.base]
    undone = measured(look, past.history, behind)
    return {
        "store": str(path),
        "dry_run": True,
        "already": False,
        "position": "{}:{}".format(*point.position),
        "time_ns": point.time_ns or None,
        "rewound": {"files": len(undone), "bytes": sum(one.size_bytes for one in undone)},
        "waiting": {"files": _waiting(disk, path, state)},
        "lacking": find_lacking(Store(disk, path, look), {}, state),
    }


def _waiting(disk: Disk, path: Path, state: StoreState) -> int:
    """Return how many files have come and are not applied."""
    head = state.head.number if state.head else 0
    found: set[int] = set()
    for name in ("inbox", "work"):
        with contextlib.suppress(OSError):
            names = map(parse, disk.listdir(path / name))
            found.update(one.number for one in names if isinstance(one, JournalName))
    return sum(number > head for number in found)
