"""Take an image as it is (`--resync`): behind an end of the journal that may be lost."""

import time
from dataclasses import replace
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import Checkpoint
from aimfuse.driver.image_place import adopt, images_at
from aimfuse.errors import JournalError, StateLost
from aimfuse.journal.journal import Head
from aimfuse.journal.recovery import recover
from aimfuse.units import Epoch, FileNumber, VolumeId

LOST_FILES_MAX = 1_000_000
"""More files than any spool held behind its checkpoint."""


def start_over(disk: Disk, image: Path, spool: Path, before: Checkpoint) -> Checkpoint:
    """Return a checkpoint that takes the images as they are, behind the journal's end.

    A spool that cannot be closed is set aside, never deleted. What was in it, or in one that is
    empty though it should not be, may have been sent: its numbers are not used again, so that no
    mirror is ahead of what comes.

    Raises:
        StateLost: the spool can neither be used nor set aside.
        UsageError: there is no image.
        OSError: as the disk gave it.
    """
    try:
        check_spool(disk, spool)
        head = recover(disk, spool, before.group, before.head).head
        if head == before.head and not before.clean:
            head = _beyond(before)
    except (JournalError, StateLost, FileNotFoundError):
        head = _beyond(before)
        _renew_spool(disk, spool)
    images = images_at(disk, image)
    first = before.next_volume if images.is_directory else VolumeId(1)
    volumes = tuple(adopt(disk, images, first))
    images.close()
    next_volume = VolumeId(max(before.next_volume, first + len(volumes)))
    return replace(
        before.unclean(),
        head=head,
        volumes=volumes,
        next_volume=next_volume,
        gap="the image was taken as it is by --resync",
    )


def check_spool(disk: Disk, spool: Path) -> None:
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
