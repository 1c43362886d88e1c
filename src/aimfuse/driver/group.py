"""Bring a group to life and put it to rest: initialise, recover, serve, close. Blocking.

A group is an image file, a block device or a flat directory of images, together with its state
directory. `open_group` takes the locks, finds the journal's end, redoes it into the images and
starts the next epoch if the end was not a clean one.
"""

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from aimfuse.disk import Disk, note_owner, try_lock
from aimfuse.driver.checkpoint import Checkpoint, CheckpointFile, KnownVolume
from aimfuse.driver.engine import Engine, Limits
from aimfuse.driver.images import HIDDEN_PREFIX, Images, largest_file
from aimfuse.driver.labels import Labels
from aimfuse.driver.recovery import Namespace, redo
from aimfuse.driver.volumes import Volumes
from aimfuse.errors import BusyError, ImageMismatch, JournalError, StateLost, UsageError
from aimfuse.journal import fingerprint
from aimfuse.journal.journal import Head, Journal
from aimfuse.journal.records import VolumeEntry, check_name
from aimfuse.journal.recovery import recover
from aimfuse.units import TIB, Epoch, FileNumber, VolumeId

LOCK_NAME = "lock"
LOCK_S_MAX = 2.0
LOST_FILES_MAX = 1_000_000
"""More files than any spool held behind its checkpoint."""

DIRECTORY_SIZE_MAX = 16 * TIB
"""How large a volume of a directory group may grow unless the settings say otherwise."""

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
    _refuse_device_in_use(paths.image)
    images = _images_of(disk, paths)
    disk.mkdir("init:state", paths.state_dir)
    disk.mkdir("init:spool", paths.spool)
    disk.mkdir("init:destinations", paths.state_dir / "destinations")
    _write_note(disk, paths.state_dir / "README")
    volumes = tuple(_adopt(disk, images))
    checkpoint = Checkpoint(
        group=secrets.token_bytes(16),
        head=Head(),
        next_volume=VolumeId(len(volumes) + 1),
        volumes=volumes,
        clean=True,
        fingerprint=_fingerprint(disk, images, _volumes(volumes)),
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
        _check_spool(disk, paths.spool)
    if resync:
        before = _start_over(disk, paths, before)
        checkpoints.write(before)
    elif before.clean:
        _check_untouched(disk, paths, before)
    images = _images_of(disk, paths)
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
            fingerprint=_fingerprint(disk, engine.images, engine.volumes),
        )
        # Into both slots: `ship` may release files without a mount, and one slot may get lost.
        engine.write_checkpoint(final, engine.images.take_dirty())
        engine.write_checkpoint(final, engine.images.take_dirty())
    else:  # The journal may be what is lost; then this is all there will be.
        with contextlib.suppress(OSError):
            engine.images.sync(engine.images.take_dirty())
    engine.journal.close()
    engine.images.close()


def size_limit(disk: Disk, paths: GroupPaths, wanted: int | None) -> int | None:
    """Return how large volumes may grow: *wanted* bytes, or what the file system below allows.

    A write beyond that would be accepted, and then never fit into the image. None keeps an
    image at its size; a device has no other.
    """
    is_directory = _is_directory(paths.image)
    if _is_device(paths.image) or (wanted is None and not is_directory):
        return None
    where = paths.image if is_directory else paths.image.parent
    return largest_file(disk, where, DIRECTORY_SIZE_MAX if wanted is None else wanted)


def drain(engine: Engine) -> None:
    """Commit and apply everything that was accepted, in the calling thread."""
    commit = engine.begin_commit()
    if commit is not None:
        engine.journal.sync(commit)
        engine.finish_commit(commit)
    while batch := engine.begin_apply():
        engine.images.apply(batch)
        engine.finish_apply(batch)


class GroupLock:
    """The locks that keep a second mount away: on the state directory and on the image."""

    def __init__(self, paths: GroupPaths) -> None:
        """Take both, or raise `BusyError` with the owner's process id."""
        self._fds: list[int] = []
        try:
            self._take(paths.state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, paths)
            _refuse_device_in_use(paths.image)  # From now on we do not open it but exclusively.
            self._take(paths.image, os.O_RDONLY, paths)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the locks back; the end of the process does the same."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _take(self, path: Path, flags: int, paths: GroupPaths) -> None:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise BusyError(f"{path}: {exc.strerror}") from exc
        self._fds.append(fd)
        lock = self._fds[0]
        deadline_s = time.monotonic() + LOCK_S_MAX
        while not (locked := try_lock(fd)) and time.monotonic() < deadline_s:
            time.sleep(LOCK_S_MAX / 20)  # A `ship` without a mount takes it for moments.
        if not locked:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise BusyError(
                f"{paths.image} is served already, by process {owner}",
                hint=f"Use that mount, or end it with `aimfuse umount {paths.image}`.",
            )
        if fd == lock:
            note_owner(Disk(), "group:lock_pid", fd)


def _refuse_device_in_use(path: Path) -> None:
    """Refuse a block device that a file system, another aimfuse or anything else has claimed."""
    if not _is_device(path):
        return
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as exc:
        hint = ""
        if exc.errno == errno.EBUSY:
            hint = (
                f"Unmount what lies on it (findmnt {path}), and end what else uses it: another "
                "aimfuse, LVM, RAID, swap."
            )
        raise BusyError(f"{path}: {exc.strerror}", hint=hint) from exc


