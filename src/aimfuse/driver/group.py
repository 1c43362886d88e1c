"""Bring a group to life and put it to rest: initialise, recover, serve, close. Blocking.

A group is an image file, a block device or a flat directory of images, together with its state
directory. `open_group` finds the journal's end, redoes it into the images and starts the next
epoch if the end was not a clean one.
"""

import contextlib
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import Checkpoint, CheckpointFile, KnownVolume
from aimfuse.driver.engine import Engine, Limits
from aimfuse.driver.image_place import (
    DIRECTORY_SIZE_MAX,
    adopt,
    check_untouched,
    fingerprint_of,
    images_at,
    refuse_device_in_use,
    volumes_of,
)
from aimfuse.driver.images import Images
from aimfuse.driver.labels import Labels
from aimfuse.driver.recovery import Namespace, redo
from aimfuse.driver.start_over import check_spool, start_over
from aimfuse.driver.volumes import Volumes
from aimfuse.errors import UsageError
from aimfuse.journal.journal import Head, Journal
from aimfuse.journal.recovery import recover
from aimfuse.units import Epoch, VolumeId

_NOTE = """\
This directory belongs to aimfuse: it holds the journal of the image beside it.

While the volume is mounted, and after a crash until the next mount, the image alone is NOT the
whole truth: the newest writes are in spool/. Read and write the volume only through
`aimfuse mount`. Do not delete or edit anything here.
"""


