"""The note that a source's history has ended because a mirror of it was promoted.

``superseded.json`` in the state directory. The coordinator writes it when a store says so, a
planned switch-over and a rejoin write how far they are; the driver reads it, and whoever asks
for the state. It is never taken back: the way on is `aimfuse rejoin`.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from aimfuse.disk import Disk, publish, read_file
from aimfuse.errors import StateLost, SupersededError
from aimfuse.journal.header import DIGEST_BYTES
from aimfuse.journal.journal import Head
from aimfuse.units import MIB, Epoch, FileNumber, Seq, natural

NAME = "superseded.json"
VERSION = 1
_BYTES_MAX = MIB
REASON_CHARACTERS_MAX = 500


class Step(StrEnum):
    """How far the change of sides is.

    SWITCHING: a planned one is asked for, and the store has not said yet that it is done.
    SUPERSEDED: the store is the source now. REJOINING: the image is being made a mirror; from
    here on nobody may write to it. REJOINED: it is one.
    """

    SWITCHING = "switching"
    SUPERSEDED = "superseded"
    REJOINING = "rejoining"
    REJOINED = "rejoined"


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promoted store says: the epoch that begins there, and the last file that counts.

    `gap`: why its data may not be what the fork says, "" if it is.
    """

    epoch: int
    fork: Head
    at_ns: int = 0
    gap: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the form that states and reports carry."""
        return {
            "epoch": self.epoch, "fork": self.fork.to_json(), "at_ns": self.at_ns, "gap": self.gap,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Promotion":
        """Read what `to_json`, or a store in its report, wrote.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or of another kind.
        """
        fork, at_ns = head_of(data["fork"]), natural(data.get("at_ns", 0))
        return cls(natural(data["epoch"]), fork, at_ns, _reason(data.get("gap", "")))


@dataclass(frozen=True, slots=True)
class Superseded:
    """Who goes on instead, and where the rejoined mirror lies once it is one.

    `problem` is why the images cannot be taken for what the journal says, "" if they can.
    """

    destination: str
    url: str
    promotion: Promotion | None
    step: Step = Step.SUPERSEDED
    store: str = ""
    problem: str = ""

    @property
    def is_final(self) -> bool:
        """Tell whether the image belongs to a mirror now, so that nobody may serve it."""
        return self.step in {Step.REJOINING, Step.REJOINED}

    def error(self, image: str = "IMAGE") -> SupersededError:
        """Return why nothing more is accepted or sent here, and the way out."""
        if self.step is Step.SWITCHING:
            return SupersededError(
                f"a switch-over to {self.destination} is under way",
                hint=f"Go on with it: `aimfuse switchover {image} {self.destination}`.",
            )
        if self.step is Step.REJOINED:
            return SupersededError(
                f"{image} belongs to the store {self.store}, a mirror since it rejoined {self.url}",
                hint=f"How that fares: `aimfuse status {self.store}`. Where that store is the "
                f"source again: `aimfuse mount {self.store} MOUNTPOINT`.",
            )
        if self.step is Step.REJOINING:
            return SupersededError(
                f"{image} is being made a mirror of {self.url}",
                hint=f"Go on with it: `aimfuse rejoin {image} {self.url}`.",
            )
        return SupersededError(
            f"{self.destination} was promoted: the source is {self.url} now",
            hint=f"Make this side a mirror of it: `aimfuse rejoin {image} {self.url}`. "
            f"What only it has: `aimfuse branch list {image}`.",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "version": VERSION,
            "step": self.step.value,
            "destination": self.destination,
            "url": self.url,
            "promoted": self.promotion.to_json() if self.promotion else None,
            "store": self.store,
            "problem": self.problem,
        }


def read_superseded(disk: Disk, state_dir: Path) -> Superseded | None:
    """Return the note, None if this history goes on.

    Raises:
        StateLost: there is one, and it cannot be read: then nobody may write either.
        OSError: the disk failed.
    """
    path = state_dir / NAME
    try:
        data = json.loads(read_file(disk, path, _BYTES_MAX))
        promoted = data["promoted"]
        return Superseded(
            str(data["destination"]),
            str(data["url"]),
            Promotion.from_json(promoted) if promoted else None,
            Step(data["step"]),
            str(data["store"]),
            str(data["problem"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        hint = "It says that a mirror was promoted. Remove it only if you know that none was."
        raise StateLost(path, f"it is damaged, or of another version: {exc!r}", hint=hint) from exc


def write_superseded(disk: Disk, state_dir: Path, note: Superseded) -> None:
    """Make *note* durable, whole or not at all."""
    publish(disk, "superseded", state_dir / NAME, json.dumps(note.to_json()).encode())


def head_of(data: dict[str, Any]) -> Head:
    """Read a position that somebody else wrote, strictly.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or of another kind.
    """
    digest = bytes.fromhex(data["digest"])
    if len(digest) != DIGEST_BYTES:
        raise ValueError("a digest of another length")
    return Head(
        Epoch(natural(data["epoch"])), FileNumber(natural(data["number"])),
        Seq(natural(data["seq"])), digest, natural(data.get("time_ns", 0)),
    )  # fmt: skip


def _reason(value: object) -> str:
    """Return what another host wrote for people, so that a terminal can show it."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    text = value[:REASON_CHARACTERS_MAX]
    return "".join(one if one.isprintable() else "?" for one in text)