def _images_of(disk: Disk, paths: GroupPaths) -> Images:
    directory, device = _is_directory(paths.image), _is_device(paths.image)
    return Images(disk, paths.image, directory=directory, device=device)


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


def _start_over(disk: Disk, paths: GroupPaths, before: Checkpoint) -> Checkpoint:
    """Return a checkpoint that takes the images as they are, behind the journal's end.

    A spool that cannot be closed is set aside, never deleted. What was in it, or in one that is
    empty though it should not be, may have been sent: its numbers are not used again, so that no
    mirror is ahead of what comes.
    """
    try:
        _check_spool(disk, paths.spool)
        head = recover(disk, paths.spool, before.group, before.head).head
        if head == before.head and not before.clean:
            head = _beyond(before)
    except (JournalError, StateLost, FileNotFoundError):
        head = _beyond(before)
        _renew_spool(disk, paths.spool)
    images = _images_of(disk, paths)
    first = before.next_volume if images.is_directory else VolumeId(1)
    volumes = tuple(_adopt(disk, images, first))
    images.close()
    next_volume = VolumeId(max(before.next_volume, first + len(volumes)))
    return replace(
        before.unclean(),
        head=head,
        volumes=volumes,
        next_volume=next_volume,
        gap="the image was taken as it is by --resync",
    )


def _check_spool(disk: Disk, spool: Path) -> None:
    """Refuse a spool that is missing or cannot be listed.

    Raises:
        StateLost: it is, for the reason given.
    """
    try:
        disk.listdir(spool)
    except OSError as exc:
        is_missing = isinstance(exc, FileNotFoundError)
        raise StateLost(
            spool,
            "the spool is missing" if is_missing else f"the spool cannot be read: {exc.strerror}",
            hint="Mount its disk, or put it back. If it is lost, `aimfuse mount --resync` takes "
            "the image as it is; the mirrors come back by staged copies.",
        ) from exc


def _renew_spool(disk: Disk, spool: Path) -> None:
    """Make an empty spool, and set what lies in its place aside.

    Raises:
        StateLost: that cannot be moved, as a mounted disk cannot.
        OSError: the new one cannot be made.
    """
    if disk.exists(spool):
        aside = spool.with_name(f"{spool.name}.damaged-{time.time_ns()}")
        try:
            disk.rename("resync:set_aside", spool, aside)
        except OSError as exc:
            raise StateLost(
                spool,
                f"the spool cannot be used, nor set aside: {exc.strerror}",
                hint="Unmount its disk, or name another place: `spool` in group.toml. Then again.",
            ) from exc
    disk.mkdir("resync:spool", spool)


def _beyond(before: Checkpoint) -> Head:
    """Return a head that lies behind everything that a lost spool may have held."""
    head = before.head
    epoch = Epoch(max(before.epoch, head.epoch))
    return replace(head, epoch=epoch, number=FileNumber(head.number + LOST_FILES_MAX))


def _check_untouched(disk: Disk, paths: GroupPaths, before: Checkpoint) -> None:
    """Compare the images with the fingerprint of the last clean end, changing nothing."""
    images = _images_of(disk, paths)
    try:
        now = _fingerprint(disk, images, _volumes(_adopt(disk, images)))
    finally:
        images.close()
    found = fingerprint.differences(before.fingerprint or {}, now)
    if found:
        raise ImageMismatch(
            "the image was changed while aimfuse was not serving it: " + "; ".join(found[:5]),
            hint="Put the old image back, or run `aimfuse mount --resync` to take this one; "
            "the mirrors then come back by staged copies.",
        )


def _adopt(disk: Disk, images: Images, first: VolumeId = VolumeId(1)) -> list[KnownVolume]:
    """Open what lies at the image's path as volumes and return them, numbered from *first*."""
    if not images.is_directory:
        size = images.open(first, images.root)
        entry = VolumeEntry(first, check_name(images.root.name.encode()), size)
        return [KnownVolume(entry, images.inode(first))]
    found: list[KnownVolume] = []
    for name in disk.listdir(images.root):
        path = images.root / name
        if not path.is_file() or path.is_symlink() or name.startswith(HIDDEN_PREFIX):
            continue
        volume = VolumeId(first + len(found))
        entry = VolumeEntry(volume, check_name(name.encode()), images.open(volume, path))
        found.append(KnownVolume(entry, images.inode(volume)))
    return found


def _volumes(known: Iterable[KnownVolume]) -> Volumes:
    return Volumes((one.entry for one in known), VolumeId(1))


def _fingerprint(disk: Disk, images: Images, volumes: Volumes) -> fingerprint.Fingerprint:
    is_open, fd = images.is_open, images.fd
    return fingerprint.take(
        disk, {one.name: fd(one.volume) for one in volumes if is_open(one.volume)}
    )


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


def _is_directory(path: Path) -> bool:
    mode = _mode(path)
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return stat.S_ISDIR(mode)
    raise UsageError(
        f"{path} is neither a file, nor a block device, nor a directory",
        hint="Name the image that is to be mirrored.",
    )


def _is_device(path: Path) -> bool:
    return stat.S_ISBLK(_mode(path))


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as exc:
        raise UsageError(
            f"{path}: {exc.strerror}", hint="Make the image first, or put it back."
        ) from exc
