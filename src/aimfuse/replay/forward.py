"""Pass a store's files on: what a further destination needs of them, unchanged.

``STORE/forward/`` is the state directory of a source whose image is ``mirror/``: it begins to
count once the operator puts a ``group.toml`` there, and `aimfuse ship` serves it like any
other. Its ``spool/`` gets a second name for each file before the mirror changes by it; its
checkpoint follows the mirror. What has to make room, or came by a staged copy, is missing in
it: then the next store gets a copy of the mirror.
"""

import contextlib
from dataclasses import astuple
from pathlib import Path

from aimfuse.config import JournalConfig, load
from aimfuse.disk import Disk
from aimfuse.errors import ConfigError
from aimfuse.journal.names import JournalName
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.slots import Slots
from aimfuse.journal.spool import free_files, sealed_names
from aimfuse.replay.state import Json, Phase
from aimfuse.replay.store import Store

FORWARD = "forward"
_SETTINGS = "group.toml"
_TRIM_EVERY = 16
"""Files between two looks at the size of the spool."""


def keep(store: Store, aim: AimFile) -> None:
    """Give *aim*, which is about to be applied, a name in the spool of the next hop, durably.

    Raises:
        OSError: the disk failed. Nothing else was changed.
    """
    disk, home = store.disk, store.home / FORWARD
    if not disk.exists(home / _SETTINGS):
        return
    spool = home / "spool"
    disk.mkdir("forward:mkdir", spool)
    name = JournalName(aim.identity.epoch, aim.identity.number).sealed
    if not disk.exists(spool / name):
        disk.link("forward:link", store.work / name, spool / name)
        disk.sync_dir("forward:sync_dir", spool)
    if aim.identity.number % _TRIM_EVERY == 0:
        _trim(store)


def _trim(store: Store) -> None:
    """Let the oldest files go when there is no room: a copy takes their place."""
    disk, home = store.disk, store.home / FORWARD
    for path in free_files(disk, home / "spool"):  # Nobody writes here to use them again.
        disk.unlink("forward:unlink", path)
    try:
        room = load(home, disk).journal.spool_bytes_max
    except ConfigError:  # Whoever ships says so.
        room = JournalConfig().spool_bytes_max
    sizes: dict[Path, int] = {}
    for name in sealed_names(disk, home / "spool"):
        with contextlib.suppress(FileNotFoundError):  # Whoever ships releases files meanwhile.
            path = home / "spool" / name.sealed
            sizes[path] = path.stat().st_size
    over = sum(sizes.values()) - room
    for path, size in sizes.items():
        if over <= 0:
            return
        with contextlib.suppress(FileNotFoundError):
            disk.unlink("forward:unlink", path)
        over -= size


class Forward:
    """Tells the next hop's coordinator how far the mirror is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._slots = Slots(store.disk, store.home / FORWARD / "checkpoint", "forward")
        self._noted: object = None

    def note(self) -> None:
        """Write the checkpoint if the mirror moved on; it is durable and true.

        Raises:
            OSError: the disk failed; the older checkpoint counts.
        """
        store, state = self._store, self._store.state
        if state.head is None or not store.disk.exists(store.home / FORWARD / _SETTINGS):
            return
        key = (astuple(state.head), state.volumes, state.phase)
        if key == self._noted:
            return
        if state.phase is not Phase.CONSISTENT and not self._slots.exists():
            return
        store.disk.mkdir("forward:mkdir", store.home / FORWARD / "spool")
        gap = None if state.phase is Phase.CONSISTENT else "the store is not consistent"
        self._slots.write({
            "group": state.group.hex() if state.group else "",
            **state.head.to_json(),
            "volumes": [_volume(store.disk, store, entry) for entry in state.volumes],
            "next_volume": state.volume_id_max + 1,
            "clean": True,
            "passed_on": True,
            "gap": gap,
        })  # fmt: skip
        self._noted = key


def _volume(disk: Disk, store: Store, entry: VolumeEntry) -> Json:
    fd = disk.open("forward:volume", store.volume_path(entry.volume), 0)
    try:
        inode = disk.inode(fd)
    finally:
        disk.close(fd)
    return {"id": entry.volume, "name": entry.name, "size": entry.size_bytes, "inode": inode}


def end_forwarding(store: Store) -> None:
    """Pass nothing more on: the settings get another name, and whoever ships there ends.

    Raises:
        OSError: the disk failed; calling again goes on.
    """
    home = store.home / FORWARD
    if store.disk.exists(home / _SETTINGS):
        store.disk.rename("forward:end", home / _SETTINGS, home / f"{_SETTINGS}.ended")
        store.disk.sync_dir("forward:end_sync_dir", home)
