"""How far the image holds the journal, and what it looked like then.

A checkpoint says: all records of the journal files up to this one are in the images, durably.
Recovery redoes what lies behind it. It is taken at file boundaries only. A clean one also
carries the images' fingerprint, by which the next mount notices a change behind our back.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aimfuse.disk import Disk
from aimfuse.errors import StateLost
from aimfuse.journal.header import NO_DIGEST, Parent
from aimfuse.journal.journal import Head
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.slots import Slots
from aimfuse.units import Epoch, Seq, VolumeId

NAME = "checkpoint"


@dataclass(frozen=True, slots=True)
class KnownVolume:
    """A volume at a checkpoint; by its inode recovery finds the image under any name."""

    entry: VolumeEntry
    inode: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a group at the end of the file `head` names."""

    group: bytes
    head: Head
    next_volume: VolumeId
    volumes: tuple[KnownVolume, ...]
    epoch: Epoch = Epoch(1)
    parent: Parent = field(default_factory=Parent)
    clean: bool = False
    fingerprint: dict[str, Any] | None = None
    gap: str | None = None
    """Why history is broken behind this position, until a GAP record says so."""

    def entries(self) -> list[VolumeEntry]:
        """Return the volumes without their inodes."""
        return [known.entry for known in self.volumes]

    def unclean(self) -> "Checkpoint":
        """Return the same position, without a promise about the images' last state."""
        return replace(self, clean=False, fingerprint=None)


class CheckpointFile:
    """The two slots in the state directory. One writer, the holder of the group's lock."""

    def __init__(self, disk: Disk, state_dir: Path) -> None:
        """Use the slots named ``checkpoint`` in *state_dir*."""
        self._slots = Slots(disk, state_dir / NAME, NAME)

    def exists(self) -> bool:
        """Tell whether the group was ever initialised."""
        return self._slots.exists()

    def read(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None before the first.

        Raises:
            StateLost: the slots are unreadable, or hold something else.
        """
        state = self._slots.read()
        try:
            return None if state is None else _from_state(state)
        except (KeyError, ValueError, TypeError) as exc:
            raise StateLost(Path(NAME), f"the checkpoint lacks or spoils {exc}") from exc

    def write(self, checkpoint: Checkpoint) -> None:
        """Make *checkpoint* the newest, durable when this returns."""
        self._slots.write(_to_state(checkpoint))


def _to_state(checkpoint: Checkpoint) -> dict[str, Any]:
    head, parent = checkpoint.head, checkpoint.parent
    return {
        "group": checkpoint.group.hex(),
        **head.to_json(),
        "running_epoch": checkpoint.epoch,
        "parent": {"epoch": parent.epoch, "seq": parent.seq, "digest": parent.digest.hex()},
        "clean": checkpoint.clean,
        "next_volume": checkpoint.next_volume,
        "volumes": [
            {
                "id": v.entry.volume,
                "name": v.entry.name,
                "size": v.entry.size_bytes,
                "inode": v.inode,
            }
            for v in checkpoint.volumes
        ],
        "fingerprint": checkpoint.fingerprint,
        "gap": checkpoint.gap,
    }


def _from_state(state: dict[str, Any]) -> Checkpoint:
    parent = state["parent"]
    head = Head.from_json(state)
    if len(head.digest) != len(NO_DIGEST):
        raise ValueError("digest")
    return Checkpoint(
        bytes.fromhex(state["group"]),
        head,
        VolumeId(state["next_volume"]),
        tuple(
            KnownVolume(VolumeEntry(VolumeId(v["id"]), v["name"], v["size"]), v["inode"])
            for v in state["volumes"]
        ),
        Epoch(state["running_epoch"]),
        Parent(Epoch(parent["epoch"]), Seq(parent["seq"]), bytes.fromhex(parent["digest"])),
        bool(state["clean"]),
        state["fingerprint"],
        state["gap"],
    )
