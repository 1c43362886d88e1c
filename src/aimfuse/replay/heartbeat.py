"""What a source said last of itself: ``inbox/source.json``.

It comes from elsewhere and goes into reports only; what cannot be read says nothing.
"""

import json
import os
from dataclasses import dataclass

from aimfuse.replay.store import HEARTBEAT, Store
from aimfuse.units import MIB

_BYTES_MAX = MIB


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The fields that a store has use for; 0 or "" where the source did not say.

    `unsent_bytes` is what the journal held behind file `unsent_after`, the last that it knew to
    be here, and None if it did not say.
    """

    time_ns: int = 0
    kind: str = ""
    epoch: int = 0
    seq: int = 0
    number: int = 0
    unsent_after: int = 0
    unsent_bytes: int | None = None


def read_heartbeat(store: Store) -> Heartbeat:
    """Return the last heartbeat, an empty one if there is none."""
    try:
        data = json.loads(_read(store))
    except (OSError, ValueError, RecursionError):
        return Heartbeat()
    if not isinstance(data, dict):
        return Heartbeat()
    newest, unsent = data.get("newest"), data.get("unsent")
    newest = newest if isinstance(newest, dict) else {}
    return Heartbeat(
        _count(data.get("time_ns")),
        str(data.get("kind") or ""),
        _count(data.get("epoch")),
        _count(data.get("accepted_seq")),
        _count(newest.get("number")),
        _count(unsent.get("after")) if isinstance(unsent, dict) else 0,
        _count(unsent.get("bytes")) if isinstance(unsent, dict) else None,
    )


def _read(store: Store) -> bytes:
    """Return what somebody else put there: no link, and no pipe that would be waited for."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = store.disk.open("heartbeat:read", store.inbox / HEARTBEAT, flags)
    try:
        return store.disk.pread(fd, _BYTES_MAX, 0)
    finally:
        store.disk.close(fd)


def _count(value: object) -> int:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64
    return value if is_count and isinstance(value, int) else 0
