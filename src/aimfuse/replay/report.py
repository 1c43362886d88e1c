"""What a store's operator wants to know, read from its files beside a running replayer.

Nothing here takes a lock or writes. The three lags follow one rule: what the store has not
applied, as far as anybody here knows; the source's heartbeat tells of what has not arrived.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from aimfuse.disk import Disk, read_file
from aimfuse.errors import StateLost
from aimfuse.journal.header import HEADER_BYTES, BadHeader, decode_seal
from aimfuse.journal.names import JournalName, parse
from aimfuse.journal.slots import Slots
from aimfuse.replay.ack import read_ack
from aimfuse.replay.look import Look
from aimfuse.replay.quarantine import REASON, safe_name
from aimfuse.replay.state import Json, StoreState, volume_to_json
from aimfuse.replay.store import HEARTBEAT, Store
from aimfuse.units import KIB, SECOND_NS

RECENT_MAX = 20
STUCK_NS = 60 * SECOND_NS
HEARTBEAT_STALE_NS = 60 * SECOND_NS
_REASON_BYTES_MAX = 16 * KIB
_HEARTBEAT_BYTES_MAX = 64 * KIB
_WAITING_MAX = 10_000
_HEADERS_MAX = 8


def store_status(path: Path, now_ns: int | None = None) -> Json:
    """Return how the store at *path* is; times in Unix ns, lag in seconds, bytes and files.

    Usable while the replayer runs: each file is replaced whole, and of the two state slots
    one is always whole. What cannot be read is None or empty, and `problem` says why.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    store = Store(Disk(), path)
    state, problem = _read_state(store)
    ack = read_ack(store, path)
    source = _read_source(store)
    head = state.head
    applied = head.number if head else 0
    waiting = _waiting(store, applied)
    lag = _lag(store, state, source, waiting, now_ns)
    progress_ns = _number(ack, "progress_ns")
    running = is_running(store)
    pending = bool(waiting) or lag["files"] > 0
    return {
        "path": str(path),
        "name": path.name,
        "group": state.group.hex() if state.group else None,
        "phase": "halted" if ack.get("phase") == "halted" else state.phase.value,
        "reason": state.reason or None,
        "error": ack.get("error"),
        "problem": problem,
        "running": running,
        "applied": head.to_json() if head else None,
        "received": {"number": max(applied, _number(_object(ack, "received"), "number"))},
        "missing": ack.get("missing", []),
        "damaged": ack.get("damaged", []),
        "sync": ack.get("sync"),
        "queue": {"files": len(waiting), "bytes": sum(waiting.values())},
        "lag": lag,
        "stuck": pending and 0 < progress_ns < now_ns - STUCK_NS,
        "mirror_time_ns": head.time_ns if head else 0,
        "volumes": [volume_to_json(entry) for entry in state.volumes],
        "free_bytes": ack.get("free_bytes"),
        "quarantine": {"count": ack.get("quarantined", 0), "recent": _recent_reasons(store)},
        "source": source,
        "heartbeat_age_s": _age_s(source, now_ns) if source else None,
        "heartbeat_stale": bool(source) and _age_s(source, now_ns) > HEARTBEAT_STALE_NS / SECOND_NS,
        "ack_age_s": _age_s(ack, now_ns) if ack else None,
        "ack": ack or None,
        "time_ns": now_ns,
    }


def find_stores(directory: Path) -> list[Path]:
    """Return *directory* if it is a store, else the stores right beneath it, sorted.

    Raises:
        OSError: it cannot be read.
    """
    look = Look()
    if is_store(look, directory):
        return [directory]
    return sorted(path for path in directory.iterdir() if is_store(look, path))


def is_store(look: Look, path: Path) -> bool:
    """Tell whether *path* is a directory with an inbox in it; links do not count."""
    for place in (path, Store(Disk(), path).inbox):
        entry = look.entry(place)
        if entry is None or entry.kind != "directory":
            return False
    return True


def is_running(store: Store) -> bool:
    """Tell whether a replayer holds the store, without ever standing in its way."""
    entry = store.look.entry(store.path / "lock")
    if entry is None:
        return False
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any("FLOCK" in line and f":{entry.inode} " in f"{line} " for line in locks.splitlines())


