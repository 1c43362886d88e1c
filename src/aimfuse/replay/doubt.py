"""Doubt a store that was copied while a replayer had it open. No side effects.

Copying takes time. A copy made meanwhile may hold data older or newer than its state says, and
nothing in it shows that. So the state names what no copy shares, the inode numbers of the
store's directory and of its lock, and says whether the store was open. A closed one may be
copied and moved at will; one that was open then gets a copy of everything from its source.

An old source's image that was made a mirror is doubted, too: it differs from its position in
what was written there since. Where, says ``differs.map``, so that less has to be copied. While a
promoted store is being made a mirror again, its state says so before its data changes hands:
from then on nobody reads its past.
"""

from dataclasses import replace

from aimfuse.replay.kept import is_whole
from aimfuse.replay.state import PROMOTION, Json, Phase, StoreState

Place = tuple[int, int]

COPIED = (
    "this store was copied, moved or restored while a replayer had it open, so its data may be "
    "of several times: everything is copied anew"
)
"""Short enough for the reason of a staged copy: that one, and no other, ends the doubt."""

REJOINED = (
    "this was a source, and what it wrote behind the fork differs from the new source's history"
)
DIFFERS = "differs.map"
"""In the store: the `DirtyMap` of what a rejoined mirror may have otherwise at its position."""


def is_doubtful(data: Json, place: Place) -> bool:
    """Tell whether a state that reads *data* was written elsewhere, by a store in use there."""
    known = data.get("place")
    return bool(data.get("open")) and known is not None and tuple(known) != place


def doubted(state: StoreState) -> StoreState:
    """Return what is left of *state* where its data cannot be trusted."""
    if state.phase is Phase.EMPTY or state.phase in PROMOTION:
        return state
    if state.phase is Phase.HALTED:  # It may have halted while it was being copied.
        return replace(state, shown=state.volumes if is_whole(state) else state.shown, doubt=COPIED)
    if state.phase is Phase.SYNCING:  # There is nothing yet that was worth keeping.
        return StoreState()
    shown = state.volumes if state.phase is Phase.CONSISTENT else state.shown
    return replace(state, phase=Phase.CATCHING_UP, staging=None, shown=shown, doubt=COPIED)


def held_back(state: StoreState) -> tuple[int, str] | None:
    """Return the journal file that must not be applied for a doubt, and why; None without."""
    if not state.doubt or state.head is None:
        return None
    return state.head.number + 1, state.doubt
