"""What a store knows that it lacks: from what its source said last, and from what came."""

import contextlib

from aimfuse.journal.names import JournalName
from aimfuse.replay.heartbeat import Heartbeat, read_heartbeat
from aimfuse.replay.kept import list_kept
from aimfuse.replay.state import Json, StoreState
from aimfuse.replay.store import Store
from aimfuse.units import SECOND_NS


def find_lacking(store: Store, ack: Json, state: StoreState | None = None) -> Json:
    """Return it as JSON: `records`, `files`, `bytes` and `seconds`, None where nobody knows.

    `heard_ns` is when the source said so, by its clock, None if it never did: what it wrote
    after that is not in the figures. *ack* is the store's last report.
    """
    state = state or store.state
    at = state.promoted.newest if state.promoted else state.head
    told = read_heartbeat(store)
    said: Json = {
        "heard_ns": told.time_ns or None,
        "position": f"{told.epoch}:{told.seq}" if told.time_ns else None,
        "records": None,
        "files": None,
        "bytes": None,
        "seconds": None,
        "missing": ack.get("missing") or [],
        "damaged": ack.get("damaged") or [],
    }
    if at is None or not told.time_ns:
        return said
    files = max(0, told.number - at.number)
    records = max(0, told.seq - at.seq) if told.epoch == at.epoch else None
    if told.epoch < at.epoch:
        records = 0
    if records == 0 and not files:
        return said | {"records": 0, "files": 0, "bytes": 0, "seconds": 0.0}
    seconds = max(0.0, (told.time_ns - at.time_ns) / SECOND_NS) if at.time_ns else None
    return said | {
        "records": records,
        "files": files,
        "bytes": _bytes(store, told, at.number),
        "seconds": seconds,
    }


def _bytes(store: Store, told: Heartbeat, number: int) -> int | None:
    """Return at most how many bytes of the journal were not here: what was said, less what came."""
    if told.unsent_bytes is None:
        return None
    came = 0
    with contextlib.suppress(OSError):
        for one in list_kept(store.look, store.history).values():
            if told.unsent_after < one.name.number <= number:
                came += _size(store, one.name)
    return max(0, told.unsent_bytes - came)


def _size(store: Store, name: JournalName) -> int:
    entry = store.look.entry(store.history / name.sealed)
    return entry.size if entry else 0
