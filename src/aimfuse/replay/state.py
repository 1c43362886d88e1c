"""What a store knows about itself, and its JSON form in the state slots."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aimfuse.errors import StoreError
from aimfuse.journal.header import DIGEST_BYTES, NO_DIGEST
from aimfuse.journal.records import VolumeEntry
from aimfuse.replay.verified import Verified
from aimfuse.units import Epoch, FileNumber, Seq, VolumeId, natural

Json = dict[str, Any]


class Phase(StrEnum):
    """How far a store has come; only in CONSISTENT is its mirror promised.

    SWITCHING: a staged copy is being brought into the mirror. It is finished whatever happens.
    REWINDING: the mirror goes back to a point of the past. PROMOTING: it is there, and the store
    is being made a source. Both are finished whatever happens. PROMOTED: it is one.
    """

    EMPTY = "empty"
    SYNCING = "syncing"
    CATCHING_UP = "catching_up"
    SWITCHING = "switching"
    CONSISTENT = "consistent"
    HALTED = "halted"
    REWINDING = "rewinding"
    PROMOTING = "promoting"
    PROMOTED = "promoted"


PROMOTION = frozenset({Phase.REWINDING, Phase.PROMOTING, Phase.PROMOTED})
"""In these phases nothing that comes is applied."""


class HistoryBroken(StoreError):
    """The next file cannot be applied, now or later: the store halts before touching data."""

    hint = (
        "The mirror stays at the last good position. Copy what is needed from it; to go on, "
        "move the store away, and the source begins a new one with a first sync."
    )


class HistoryGap(HistoryBroken):
    """The source says that history is broken here: the mirror waits for a new copy."""


class UnfitFile(StoreError):
    """One file does not belong into this store: it is set aside, the store goes on."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last applied position: a file boundary of the journal, and when it was written."""

    epoch: Epoch = Epoch(0)
    number: FileNumber = FileNumber(0)
    seq: Seq = Seq(0)
    digest: bytes = NO_DIGEST
    time_ns: int = 0

    def to_json(self) -> Json:
        """Return the form that state slots and acks carry."""
        return {
            "epoch": self.epoch,
            "number": self.number,
            "seq": self.seq,
            "digest": self.digest.hex(),
            "time_ns": self.time_ns,
        }

    @classmethod
    def from_json(cls, data: Json) -> "Head":
        """Read what `to_json`, or a source in a SYNC mark, wrote.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or of another kind.
        """
        digest = bytes.fromhex(data["digest"])
        if len(digest) != DIGEST_BYTES:
            raise ValueError("a digest of another length")
        numbers = (natural(data["epoch"]), natural(data["number"]), natural(data["seq"]))
        epoch, number, seq = numbers
        return cls(
            Epoch(epoch), FileNumber(number), Seq(seq), digest, natural(data.get("time_ns", 0))
        )


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """How far a sync is: the next file's index, and the round and place where it has to begin.

    A sync of which parts were overtaken (the journal behind them has left the spool) goes
    over these again in a further round, from a later origin.
    """

    sync_id: int
    origin: Head
    next_index: int
    next_at: tuple[int, int]
    to: int | None = None
    round: int = 0

    @property
    def done(self) -> bool:
        """Tell whether the last file was applied."""
        return self.to is not None

    def to_json(self) -> Json:
        """Return the form that state slots carry."""
        return {
            "id": f"{self.sync_id:016x}",
            "from": self.origin.to_json(),
            "next_index": self.next_index,
            "next": list(self.next_at),
            "to": self.to,
            "round": self.round,
        }

    @classmethod
    def from_json(cls, data: Json) -> "SyncProgress":
        """Read what `to_json` wrote; errors as for `Head.from_json`."""
        volume, offset = data["next"]
        return cls(
            int(data["id"], 16),
            Head.from_json(data["from"]),
            natural(data["next_index"]),
            (natural(volume), natural(offset)),
            data["to"],
            natural(data.get("round", 0)),
        )


@dataclass(frozen=True, slots=True)
class Staging:
    """A copy of extents that waits in ``staging/`` until it can be switched in whole.

    `volumes` are those at the copy's origin. `size_bytes` is what its files hold.
    """

    progress: SyncProgress
    volumes: tuple[VolumeEntry, ...]
    next_volume: int | None
    size_bytes: int = 0
    reason: str = ""

    def to_json(self) -> Json:
        """Return the form that state slots carry."""
        return {
            "progress": self.progress.to_json(),
            "volumes": [volume_to_json(entry) for entry in self.volumes],
            "next_volume": self.next_volume,
            "bytes": self.size_bytes,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, data: Json) -> "Staging":
        """Read what `to_json` wrote; errors as for `Head.from_json`."""
        next_volume = data["next_volume"]
        return cls(
            SyncProgress.from_json(data["progress"]),
            _volumes(data["volumes"]),
            None if next_volume is None else natural(next_volume),
            natural(data["bytes"]),
            data["reason"],
        )


