"""The state of a store at the far side, from the files that its replayer and its source leave.

Nothing is locked and nothing is changed. `source.json` comes from another host: it is shown,
and decides nothing.
"""

import time
from pathlib import Path

from aimfuse.config import STORE_SOURCE
from aimfuse.config.pauses import load_pauses
from aimfuse.disk import Disk
from aimfuse.journal.locks import STORE_LOCK
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import (
    State,
    count_files,
    free_bytes,
    lock_holder,
    read_json,
    read_slots,
)
from aimfuse.units import SECOND_NS

QUARANTINE_SHOWN_MAX = 64
INBOX = "inbox"
_REASON = ".reason"
_MORE = "more"
_PIN = "pin-"
READERS_SHOWN_MAX = 64
READER_HEARD_NS = 125 * SECOND_NS
"""A reader is heeded for 120 s after he was heard of last; a report is 5 s old at most."""

_READER_COUNTS = ("owner", "since_ns", "heard_ns", "first", "last", "bytes")


def store_status(store: Path) -> State:
    """Return the state of the store at *store*; what cannot be read is None or in `error`."""
    now_ns = time.time_ns()
    state, problem = read_slots(store / "state")
    known = state or {}
    ack = read_json(store / "ack.json") or {}
    source = read_json(store / INBOX / "source.json")
    head = known.get("head")
    applied = ack.get("applied") or head
    inbox_files, inbox_bytes = _aim_files(store / INBOX)
    work_files, work_bytes = count_files(store / "work")
    return {
        "store": str(store),
        "group": known.get("group") or ack.get("group"),
        "phase": _phase(known, ack),
        "reason": known.get("reason") or None,
        "error": problem or ack.get("error"),
        "replayer": _holder(lock_holder(store / STORE_LOCK)),
        "head": head,
        "applied": applied,
        "received": ack.get("received"),
        "missing": ack.get("missing", []),
        "damaged": ack.get("damaged", []),
        "sync": _sync(known, ack),
        "inbox": {"files": inbox_files, "bytes": inbox_bytes},
        "work": {"files": work_files, "bytes": work_bytes},
        "quarantine": _quarantine(store / "quarantine"),
        "volumes": known.get("volumes", []),
        "mirror": [str(store / "mirror" / name) for name in _names(store / "mirror")],
        "mirror_time_ns": ack.get("mirror_time_ns"),
        "lag": _lag(applied, ack, source, now_ns),
        "free_bytes": free_bytes(store),
        "verified": ack.get("verified"),
        "source": source,
        "heard_ns": _changed_ns(store / INBOX / "source.json"),
        "readers": _readers(store / "history"),
        "far_readers": _far_readers(ack, now_ns),
        "on_bookmark": ack.get("on_bookmark"),
        "paused": _paused(store),
        "delay_s": ack.get("delay_s"),
        "held": ack.get("held"),
        "ack_time_ns": ack.get("time_ns"),
        "generation": ack.get("generation"),
        "time_ns": now_ns,
    }


def is_store(path: Path) -> bool:
    """Tell whether the directory is a store: it was used as one, or a source opened one."""
    marks = ("state.0", "state.1", "ack.json", f"{INBOX}/source.json")
    return any((path / mark).exists() for mark in marks)


def _phase(known: State, ack: State) -> str:
    """Return the state's phase; of a halt that ends with the replayer only the ack tells."""
    said = Fields(ack).text("phase")
    return "halted" if said == "halted" else Fields(known).text("phase") or said or "empty"


def _paused(store: Path) -> State | None:
    """Return what is paused, by the file that says so: a replayer need not be there."""
    try:
        pauses = load_pauses(store, Disk())
    except OSError:
        return None
    return {kind: one.to_json() for kind, one in pauses.items()} or None


def promotion_of(state_dir: Path) -> State | None:
    """Return what the store says that *state_dir* belongs to, if it is a promoted store's."""
    if state_dir.name != STORE_SOURCE:
        return None
    promoted = Fields(read_slots(state_dir.parent / "state")[0]).part("promoted")
    return {key: promoted.count(key) for key in ("epoch", "at_ns")} if promoted else None


def _readers(history: Path) -> list[State]:
    """Return who holds the past: restores, views and searches of this host."""
    names = [name for name in _names(history) if name.startswith(_PIN)][:READERS_SHOWN_MAX]
    pids = sorted({pid for name in names if (pid := lock_holder(history / name)) is not None})
    return [{"pid": pid} for pid in pids]


def _far_readers(ack: State, now_ns: int) -> list[State]:
    """Return who reads the past from another host, and was heard of: the report may be old."""
    readers = Fields(ack).parts("readers")[:READERS_SHOWN_MAX]
    return [
        {
            "who": one.text("who") or None,
            **{key: one.count(key) for key in _READER_COUNTS},
        }
        for one in readers
        if now_ns - one.count("heard_ns") < READER_HEARD_NS
    ]


def _holder(pid: int | None) -> State | None:
    return None if pid is None else {"pid": pid}


def _aim_files(inbox: Path) -> tuple[int, int]:
    files, size = count_files(inbox)
    note = inbox / "source.json"
    if files and note.is_file():
        return files - 1, max(0, size - note.stat().st_size)
    return files, size


def _changed_ns(path: Path) -> int | None:
    try:
        return path.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return None


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError:
        return []


def _quarantine(directory: Path) -> State:
    shown = []
    names = _names(directory)
    kept = [name for name in names if not name.endswith(_REASON) and name != _MORE]
    for name in kept[:QUARANTINE_SHOWN_MAX]:
        why = Fields(read_json(directory / (name + _REASON)))
        shown.append({"name": why.text("name") or name, "reason": why.text("reason")})
    more = len(_names(directory / _MORE)) if _MORE in names else 0
    return {"files": len(kept) + more, "shown": shown}


def _sync(known: State, ack: State) -> State | None:
    staging = Fields(known).part("staging")
    if staging:
        progress = known["staging"].get("progress") or {}
        switching = known.get("phase") == "switching"
        step = {"step": "switching"} if switching else {}
        return {**progress, **step, "staged": True, "why": staging.text("reason")}
    sync = known.get("sync")
    return sync if isinstance(sync, dict) else ack.get("sync")


def _lag(applied: State | None, ack: State, source: State | None, now_ns: int) -> State:
    """Return how far the mirror is behind what its source last said; None where unknown.

    The seconds count from the last applied record: an upper bound, which the source knows
    better. With everything applied that the heartbeat knew of, nothing is behind.
    """
    newest = Fields(source).part("newest")
    # What was last heard from a source before this one tells nothing of this one.
    is_old = newest.count("epoch") < Fields(applied).count("epoch")
    if not newest or applied is None or is_old:
        return {"seconds": None, "files": None}
    files = max(0, newest.count("number") - Fields(applied).count("number"))
    mirror_ns = Fields(ack).count("mirror_time_ns")
    if not files:
        return {"seconds": 0.0, "files": 0}
    seconds = max(0.0, (now_ns - mirror_ns) / SECOND_NS) if mirror_ns else None
    return {"seconds": seconds, "files": files}
