"""How far one destination is, kept over restarts; the driver reads from it what must stay.

A cursor never runs ahead of the store's own acknowledgement. `pin` is the promise to it: files
above that number stay in the spool. A destination that is still new pins nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aimfuse.coordinator.acks import Position
from aimfuse.coordinator.route import Rule
from aimfuse.disk import Disk
from aimfuse.errors import StateLost
from aimfuse.journal.header import NO_DIGEST
from aimfuse.journal.journal import Head
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.slots import Slots
from aimfuse.units import VolumeId

CURSOR = "cursor"


@dataclass(frozen=True, slots=True)
class SyncVolume:
    """A volume as the sync began; its inode finds it under any name."""

    entry: VolumeEntry
    inode: int


@dataclass(frozen=True, slots=True)
class SyncState:
    """A sync under way: copy of the image as of `head` or later, from `next` on.

    It is of all the image, or, from round 1 on and if `staged`, of what a map beside the
    cursor names. A `staged` one is for a mirror that exists; `why` it needs one.
    """

    sync_id: int
    head: Head
    volumes: tuple[SyncVolume, ...]
    next_volume: int
    total_bytes: int = 0
    done_bytes: int = 0
    next_index: int = 0
    next: Position = (0, 0)
    to: int | None = None
    round: int = 0
    staged: bool = False
    why: str = ""

    @property
    def is_mapped(self) -> bool:
        """Tell whether it is of what a map names, holes included, and not of all."""
        return self.staged or self.round > 0


@dataclass(frozen=True, slots=True)
class Cursor:
    """The newest file that the store confirmed, or, during a sync, the file it starts from.

    `url` is where that store was: one that is said to be elsewhere since has not been met there.
    """

    url: str
    group: bytes | None = None
    pin: int | None = None
    epoch: int = 0
    number: int = 0
    digest: bytes = NO_DIGEST
    applied: int = 0
    sync: SyncState | None = None
    halted: str | None = field(default=None)
    rule: Rule | None = None
    members: frozenset[int] = frozenset()
    """With a rule: the volumes that are sent, as of `number`; `digest` is the copy's."""

    @property
    def is_new(self) -> bool:
        """Tell whether nothing was ever sent there that counts."""
        return self.pin is None

    @property
    def state(self) -> str:
        """Return new, syncing, shipping or halted."""
        if self.is_new:  # Also when halted: what was never begun pins nothing.
            return "new"
        if self.halted is not None:
            return "halted"
        return "syncing" if self.sync else "shipping"


class CursorFile:
    """The two slots of one destination. One writer: the coordinator."""

    def __init__(self, disk: Disk, directory: Path, url: str) -> None:
        self._slots = Slots(disk, directory / CURSOR, CURSOR)
        self._path = directory / CURSOR
        self._url = url

    def exists(self) -> bool:
        """Tell whether a cursor was ever written."""
        return self._slots.exists()

    def read(self) -> Cursor:
        """Return the newest cursor, a new one if there never was one.

        Raises:
            StateLost: the slots are unreadable, or hold something else.
        """
        state = self._slots.read()
        try:
            return Cursor(self._url) if state is None else _load(state)
        except (KeyError, ValueError, TypeError) as exc:
            raise StateLost(self._path, f"the cursor lacks or spoils {exc}") from exc

    def write(self, cursor: Cursor) -> None:
        """Make *cursor* the newest, durable when this returns."""
        self._slots.write(_dump(cursor))


def _dump(cursor: Cursor) -> dict[str, Any]:
    return {
        "url": cursor.url,
        "group": cursor.group.hex() if cursor.group else None,
        "state": cursor.state,
        "pin": cursor.pin,
        "epoch": cursor.epoch,
        "number": cursor.number,
        "digest": cursor.digest.hex(),
        "applied": cursor.applied,
        "sync": _dump_sync(cursor.sync) if cursor.sync else None,
        "reason": cursor.halted,
        "rule": [cursor.rule.volumes, cursor.rule.exclude] if cursor.rule else None,
        "members": sorted(cursor.members),
    }


def _load(state: dict[str, Any]) -> Cursor:
    return Cursor(
        state["url"],
        bytes.fromhex(state["group"]) if state["group"] else None,
        None if state["pin"] is None else int(state["pin"]),
        int(state["epoch"]),
        int(state["number"]),
        bytes.fromhex(state["digest"]),
        int(state["applied"]),
        _load_sync(state["sync"]) if state["sync"] else None,
        state["reason"] if state["state"] == "halted" else None,
        Rule(*map(tuple, rule)) if (rule := state.get("rule")) else None,
        frozenset(state.get("members") or ()),
    )


def _dump_sync(sync: SyncState) -> dict[str, Any]:
    return {
        "id": f"{sync.sync_id:016x}",
        "from": sync.head.number,
        "to": sync.to,
        "round": sync.round,
        "staged": sync.staged,
        "why": sync.why,
        "next_index": sync.next_index,
        "next": list(sync.next),
        "total_bytes": sync.total_bytes,
        "done_bytes": sync.done_bytes,
        "head": sync.head.to_json(),
        "next_volume": sync.next_volume,
        "volumes": [
            [one.entry.volume, one.entry.name, one.entry.size_bytes, one.inode]
            for one in sync.volumes
        ],
    }  # fmt: skip


def _load_sync(state: dict[str, Any]) -> SyncState:
    volume, offset = state["next"]
    return SyncState(
        int(state["id"], 16),
        Head.from_json(state["head"]),
        tuple(
            SyncVolume(VolumeEntry(VolumeId(number), name, size), inode)
            for number, name, size, inode in state["volumes"]
        ),
        int(state["next_volume"]),
        state["total_bytes"],
        state["done_bytes"],
        state["next_index"],
        (volume, offset),
        state["to"],
        state.get("round", 0),
        state.get("staged", False),
        state.get("why", ""),
    )  # fmt: skip