@dataclass(frozen=True, slots=True)
class Promoted:
    """The store goes on by itself: as `epoch`, behind the file boundary `fork`.

    Of the file behind the fork the records up to `seq` count too, 0 for none; `newest` is where
    the mirror was before. `at_ns`: when it was asked for, in Unix ns. `gap` says why the data may
    not be what the fork says, "" if it is: then no other mirror can go on from there.
    """

    epoch: Epoch
    fork: Head
    at_ns: int
    seq: int
    newest: Head
    gap: str = ""

    def to_json(self) -> Json:
        """Return the form that state slots and acks carry."""
        return {
            "epoch": self.epoch,
            "fork": self.fork.to_json(),
            "at_ns": self.at_ns,
            "seq": self.seq,
            "newest": self.newest.to_json(),
            "gap": self.gap,
        }

    @classmethod
    def from_json(cls, data: Json) -> "Promoted":
        """Read what `to_json` wrote; errors as for `Head.from_json`."""
        return cls(
            Epoch(natural(data["epoch"])),
            Head.from_json(data["fork"]),
            natural(data["at_ns"]),
            natural(data["seq"]),
            Head.from_json(data["newest"]),
            str(data.get("gap", "")),
        )


@dataclass(frozen=True, slots=True)
class StoreState:
    """Everything that a store must know after a restart.

    `volume_id_max` is the highest volume id that was ever mentioned; while
    `volume_ids_exact` is false, higher ones may have come and gone before the first sync.
    `shown` are the volumes that ``mirror/`` still names from before a switch. `doubt` says why
    the data may not be what the state says; see doubt.py. `promoted` is there from the moment
    on at which the store is to go on by itself.
    """

    group: bytes | None = None
    head: Head | None = None
    volumes: tuple[VolumeEntry, ...] = ()
    phase: Phase = Phase.EMPTY
    sync: SyncProgress | None = None
    reason: str = ""
    volume_id_max: int = 0
    volume_ids_exact: bool = False
    staging: Staging | None = None
    shown: tuple[VolumeEntry, ...] = ()
    doubt: str = ""
    promoted: Promoted | None = None
    verified: Verified = field(default_factory=Verified)

    @property
    def under_way(self) -> SyncProgress | None:
        """Return the sync that may still take files, or else the last one."""
        return self.staging.progress if self.staging else self.sync

    def to_json(self) -> Json:
        """Return the form that the state slots carry."""
        return {
            "group": self.group.hex() if self.group else None,
            "head": self.head.to_json() if self.head else None,
            "volumes": [volume_to_json(entry) for entry in self.volumes],
            "phase": self.phase.value,
            "sync": self.sync.to_json() if self.sync else None,
            "reason": self.reason,
            "volume_id_max": self.volume_id_max,
            "volume_ids_exact": self.volume_ids_exact,
            "staging": self.staging.to_json() if self.staging else None,
            "shown": [volume_to_json(entry) for entry in self.shown],
            "doubt": self.doubt,
            "promoted": self.promoted.to_json() if self.promoted else None,
            "verified": self.verified.to_json(),
        }

    @classmethod
    def from_json(cls, data: Json) -> "StoreState":
        """Read what `to_json` wrote; errors as for `Head.from_json`."""
        return cls(
            bytes.fromhex(data["group"]) if data["group"] else None,
            Head.from_json(data["head"]) if data["head"] else None,
            _volumes(data["volumes"]),
            Phase(data["phase"]),
            SyncProgress.from_json(data["sync"]) if data["sync"] else None,
            data["reason"],
            data["volume_id_max"],
            data["volume_ids_exact"],
            Staging.from_json(data["staging"]) if data.get("staging") else None,
            _volumes(data.get("shown", [])),
            data.get("doubt", ""),
            Promoted.from_json(data["promoted"]) if data.get("promoted") else None,
            Verified.from_json(data.get("verified")),
        )


def _volumes(listed: list[Json]) -> tuple[VolumeEntry, ...]:
    return tuple(
        VolumeEntry(VolumeId(entry["id"]), entry["name"], entry["size"]) for entry in listed
    )


def volume_to_json(entry: VolumeEntry) -> Json:
    """Return one volume as state slots and reports carry it."""
    return {"id": entry.volume, "name": entry.name, "size": entry.size_bytes}
