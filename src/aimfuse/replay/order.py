"""Which of the files that wait in ``work/`` is the next one. No side effects."""

from aimfuse.replay.state import PROMOTION, Phase, StoreState
from aimfuse.replay.work import Copy, Work
from aimfuse.units import FileNumber

REPLAYING = frozenset({Phase.CATCHING_UP, Phase.CONSISTENT})
"""In these phases journal files are applied as they come."""


def next_copy(state: StoreState, work: Work, held: int | None) -> Copy | None:
    """Return what to apply next, or to stage. Journal file *held* must not be: it has a gap."""
    if state.phase is Phase.SWITCHING or state.phase in PROMOTION:
        return None
    sync = state.under_way
    for name, one in work.sync.items():
        if name.index == (sync.next_index if sync and name.sync_id == sync.sync_id else 0):
            return one
    copy = _following(state, work, held)
    staging = state.staging
    if staging and staging.progress.done and _is_behind_copy(state):
        return None  # It is executed behind the copy, in the switch.
    return copy


def is_needless(state: StoreState, work: Work, held: int | None) -> bool:
    """Tell whether the journal reached a staged copy's origin and goes on: it says the same."""
    staging = state.staging
    if staging is None or staging.progress.done or not _is_behind_copy(state):
        return False
    return _following(state, work, held) is not None


def _following(state: StoreState, work: Work, held: int | None) -> Copy | None:
    if state.phase not in REPLAYING or state.head is None:
        return None
    number = FileNumber(state.head.number + 1)
    return None if number == held else work.journal.get(number)


def _is_behind_copy(state: StoreState) -> bool:
    staging, head = state.staging, state.head
    return bool(staging and head and head.number >= staging.progress.origin.number)
