"""Where a file system of ours may be mounted, and what it is called in the mount table."""

import contextlib
import errno
import logging
import os
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from aimfuse.errors import BusyError, UsageError

log = logging.getLogger(__name__)

FSTYPE = "aimfuse"
VIEW_FSTYPE = "aimfuse-view"
"""Subtypes in the mount table: of a source's volumes, and of a store's past."""

VIEW_NOTE = ".aimfuse-view"
"""In a view, but in no list of its files: JSON that says what it shows."""

_PLAIN = "".join(set(string.printable[:-5]) - set(",\\%"))


def check_mountpoint(
    mountpoint: Path, image: Path, inside: list[Path], fstype: str = FSTYPE
) -> None:
    """Refuse a mountpoint that cannot be one, and clean up one that a dead process left.

    Raises:
        UsageError: no directory, not empty, or *image* or one of *inside* lies below it.
        BusyError: something is mounted there.
    """
    _clean_dead_mount(mountpoint, image, fstype)
    if not mountpoint.is_dir():
        hint = f"Run `mkdir {mountpoint}` first."
        if mountpoint.exists():
            hint = "Choose an empty directory."
        raise UsageError(f"{mountpoint} is no directory", hint=hint)
    if os.path.ismount(mountpoint):
        ours = [mounted_source(mountpoint, kind) for kind in (FSTYPE, VIEW_FSTYPE)]
        way_out = "aimfuse umount" if any(ours) else "umount"
        raise BusyError(
            f"something is mounted at {mountpoint} already",
            hint=f"Choose another directory, or end that mount first: {way_out} {mountpoint}",
        )
    top = os.path.realpath(mountpoint)  # Says nothing of endless links: others do.
    for path in (image, *inside):
        if Path(os.path.realpath(path)).is_relative_to(top):
            raise UsageError(
                f"{path} lies below the mountpoint {mountpoint}: the mount would hide it",
                hint="Choose an empty directory elsewhere.",
            )
    if any(mountpoint.iterdir()):
        raise UsageError(
            f"{mountpoint} is not empty: the mount would hide what is in it",
            hint="Choose an empty directory.",
        )


def _clean_dead_mount(mountpoint: Path, image: Path, fstype: str) -> None:
    try:
        # Not stat: for a moment after its driver's death the kernel answers that from memory.
        os.statvfs(mountpoint)
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            return
    else:
        return
    source = mounted_source(mountpoint, fstype)
    if source != source_name(image):
        raise BusyError(
            f"{mountpoint} is a dead mount of {source or 'something else'}",
            hint=f"Take it away first: fusermount3 -uz {mountpoint}",
        )
    log.warning("%s was left by a process that died: cleaning up", mountpoint)
    subprocess.run(["fusermount3", "-uz", "--", str(mountpoint)], check=False)


def source_name(image: Path) -> str:
    """Return how the mount table names *image*: its path, but what libfuse cannot take quoted."""
    return quote(os.fsencode(image), safe=_PLAIN)


def mounted_source(mountpoint: Path, fstype: str) -> str | None:
    """Return what is mounted there as *fstype*, as `source_name` has it, or None."""
    found = None
    for source, where in _mounts(fstype):
        if where == str(mountpoint):
            found = source
    return found


class View(NamedTuple):
    """A view of a store's past that is mounted."""

    store: str
    mountpoint: str
    is_scratch: bool


def view_above(path: Path) -> View | None:
    """Return the view that *path* is or lies in; None without one."""
    real = Path(os.path.realpath(path))
    for source, where, options in _table(VIEW_FSTYPE):
        if real.is_relative_to(where):
            store = os.fsdecode(unquote_to_bytes(os.fsencode(source)))
            return View(store, where, "ro" not in options.split(","))
    return None


def serving_mount(path: Path) -> str | None:
    """Return the mountpoint of the group whose image *path* is, or lies in; None without one."""
    real = Path(os.path.realpath(path))
    for source, where in _mounts(FSTYPE):
        image = os.path.realpath(os.fsdecode(unquote_to_bytes(os.fsencode(source))))
        if real.is_relative_to(image):
            return where
    return None


def is_volumes_alone(directory: Path) -> bool:
    """Tell whether *directory* lies in the mount of one image, where no file can be made."""
    real = Path(os.path.realpath(directory))
    for source, where in _mounts(FSTYPE):
        image = os.fsdecode(unquote_to_bytes(os.fsencode(source)))
        if real.is_relative_to(where) and not Path(image).is_dir():
            return True
    return False


def mount_above(path: Path, fstype: str) -> str | None:
    """Return the mountpoint of a mount of that kind that *path* is or lies in; None without one."""
    real = Path(os.path.realpath(path))
    found = [where for _source, where in _mounts(fstype) if real.is_relative_to(where)]
    return max(found, key=len, default=None)


def check_takes_directory(path: Path) -> None:
    """Refuse a place in one of our mounts, where no directory can be made.

    Raises:
        UsageError: it is in one.
    """
    where = mount_above(path, FSTYPE) or mount_above(path, VIEW_FSTYPE)
    if where is not None:
        raise UsageError(
            f"{path} is to be a directory, and in the mount at {where} there can be files alone",
            hint="Choose a place outside of that mount.",
        )


def _mounts(fstype: str) -> Iterator[tuple[str, str]]:
    """Yield source and mountpoint of every mount of that kind."""
    for source, where, _options in _table(fstype):
        yield source, where


def _table(fstype: str) -> Iterator[tuple[str, str, str]]:
    """Yield source, mountpoint and options of every mount of that kind."""
    with contextlib.suppress(OSError):
        table = os.fsdecode(Path("/proc/self/mounts").read_bytes())  # Other mounts' names, too.
        for line in filter(None, table.split("\n")):
            source, where, kind, options, *_ = line.split(" ")
            if kind == f"fuse.{fstype}":
                yield _unescape(source), _unescape(where), options


def _unescape(word: str) -> str:
    return os.fsdecode(os.fsencode(word).decode("unicode_escape").encode("latin-1"))
