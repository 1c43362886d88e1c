"""What a store says about itself: ``ack.json``, parsed strictly, for it comes from elsewhere."""

import json
from dataclasses import dataclass, field
from typing import Any

from aimfuse.errors import Refused, Unavailable
from aimfuse.journal.header import DIGEST_BYTES
from aimfuse.journal.superseded import Promotion
from aimfuse.units import MIB

ACK_NAME = "ack.json"
ACK_BYTES_MAX = 1 * MIB
VERSION = 1
LISTED_MAX = 64
DIFFERS_NAME = "differs.map"
"""The only name that is fetched: a store is not asked for what it names."""

PHASES = (
    "empty", "syncing", "catching_up", "switching", "consistent", "halted",
    "rewinding", "promoting", "promoted",
)  # fmt: skip

Position = tuple[int, int]
"""A place in a group: volume id, offset in bytes."""

_U64_MAX = (1 << 64) - 1
_GROUP_BYTES = 16


@dataclass(frozen=True, slots=True)
class AckHead:
    """The newest file that the mirror holds."""

    epoch: int
    number: int
    seq: int
    digest: bytes
    time_ns: int


@dataclass(frozen=True, slots=True)
class AckSync:
    """How far a sync has come: everything before file *next_index* is in the mirror.

    Of a `staged` one it waits beside the mirror, with the journal behind its origin through
    file `received`.
    """

    sync_id: int
    next_index: int
    next: Position
    done: bool
    round: int = 0
    staged: bool = False
    received: int = 0


@dataclass(frozen=True, slots=True)
class AckMismatch:
    """A range of a volume, which goes by its name there, that differs from ours; in bytes."""

    volume: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Ack:
    """One acknowledgement; `received` is the highest number of an unbroken row of durable files."""

    group: bytes | None
    generation: int
    phase: str
    applied: AckHead | None = None
    received: int = 0
    missing: tuple[int, ...] = ()
    damaged: tuple[str, ...] = ()
    sync: AckSync | None = None
    queue_bytes: int = 0
    mirror_time_ns: int = 0
    oldest_waiting_ns: int = 0
    error: str | None = None
    is_held: bool = False
    """What was received waits there on purpose: for a delay, or for its operator."""
    takes_nothing: bool = False
    """Its operator has paused receiving."""
    is_paused: bool = False
    """Its operator has paused something, be it receiving or applying."""
    needs_sync: str | None = None
    """Why the mirror cannot go on without a new copy."""
    promoted: Promotion | None = None
    """The store is a source of its own now, and takes nothing more."""
    differs: str | None = None
    """The file in the store that says where a rejoined mirror differs from its position."""
    mismatches: tuple[AckMismatch, ...] = ()
    raw: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_empty(self) -> bool:
        """Tell whether the store belongs to nobody yet."""
        return self.group is None

    @property
    def applied_number(self) -> int:
        """Return the number of the newest applied file, 0 for none."""
        return self.applied.number if self.applied else 0

    def copy_of(self, sync_id: int) -> AckSync | None:
        """Return what the store says of the sync *sync_id*, None if it knows another or none."""
        return self.sync if self.sync and self.sync.sync_id == sync_id else None

    @property
    def confirmed(self) -> int:
        """Return the number up to which the store keeps everything durably."""
        return max(self.received, self.applied_number)


def parse_ack(data: bytes) -> Ack:
    """Return what the store says.

    Raises:
        Unavailable: cut short or damaged; the next one may be whole.
        Refused: written by a version that this program does not know.
    """
    try:
        raw = json.loads(data)
        if not isinstance(raw, dict):
            raise ValueError("no object")  # noqa: TRY004, TRY301 - damage, like the rest
        version = _number(raw["version"])
        if version == VERSION:
            return _ack(raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise Unavailable(f"the store's {ACK_NAME} is damaged: {exc}") from exc
    raise Refused(
        f"the store's {ACK_NAME} is of version {version}, this program reads {VERSION}",
        hint="Install the same release of aimfuse on both hosts.",
    )


def _ack(raw: dict[str, Any]) -> Ack:
    group, phase, error = raw["group"], raw["phase"], raw.get("error")
    needs_sync, promoted = raw.get("needs_sync"), raw.get("promoted")
    if phase not in PHASES:
        raise ValueError(f"phase {phase!r}")
    return Ack(
        None if group is None else _hex(group, _GROUP_BYTES),
        _number(raw["generation"]),
        phase,
        _head(raw.get("applied")),
        _number((raw.get("received") or {}).get("number") or 0),
        tuple(_number(one) for one in (raw.get("missing") or ())[:LISTED_MAX]),
        tuple(str(one)[:255] for one in (raw.get("damaged") or ())[:LISTED_MAX]),
        _sync(raw.get("sync")),
        _number((raw.get("queue") or {}).get("bytes") or 0),
        _number(raw.get("mirror_time_ns") or 0),
        _number(raw.get("oldest_waiting_ns") or 0),
        None if error is None else str(error)[:1000],
        bool(raw.get("held")),
        "receive" in (raw.get("paused") or {}),
        bool(raw.get("paused")),
        None if needs_sync is None else str(needs_sync)[:1000],
        None if promoted is None else Promotion.from_json(promoted),
        DIFFERS_NAME if raw.get("differs") == DIFFERS_NAME else None,
        _mismatches(raw.get("verified")),
        raw,
    )


def _head(raw: dict[str, Any] | None) -> AckHead | None:
    if raw is None:
        return None
    return AckHead(
        _number(raw["epoch"]), _number(raw["number"]), _number(raw["seq"]),
        _hex(raw["digest"], DIGEST_BYTES), _number(raw.get("time_ns") or 0),
    )  # fmt: skip


def _sync(raw: dict[str, Any] | None) -> AckSync | None:
    if raw is None:
        return None
    volume, offset = raw["next"]
    return AckSync(
        int.from_bytes(_hex(raw["id"], 8)), _number(raw["next_index"]),
        (_number(volume), _number(offset)), bool(raw["done"]), _number(raw.get("round") or 0),
        bool(raw.get("staged")), _number(raw.get("received") or 0),
    )  # fmt: skip


def _mismatches(raw: dict[str, Any] | None) -> tuple[AckMismatch, ...]:
    """Return what differs; of a volume that is gone there the name is missing."""
    return tuple(
        AckMismatch(str(one["name"]), _number(one["offset"]), _number(one["length"]))
        for one in ((raw or {}).get("mismatches") or ())[:LISTED_MAX]
        if one["name"] is not None
    )


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _U64_MAX:
        raise ValueError(f"{value!r} is no number")
    return value


def _hex(value: object, length: int) -> bytes:
    data = bytes.fromhex(value) if isinstance(value, str) else b""
    if len(data) != length:
        raise ValueError(f"{value!r} is no {length}-byte hex number")
    return data
