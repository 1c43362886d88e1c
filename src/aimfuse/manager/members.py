"""A group's destinations as a list: settings, state, and what is kept for each."""

from pathlib import Path
from typing import Any

from aimfuse import config
from aimfuse.config import DestinationConfig
from aimfuse.errors import UsageError
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import State
from aimfuse.manager.layout import amount, safe
from aimfuse.manager.source import source_status
from aimfuse.units import counted, format_bytes


def listing(state_dir: Path) -> list[State]:
    """Return one object for each destination, also for those that only left their account.

    Raises:
        ConfigError: the settings cannot be read.
    """
    known = {one.name: one for one in config.load(state_dir).destinations}
    told = {one.text("name"): one for one in Fields(source_status(state_dir)).parts("destinations")}
    return [
        _one(name, known.get(name), told.get(name, Fields(None)))
        for name in dict.fromkeys((*known, *told))
    ]


def find(state_dir: Path, name: str) -> State:
    """Return the object of one destination.

    Raises:
        UsageError: there is none of that name.
    """
    found = {str(one["name"]): one for one in listing(state_dir)}
    if name not in found:
        hint = f"Known: {', '.join(found) or 'none'}."
        raise UsageError(f"no destination is called {name!r}", hint=hint)
    return found[name]


def waiting(one: State) -> str:
    """Return what the spool keeps for a destination, for people; empty if nothing."""
    pinned = Fields(one).part("pinned")
    count = pinned.count("files")
    return f"{counted(count, 'file')}, {format_bytes(pinned.count('bytes'))}" if count else ""


def describe(one: State) -> str:
    """Return the line of one destination."""
    of = Fields(one)
    parts = [of.text("name"), of.text("state"), of.text("url")]
    if of.count("bandwidth_bytes_s"):
        parts.append(f"at most {format_bytes(of.count('bandwidth_bytes_s'))}/s")
    parts += [str(window) for window in of.items("windows")]
    pinned = of.part("pinned")
    if pinned.count("files"):
        parts.append(f"{amount(pinned.count('files'), pinned.count('bytes'))} kept for it")
    return "  ".join(safe(part) for part in parts if part)


def _one(name: str, settings: DestinationConfig | None, told: Fields) -> State:
    found: dict[str, Any] = {"name": name, "url": told.text("url"), "state": told.text("state")}
    if settings is not None:
        found |= {
            "url": settings.url,
            "paused": settings.paused,
            "bandwidth_bytes_s": settings.bandwidth_bytes_s,
            "windows": [str(window) for window in settings.windows],
            "spool_share_bytes": settings.spool_share_bytes,
        }
    pinned = told.part("pinned")
    is_reserved = settings is not None and settings.is_reserved and not settings.paused
    found["state"] = "reserved" if is_reserved else found["state"] or "new"
    found["pinned"] = {"files": pinned.count("files"), "bytes": pinned.count("bytes")}
    found["error"] = told.text("error") or None
    return found
