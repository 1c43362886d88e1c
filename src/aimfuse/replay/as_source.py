"""Make a store a source: ``STORE/source/`` becomes the state directory of a group.

Its image is in ``mirror/``, where nothing else writes from here on. ``volumes/`` shares its
blocks as they are now, where the file system can: then the past can be read further on. Everything
is written anew after a crash; the settings come last, so that nobody serves what is not whole.
"""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from aimfuse.config import CONFIG_NAME, STORE_SOURCE, DestinationConfig, GroupConfig, save
from aimfuse.config.keys import RESERVED
from aimfuse.disk import publish
from aimfuse.errors import OUT_OF_SPACE, StateLost
from aimfuse.journal import fingerprint
from aimfuse.journal.lines import LABELS_NAME
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.slots import Slots
from aimfuse.replay.heartbeat import read_heartbeat
from aimfuse.replay.marks import labels_of_store
from aimfuse.replay.state import Json, Phase, Promoted
from aimfuse.replay.store import Store

FORMER = "former"
"""The destination that is kept for the old source, should it come back."""

_CLONE = ".clone"


def source_dir(store: Store) -> Path:
    """Return where the state of the group lies that a store becomes."""
    return store.home / STORE_SOURCE


def set_aside_left(store: Store, promoted: Promoted) -> None:
    """Move away what an earlier promotion left: a rejoin that was killed at its end did not.

    What it notes there, that the images belong to a mirror, would hold for the new source, too.

    Raises:
        OSError: the disk failed; calling again goes on.
    """
    left = source_dir(store)
    if store.disk.exists(left):
        store.disk.rename(
            "promote:set_aside", left, left.with_name(f"{left.name}.old-{promoted.at_ns}")
        )
        store.disk.sync_dir("promote:sync_dir", store.home)


def prepare_spool(store: Store) -> Path:
    """Make the directories of the source, durably; return that of its journal."""
    home = source_dir(store)
    for path in (home, home / "spool", home / "destinations", home / "destinations" / FORMER):
        store.disk.mkdir("promote:mkdir", path)
    return home / "spool"


def make_source(store: Store, promoted: Promoted) -> None:
    """Bring a store whose mirror is where it should be from PROMOTING to PROMOTED.

    Raises:
        OSError: a disk failed; calling again starts over.
    """
    prepare_spool(store)
    _leave_volumes(store)
    _write_labels(store, promoted)
    _write_checkpoint(store, promoted)
    _write_cursor(store, promoted)
    store.save(replace(store.state, phase=Phase.PROMOTED, reason=""))


def write_settings(store: Store) -> None:
    """Let a promoted store be served, if it never was: write the settings of the source."""
    home = source_dir(store)
    if store.disk.exists(home / CONFIG_NAME) or not store.disk.exists(home / "checkpoint.0"):
        return
    volumes = store.state.volumes
    image = store.mirror / volumes[0].name if is_one_image(store) else store.mirror
    former = DestinationConfig(FORMER, RESERVED)
    save(GroupConfig(home, image, destinations=(former,)), store.disk)


def is_one_image(store: Store) -> bool:
    """Tell whether the group is one image, and no directory in which files come and go.

    Its source says so. One that is too old to say had one image if there never was a second.
    """
    kind = read_heartbeat(store).kind
    state = store.state
    if len(state.volumes) != 1 or kind == "directory":
        return False
    return kind == "image" or state.volume_id_max <= 1


def _leave_volumes(store: Store) -> None:
    """Let ``mirror/`` alone name what will be written to."""
    disk = store.disk
    for name in disk.listdir(store.volumes):
        if name.endswith(_CLONE):
            disk.unlink("promote:unlink_left", store.volumes / name)
    for entry in store.state.volumes:
        path = store.volume_path(entry.volume)
        if disk.exists(path) and _inode(store, path) == _inode(store, store.mirror / entry.name):
            _part(store, entry)
    disk.sync_dir("promote:sync_dir", store.volumes)
    disk.sync_dir("promote:sync_dir", store.mirror)


def _part(store: Store, entry: VolumeEntry) -> None:
    """Give ``volumes/`` a clone of a volume of its own, or nothing where there are no clones."""
    disk, path = store.disk, store.volume_path(entry.volume)
    clone = path.with_name(path.name + _CLONE)
    source = disk.open("promote:image", path, os.O_RDONLY | os.O_NOFOLLOW)
    target = disk.open("promote:clone", clone, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        try:
            is_cloned = disk.clone("promote:clone", source, target)
        except OSError as exc:
            if exc.errno not in OUT_OF_SPACE:
                raise
            is_cloned = False
        if is_cloned:
            disk.fsync("promote:clone_sync", target)
    finally:
        disk.close(source)
        disk.close(target)
    if is_cloned:
        disk.rename("promote:clone_rename", clone, path)
    else:
        disk.unlink("promote:unlink_clone", clone)
        disk.unlink("promote:unlink_volume", path)


def _write_labels(store: Store, promoted: Promoted) -> None:
    """Let the source know which labels its history has: none is given again."""
    labels = labels_of_store(store.disk, store.home, promoted.fork.number, promoted.seq)
    if labels:
        publish(store.disk, "promote:labels", source_dir(store) / LABELS_NAME, labels)


def _write_checkpoint(store: Store, promoted: Promoted) -> None:
    """Say that the images are at the position, as a driver that ended in order does."""
    disk, state = store.disk, store.state
    assert state.group is not None
    assert state.head is not None
    fds: dict[str, int] = {}
    try:
        for entry in state.volumes:
            path = store.mirror / entry.name
            fds[entry.name] = disk.open("promote:image", path, os.O_RDWR | os.O_NOFOLLOW)
            disk.fsync("promote:image_sync", fds[entry.name])  # Times as well.
        inodes = {name: disk.inode(fd) for name, fd in fds.items()}
        taken = fingerprint.take(disk, fds)
    finally:
        for fd in fds.values():
            disk.close(fd)
    fork = promoted.fork
    _write_twice(store, source_dir(store) / "checkpoint", {
        "group": state.group.hex(),
        **state.head.to_json(),
        "running_epoch": promoted.epoch,
        "parent": {"epoch": fork.epoch, "seq": fork.seq, "digest": fork.digest.hex()},
        "clean": True,
        "next_volume": state.volume_id_max + 1,
        "volumes": [
            {"id": one.volume, "name": one.name, "size": one.size_bytes, "inode": inodes[one.name]}
            for one in state.volumes
        ],
        "fingerprint": taken,
        "gap": promoted.gap or None,
    })  # fmt: skip


def _write_cursor(store: Store, promoted: Promoted) -> None:
    """Keep, or note, from here on what the old source lacks when it comes back as a mirror."""
    fork, group = promoted.fork, store.state.group
    assert group is not None
    _write_twice(store, source_dir(store) / "destinations" / FORMER / "cursor", {
        "url": RESERVED, "group": group.hex(), "state": "shipping", "pin": fork.number,
        "epoch": fork.epoch, "number": fork.number, "digest": fork.digest.hex(),
        "applied": fork.number, "sync": None, "reason": None, "rule": None, "members": [],
    })  # fmt: skip


def _write_twice(store: Store, base: Path, content: Json) -> None:
    """Write both slots: one of them may get lost."""
    slots = Slots(store.disk, base, "promote")
    with contextlib.suppress(StateLost):  # Cut short by a crash: nobody has relied on it.
        slots.read()
    slots.write(content)
    slots.write(content)


def _inode(store: Store, path: Path) -> int:
    fd = store.disk.open("promote:inode", path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return store.disk.inode(fd)
    finally:
        store.disk.close(fd)