def _read_state(store: Store) -> tuple[StoreState, str | None]:
    try:
        data = Slots(store.disk, store.path / "state", "report").read()
        return (StoreState.from_json(data) if data else StoreState()), None
    except (StateLost, OSError, KeyError, TypeError, ValueError) as exc:
        return StoreState(), f"the state cannot be read: {exc}"


def _read_source(store: Store) -> Json | None:
    """Return the source's heartbeat: a hint from outside, so only its known numbers count."""
    path = store.inbox / HEARTBEAT
    try:
        data = json.loads(_read_foreign(store, path, _HEARTBEAT_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _read_foreign(store: Store, path: Path, limit_bytes: int) -> bytes:
    """Read the beginning of a file that a sender made, without following or waiting."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = store.disk.open("report:read", path, flags)
    try:
        return store.disk.pread(fd, limit_bytes, 0)
    finally:
        store.disk.close(fd)


def _waiting(store: Store, applied: int) -> dict[Path, int]:
    """Return the files that have arrived and are not applied, with their sizes in bytes."""
    waiting: dict[Path, int] = {}
    for directory in (store.work, store.inbox):
        try:
            names = store.look.scan(directory)
            for text in names:
                name = parse(text)
                if name is None or len(waiting) >= _WAITING_MAX:
                    continue
                if isinstance(name, JournalName) and name.number <= applied:
                    continue
                entry = store.look.entry(directory / text)
                if entry is not None and entry.is_file:
                    waiting[directory / text] = entry.size
        except OSError:
            continue
    return waiting


def _lag(
    store: Store, state: StoreState, source: Json | None, waiting: dict[Path, int], now_ns: int
) -> dict[str, Any]:
    applied = state.head.number if state.head else 0
    here = {path.name: size for path, size in waiting.items()}
    journal = [name for name in here if isinstance(parse(name), JournalName)]
    newest = _number(_object(source, "newest"), "number")
    # What the source has sealed and is not here yet; sizes are known for its whole spool only.
    away = max(0, newest - applied - len(journal))
    spool = _object(source, "spool")
    spool_files = _number(spool, "files")
    away_bytes = _number(spool, "bytes") * min(away, spool_files) // max(1, spool_files)
    oldest_ns = _oldest_ns(store, waiting)
    if not oldest_ns and away and state.head:
        oldest_ns = state.head.time_ns
    return {
        "seconds": max(0, now_ns - oldest_ns) / SECOND_NS if oldest_ns else 0.0,
        "bytes": sum(here.values()) + away_bytes,
        "files": len(here) + away,
    }


def _oldest_ns(store: Store, waiting: dict[Path, int]) -> int:
    """Return the time of the oldest record that waits here, 0 if none does."""
    numbered = [(name, path) for path in waiting if (name := parse(path.name)) is not None]
    journal = [(n.number, path) for n, path in numbered if isinstance(n, JournalName)]
    for _place, path in sorted(journal)[:_HEADERS_MAX]:
        try:
            seal = decode_seal(_read_foreign(store, path, HEADER_BYTES))
        except (OSError, BadHeader):
            continue
        if seal is not None and seal.first_time_ns:
            return seal.first_time_ns
    return 0


def _recent_reasons(store: Store) -> list[Json]:
    """Return why things were refused, the newest first; texts are fit for a terminal."""
    try:
        names = [name for name in store.look.scan(store.quarantine) if name.endswith(REASON)]
    except OSError:
        return []
    found = []
    for name in names:
        entry = store.look.entry(store.quarantine / name)
        if entry is not None and entry.is_file:
            found.append((entry.mtime_ns, name))
    return [_reason(store, name) for _when, name in sorted(found, reverse=True)[:RECENT_MAX]]


def _reason(store: Store, name: str) -> Json:
    try:
        data = json.loads(read_file(store.disk, store.quarantine / name, _REASON_BYTES_MAX))
    except (OSError, ValueError):
        data = None
    said: Json = data if isinstance(data, dict) else {}
    return {
        "name": safe_name(name.removesuffix(REASON)),
        "reason": "".join(c if c.isprintable() else "?" for c in str(said.get("reason", ""))),
        "time_ns": _number(said, "time_ns"),
    }


def _age_s(data: Json | None, now_ns: int) -> float:
    return max(0, now_ns - _number(data, "time_ns")) / SECOND_NS


def _object(data: Json | None, key: str) -> Json:
    value = (data or {}).get(key)
    return value if isinstance(value, dict) else {}


def _number(data: Json | None, key: str) -> int:
    value = (data or {}).get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
