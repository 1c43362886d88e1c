"""A store that was promoted, made by hand: what `rejoin` must find, whoever made it."""

import time
from dataclasses import replace
from pathlib import Path

from aimfuse.config import DestinationConfig, GroupConfig, save
from aimfuse.config.keys import RESERVED
from aimfuse.coordinator.cursor import Cursor, CursorFile
from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import Checkpoint, CheckpointFile, KnownVolume
from aimfuse.journal.journal import Head
from aimfuse.journal.slots import Slots
from aimfuse.replay.state import Phase, Promoted, StoreState
from aimfuse.units import Epoch, VolumeId
from tests.e2e.host import QUICK


def promote(store: Path) -> Path:
    """Make the store, which nobody replays now, a source; return its state directory."""
    disk = Disk()
    slots = Slots(disk, store / "state", "state")
    data = slots.read()
    assert data is not None
    state = StoreState.from_json(data)
    assert state.head is not None
    assert state.group is not None
    fork = state.head
    promoted = Promoted(Epoch(fork.epoch + 1), fork, time.time_ns(), 0, fork)
    slots.write({**data, **replace(state, phase=Phase.PROMOTED, promoted=promoted).to_json()})
    for path in (store / "volumes").iterdir():
        path.unlink()
    home = store / "source"
    former = home / "destinations" / "former"
    for path in (home, home / "spool", former.parent, former):
        path.mkdir()
    at = Head(fork.epoch, fork.number, fork.seq, fork.digest)
    known = tuple(
        KnownVolume(one, (store / "mirror" / one.name).stat().st_ino) for one in state.volumes
    )
    checkpoint = Checkpoint(state.group, at, VolumeId(state.volume_id_max + 1), known)
    checkpoints = CheckpointFile(disk, home)
    checkpoints.write(checkpoint)
    checkpoints.write(checkpoint)
    CursorFile(disk, former, RESERVED).write(
        Cursor(RESERVED, state.group, at.number, at.epoch, at.number, at.digest, at.number)
    )
    image = store / "mirror"
    if len(state.volumes) == 1:
        image /= state.volumes[0].name
    largest = max(one.size_bytes for one in state.volumes)
    save(
        GroupConfig(
            home,
            image,
            journal=replace(QUICK, size_bytes_max=largest),
            destinations=(DestinationConfig("former", RESERVED),),
        )
    )
    return home
