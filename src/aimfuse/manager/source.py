"""The state of a source: asked of its driver, or put together from its files.

Both ways give the same dictionary, the one that the driver's `status` request answers with;
`mounted` tells which. Nothing is locked and nothing is changed.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from aimfuse import config
from aimfuse.config import STATE_SUFFIX, DestinationConfig, GroupConfig, JournalConfig
from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError, ConfigError, explain
from aimfuse.journal.locks import GROUP_LOCK, SHIP_LOCK
from aimfuse.journal.spool import WARN_RATIO, full_mark
from aimfuse.journal.superseded import read_superseded
from aimfuse.manager import control_client
from aimfuse.manager.far import promotion_of
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import STALE_S, State, free_bytes, lock_holder, read_json, read_slots
from aimfuse.manager.spool import KnownSum, SpoolFiles, list_spool
from aimfuse.units import SECOND_NS

LOOKS_MAX = 3


def source_status(state_dir: Path) -> State:
    """Return the state of the group in *state_dir*; errors become part of it.

    Blocks for at most `LOOKS_MAX` times `control_client.CALL_S_MAX` seconds and a look at the
    spool. Files that were read while a driver came or went are no state: then it looks again.
    """
    status: State = {}
    for _ in range(LOOKS_MAX):
        pid = lock_holder(state_dir / GROUP_LOCK)
        try:
            answer = control_client.call(state_dir, {"cmd": "status"})
        except AimfuseError as exc:
            status = assemble(state_dir) | (_held(pid, exc) if pid else {})
        else:
            problem = _settings(state_dir)[1]
            about = {"settings_error": problem} if problem else {}
            ours = about | _promoted(state_dir)
            return {"mounted": True, **answer, **_shipper(state_dir, answer), **ours}
        if lock_holder(state_dir / GROUP_LOCK) == pid:
            break
    return status


def _held(pid: int, problem: AimfuseError) -> State:
    """Return what is known of a group whose driver holds the lock and says nothing.

    Its files are in the middle of a change, so they tell no state.
    """
    if isinstance(problem, control_client.NotMounted):
        reason = f"driver {pid} is starting or closing"
        return {"mounted": False, "state": "busy", "reason": reason}
    reason = f"driver {pid} does not answer: {problem}"
    return {"mounted": True, "state": "silent", "reason": reason}


def assemble(state_dir: Path) -> State:
    """Return the state of a group that nobody serves, from its files alone."""
    settings, config_problem = _settings(state_dir)
    sums = _known_sums(state_dir)
    spool = list_spool(settings.spool if settings else state_dir / "spool", sums)
    checkpoint, problem = read_slots(state_dir / "checkpoint")
    known = checkpoint or {}
    newest = spool.newest
    seal = spool.seal(newest.sealed) if newest else None
    last_seq = seal.last_seq if seal and seal.record_count else known.get("seq", 0)
    state, reason = _ended(state_dir) or _state(checkpoint, problem or config_problem, spool)
    return {
        "group": known.get("group"),
        "image": str(settings.image if settings else _image(state_dir)),
        "state_dir": str(state_dir),
        "mounted": False,
        "mountpoint": None,
        "state": state,
        "reason": reason,
        "epoch": newest.epoch if newest else known.get("epoch", 0),
        "accepted_seq": last_seq,
        "durable_seq": last_seq,
        "applied_seq": known.get("seq", 0),
        "checkpoint": {"number": known.get("number", 0), "seq": known.get("seq", 0)},
        "active": None,
        "spool": {
            "files": spool.files,
            "bytes": spool.bytes,
            "bytes_max": settings.journal.spool_bytes_max if settings else None,
            "free_bytes": free_bytes(spool.directory),
            "level": _level(spool, settings.journal) if settings else None,
        },
        "volumes": [
            {"id": one.get("id"), "name": one.get("name"), "size": one.get("size")}
            for one in known.get("volumes", [])
            if isinstance(one, dict)
        ],
        "memory_bytes": 0,
        **_promoted(state_dir),
        "coordinator": _coordinator(state_dir),
        "destinations": [] if state == "rejoined" else _destinations(state_dir, settings, spool),
        "time_ns": time.time_ns(),
    }


def _promoted(state_dir: Path) -> State:
    """Return what is to be said of a source that was a mirror, and nothing of any other."""
    promotion = promotion_of(state_dir)
    return {"promoted": promotion} if promotion else {}


def _level(spool: SpoolFiles, limits: JournalConfig) -> str:
    """Return where the spool stands by the marks of the driver that will come."""
    if spool.bytes >= full_mark(limits.spool_bytes_max, limits.file_bytes):
        return "full"
    return "warn" if spool.bytes >= WARN_RATIO * limits.spool_bytes_max else "fine"


def _known_sums(state_dir: Path) -> list[KnownSum]:
    """Return what coordinators have added up of the spool."""
    found = []
    for path in (state_dir / "destinations").glob("*/status.json"):
        one = Fields(read_json(path)).part("spool")
        found.append(KnownSum(*map(one.count, ("first", "last", "files", "bytes"))))
    return found


def _settings(state_dir: Path) -> tuple[GroupConfig | None, str]:
    try:
        return config.load(state_dir), ""
    except ConfigError as exc:
        return None, str(exc)


def _state(checkpoint: State | None, problem: str, spool: SpoolFiles) -> tuple[str, str]:
    """Return state and reason of a group that is not mounted."""
    if problem:
        return "damaged", problem
    if checkpoint is None:
        return "unmounted", "never mounted"
    if not checkpoint.get("clean") or spool.is_open:
        return "unclean", "not unmounted cleanly: the next mount redoes the journal"
    return "unmounted", ""


def _ended(state_dir: Path) -> tuple[str, str] | None:
    """Return state and reason of a source whose mirror was promoted, None while it goes on."""
    try:
        note = read_superseded(Disk(), state_dir)
    except (AimfuseError, OSError) as exc:
        return "damaged", explain(exc)
    return (note.step.value, str(note.error(str(_image(state_dir))))) if note else None


def _image(state_dir: Path) -> Path:
    name = state_dir.name.removesuffix(STATE_SUFFIX)
    return state_dir.with_name(name) if name else state_dir


def _shipper(state_dir: Path, answer: State) -> State:
    """Return who ships: the driver only knows of a coordinator that it started itself."""
    found: State = {"state_dir": str(state_dir)}
    if not Fields(answer).part("coordinator").count("pid"):
        found["coordinator"] = _coordinator(state_dir)
    return found


def _coordinator(state_dir: Path) -> State | None:
    pid = lock_holder(state_dir / SHIP_LOCK)
    return None if pid is None else {"pid": pid, "restarts": 0}


def _destinations(state_dir: Path, settings: GroupConfig | None, spool: SpoolFiles) -> list[State]:
    known = {one.name: one for one in settings.destinations} if settings else {}
    is_ended = _ended(state_dir) is not None
    found = [
        _destination(state_dir, one.name, one, spool, is_ended=is_ended) for one in known.values()
    ]
    with contextlib.suppress(OSError):
        for path in sorted((state_dir / "destinations").iterdir()):
            if path.name not in known and not path.name.startswith("."):
                told = _destination(state_dir, path.name, None, spool)
                found.append({**told, **_REMOVED} if settings else told)
    return found


_REMOVED = {
    "state": "removed",
    "error": "not in group.toml any more; what it has not got stays in the spool",
    "hint": "Run `aimfuse destination remove IMAGE NAME`, or put its table back.",
}


def _destination(
    state_dir: Path,
    name: str,
    config: DestinationConfig | None,
    spool: SpoolFiles,
    *,
    is_ended: bool = False,
) -> State:
    """Return what the coordinator last wrote, or what cursor and spool tell instead."""
    place = state_dir / "destinations" / name
    status = read_json(place / "status.json") or {}
    # A time to come is no news either: the clock was set back.
    age_ns = abs(time.time_ns() - Fields(status).count("updated_ns"))
    if status and age_ns < STALE_S * SECOND_NS:
        return {**status, "name": name}
    url = config.url if config else ""
    cursor, problem = read_slots(place / "cursor")
    cursor = cursor or {}
    received = Fields(cursor).count("number")
    applied = Fields(cursor).count("applied")
    is_new = cursor.get("state", "new") == "new"  # It waits for a first sync, not for files.
    files, size = (0, 0) if is_new else spool.behind(received)
    lag_files, lag_bytes = (0, 0) if is_new else spool.behind(applied)
    oldest_ns = spool.oldest_time_ns(applied) if lag_files else None
    is_halted = cursor.get("state") == "halted" or bool(problem)
    return {
        **status,
        "name": name,
        "url": url or status.get("url") or cursor.get("url"),
        "state": "halted" if is_halted else _resting(config, cursor, is_ended=is_ended),
        "error": problem or cursor.get("reason") or status.get("error"),
        "retry_in_s": None,
        "queued": {"files": files, "bytes": size},
        "pinned": {"files": files, "bytes": size},
        "in_flight": [],
        "received_not_applied": {
            "files": max(0, lag_files - files),
            "bytes": max(0, lag_bytes - size),
        },
        "applied": {"seq": 0, "epoch": 0, **_object(status.get("applied")), "number": applied},
        "lag": {
            "seconds": None if is_new else _age_s(oldest_ns),
            "bytes": lag_bytes,
            "files": lag_files,
        },
        "rate_bytes_s": 0.0,
        "forecast": None,
        "sync": status.get("sync"),
        "stuck": False,
    }


def _resting(config: DestinationConfig | None, cursor: State, *, is_ended: bool) -> str:
    """Return the state of a destination that nobody works for."""
    if config and config.paused:
        return "paused"
    if config and config.is_reserved:
        return "reserved"
    if not cursor:
        return "new"
    return "superseded" if is_ended else "stopped"


def _age_s(then_ns: int | None) -> float:
    return max(0.0, (time.time_ns() - then_ns) / SECOND_NS) if then_ns else 0.0


def _object(value: Any) -> State:  # noqa: ANN401 - JSON that somebody else wrote
    return value if isinstance(value, dict) else {}