@dataclass(frozen=True, slots=True)
class GroupPaths:
    """Where a group's parts lie."""

    image: Path
    state_dir: Path
    spool: Path


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What a group may use; sizes in bytes. Without `size_max` images keep their size."""

    file_bytes: int
    memory_bytes_max: int
    size_max: int | None = None


def init_group(disk: Disk, paths: GroupPaths) -> Checkpoint:
    """Make the state of a new group around what the image holds now.

    Raises:
        UsageError: the image is missing or no image, or the group exists already.
        BusyError: it is a device that something else uses.
        OSError: nothing or an unfinished state directory was left; calling again goes on.
    """
    checkpoints = CheckpointFile(disk, paths.state_dir)
    if _is_initialised(checkpoints):
        raise UsageError(
            f"{paths.image} is initialised already (state in {paths.state_dir})",
            hint=f"Mount it: aimfuse mount {paths.image} MOUNTPOINT",
        )
    refuse_device_in_use(paths.image)
    images = images_at(disk, paths.image)
    disk.mkdir("init:state", paths.state_dir)
    disk.mkdir("init:spool", paths.spool)
    disk.mkdir("init:destinations", paths.state_dir / "destinations")
    _write_note(disk, paths.state_dir / "README")
    volumes = tuple(adopt(disk, images))
    checkpoint = Checkpoint(
        group=secrets.token_bytes(16),
        head=Head(),
        next_volume=VolumeId(len(volumes) + 1),
        volumes=volumes,
        clean=True,
        fingerprint=fingerprint_of(disk, images, volumes_of(volumes)),
    )
    checkpoints.write(checkpoint)
    checkpoints.write(checkpoint)  # Both slots: later one of them may be damaged.
    images.close()
    return checkpoint


def open_group(
    disk: Disk, paths: GroupPaths, limits: GroupLimits, *, resync: bool = False
) -> Engine:
    """Recover the group and return its engine, accepting.

    With *resync* an image that was changed behind our back becomes the truth: a GAP record
    says that history is broken, and every mirror comes back by a staged copy of everything.

    Raises:
        UsageError: not initialised.
        ImageMismatch: the image is not the one that was left. Nothing was changed.
        JournalError: the journal is damaged. Nothing was dropped.
        StateLost: the checkpoint or the spool cannot be read. Nothing was changed.
        OSError: as the disk gave it.
    """
    checkpoints = CheckpointFile(disk, paths.state_dir)
    before = checkpoints.read()
    if before is None:
        raise UsageError(
            f"{paths.image} is not initialised", hint=f"Run `aimfuse init {paths.image}` first."
        )
    if not resync:
        check_spool(disk, paths.spool)
    if resync:
        before = start_over(disk, paths.image, paths.spool, before)
        checkpoints.write(before)
    elif before.clean:
        check_untouched(disk, paths.image, before)
    images = images_at(disk, paths.image)
    try:
        recovered = recover(disk, paths.spool, before.group, before.head)
        namespace = redo(disk, paths.spool, recovered.files, before, images)
        engine = _serve(disk, paths, limits, checkpoints, before, recovered.head, images, namespace)
        if before.gap is not None:
            engine.gap(before.gap)
    except BaseException:
        images.close()
        raise
    return engine


def close_group(disk: Disk, engine: Engine) -> None:
    """End cleanly: commit, apply and seal all, checkpoint with the images' fingerprint.

    Raises:
        OSError: the end is not clean; the next mount recovers, nothing is lost.
    """
    drain(engine)
    if engine.halted is None:
        engine.retire()
        while engine.journal.closing:
            engine.finish_seal(engine.journal.seal_next())
        step = engine.begin_checkpoint()
        if step is not None:
            engine.write_checkpoint(*step)
            engine.finish_checkpoint(step[0])
        else:
            engine.images.sync(engine.images.take_dirty())
        engine.images.sync_all()  # Times as well: the fingerprint holds them.
        final = replace(
            engine.checkpoint,
            clean=True,
            epoch=engine.journal.epoch,
            next_volume=engine.volumes.next_volume,
            fingerprint=fingerprint_of(disk, engine.images, engine.volumes),
        )
        # Into both slots: `ship` may release files without a mount, and one slot may get lost.
        engine.write_checkpoint(final, engine.images.take_dirty())
        engine.write_checkpoint(final, engine.images.take_dirty())
    else:  # The journal may be what is lost; then this is all there will be.
        with contextlib.suppress(OSError):
            engine.images.sync(engine.images.take_dirty())
    engine.journal.close()
    engine.images.close()


def drain(engine: Engine) -> None:
    """Commit and apply everything that was accepted, in the calling thread."""
    commit = engine.begin_commit()
    if commit is not None:
        engine.journal.sync(commit)
        engine.finish_commit(commit)
    while batch := engine.begin_apply():
        engine.images.apply(batch)
        engine.finish_apply(batch)


def _is_initialised(checkpoints: CheckpointFile) -> bool:
    """Tell whether there is a group; an unreadable state counts as one, and is never replaced."""
    return checkpoints.exists() and checkpoints.read() is not None


def _serve(  # noqa: PLR0913 - everything that recovery found
    disk: Disk,
    paths: GroupPaths,
    limits: GroupLimits,
    checkpoints: CheckpointFile,
    before: Checkpoint,
    head: Head,
    images: Images,
    namespace: Namespace,
) -> Engine:
    """Write the checkpoint that recovery reached, and start the journal behind it."""
    volumes = Volumes(namespace.entries(), namespace.next_volume)
    for volume in volumes:
        volume.mode, volume.uid, volume.gid = images.owner(volume.volume)
    epoch, parent = before.epoch, before.parent
    if not before.clean and head.number:
        epoch, parent = Epoch(head.epoch + 1), head.as_parent()
    labels = Labels(disk, paths.state_dir)
    for one in namespace.bookmarks:
        labels.note(one)
    labels.save(head.epoch, head.seq)
    known = tuple(KnownVolume(e, images.inode(e.volume)) for e in namespace.entries())
    checkpoint = Checkpoint(
        before.group, head, namespace.next_volume, known, epoch, parent, gap=before.gap
    )
    checkpoints.write(checkpoint)
    if before.clean:
        # Into the other slot too: should this one get lost, the clean one must not be found
        # beneath it, since from now on the image changes.
        checkpoints.write(checkpoint)
    journal = Journal(disk, paths.spool, before.group, head, parent, epoch, limits.file_bytes)
    engine = Engine(
        journal, images, volumes, checkpoints, checkpoint,
        Limits(_size_max(images, volumes, limits), limits.memory_bytes_max),
    )  # fmt: skip
    engine.labels = labels
    journal.adopt(journal.make_ready())
    engine.roll()
    return engine


def _size_max(images: Images, volumes: Volumes, limits: GroupLimits) -> int:
    if limits.size_max is not None:
        return limits.size_max
    if images.is_directory:
        return DIRECTORY_SIZE_MAX
    return max(volume.size_bytes for volume in volumes)


def _write_note(disk: Disk, path: Path) -> None:
    fd = disk.open("init:note", path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        disk.pwrite("init:note", fd, [_NOTE.encode()], 0)
    finally:
        disk.close(fd)
