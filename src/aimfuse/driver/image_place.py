"""What lies at a group's image path: a file, a block device, or a flat directory of images."""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import Checkpoint, KnownVolume
from aimfuse.driver.images import HIDDEN_PREFIX, Images, largest_file
from aimfuse.driver.volumes import Volumes
from aimfuse.errors import BusyError, ImageMismatch, UsageError
from aimfuse.journal import fingerprint
from aimfuse.journal.records import VolumeEntry, check_name
from aimfuse.units import TIB, VolumeId

DIRECTORY_SIZE_MAX = 16 * TIB
"""How large a volume of a directory group may grow unless the settings say otherwise."""


def images_at(disk: Disk, image: Path) -> Images:
    """Return what serves the images at *image*, none of them open yet.

    Raises:
        UsageError: nothing is there, or nothing that could be mirrored.
    """
    return Images(disk, image, directory=_is_directory(image), device=_is_device(image))


def size_limit(disk: Disk, image: Path, wanted: int | None) -> int | None:
    """Return how large volumes may grow: *wanted* bytes, or what the file system below allows.

    A write beyond that would be accepted, and then never fit into the image. None keeps an
    image at its size; a device has no other.
    """
    is_directory = _is_directory(image)
    if _is_device(image) or (wanted is None and not is_directory):
        return None
    where = image if is_directory else image.parent
    return largest_file(disk, where, DIRECTORY_SIZE_MAX if wanted is None else wanted)


def refuse_device_in_use(path: Path) -> None:
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


def check_untouched(disk: Disk, image: Path, before: Checkpoint) -> None:
    """Compare the images with the fingerprint of the last clean end, changing nothing.

    Raises:
        ImageMismatch: they are not the ones that were left.
    """
    images = images_at(disk, image)
    try:
        now = fingerprint_of(disk, images, volumes_of(adopt(disk, images)))
    finally:
        images.close()
    found = fingerprint.differences(before.fingerprint or {}, now)
    if found:
        raise ImageMismatch(
            "the image was changed while aimfuse was not serving it: " + "; ".join(found[:5]),
            hint="Put the old image back, or run `aimfuse mount --resync` to take this one; "
            "the mirrors then come back by staged copies.",
        )


def adopt(disk: Disk, images: Images, first: VolumeId = VolumeId(1)) -> list[KnownVolume]:
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


def volumes_of(known: Iterable[KnownVolume]) -> Volumes:
    """Return *known* as volumes that are only read."""
    return Volumes((one.entry for one in known), VolumeId(1))


def fingerprint_of(disk: Disk, images: Images, volumes: Volumes) -> fingerprint.Fingerprint:
    """Return what tells whether somebody else has written to *volumes*, those that are open."""
    is_open, fd = images.is_open, images.fd
    return fingerprint.take(
        disk, {one.name: fd(one.volume) for one in volumes if is_open(one.volume)}
    )


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
