"""The directory where a group's AIM files lie: what is there, and what may go.

``*.aim`` are sealed and durable, ``*.open`` are being made ready or written, ``free-*`` are
released files kept for recycling. Only the holder of the group's lock changes the directory.
"""

from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.journal.names import OPEN, SEALED, JournalName, parse
from aimfuse.units import FileNumber

FREE_PREFIX = "free-"
FREE_FILES_MAX = 16
"""Released files kept for recycling; more than are in use at once brings nothing."""

WARN_RATIO = 0.7
MARGIN_FILES = 4
RESERVED_FILES = 4
"""Journal files that must still fit beside the reserve, so that what is open can be sealed."""


def sealed_names(disk: Disk, spool: Path) -> list[JournalName]:
    """Return the names of the finished files, in the order of the journal."""
    return _names(disk, spool, SEALED)


def open_names(disk: Disk, spool: Path) -> list[JournalName]:
    """Return the names of the unfinished files, in the order of the journal."""
    return _names(disk, spool, OPEN)


def free_files(disk: Disk, spool: Path) -> list[Path]:
    """Return the files that may be recycled."""
    return [spool / name for name in disk.listdir(spool) if name.startswith(FREE_PREFIX)]


def release(disk: Disk, spool: Path, through: FileNumber, *, recycle: bool = True) -> int:
    """Let go of the sealed files up to number *through*; return how many.

    The caller vouches that the image checkpoint is past them and that every destination has
    them. The first few become ``free-*``, durably, before anything may overwrite them, unless
    their disk is short of space.

    Raises:
        OSError: some files are gone and some are not; calling again goes on.
    """
    room = FREE_FILES_MAX - len(free_files(disk, spool)) if recycle else 0
    gone = [name for name in sealed_names(disk, spool) if name.number <= through]
    for name in gone:
        path = spool / name.sealed
        if room > 0:
            disk.rename("spool:recycle", path, spool / f"{FREE_PREFIX}{name}")
            room -= 1
        else:
            disk.unlink("spool:release", path)
    if gone:
        disk.sync_dir("spool:release_sync_dir", spool)
    return len(gone)


def full_mark(bytes_max: int, file_bytes: int) -> int:
    """Return from how many bytes on a spool counts as full: before a writer would wait."""
    margin = max(bytes_max // 10, min(MARGIN_FILES * file_bytes, bytes_max // 2))
    return bytes_max - margin


def full_reserve(reserve_bytes: int, file_bytes: int) -> int:
    """Return from how few free bytes on its disk on a spool counts as full."""
    return reserve_bytes + (RESERVED_FILES + 1) * file_bytes


def _names(disk: Disk, spool: Path, suffix: str) -> list[JournalName]:
    parsed = (parse(name, suffix) for name in disk.listdir(spool))
    return sorted(name for name in parsed if isinstance(name, JournalName))
