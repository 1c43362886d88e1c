"""Read the small files of both ends without believing them, and without taking a lock.

Everything here tells what can be told: what is missing, half there or nonsense is None.
"""

import json
import os
from pathlib import Path
from typing import Any

from aimfuse.disk import Disk
from aimfuse.errors import StateLost, explain
from aimfuse.journal.inspect import is_shallow
from aimfuse.journal.slots import Slots

JSON_BYTES_MAX = 4 * 1024 * 1024

STALE_S = 5.0
"""A status file older than this says how things were, not how they are."""

State = dict[str, Any]


def read_json(path: Path) -> State | None:
    """Return the JSON object in *path*, or None without one.

    A FIFO, a device or a symbolic link in the place of the file is not followed.
    """
    data = _read(path, JSON_BYTES_MAX + 1)
    if data is None or len(data) > JSON_BYTES_MAX:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and is_shallow(found) else None


def read_slots(base: Path) -> tuple[State | None, str]:
    """Return the state in the two slots at *base*, and what is wrong with it or ""."""
    try:
        return Slots(Disk(), base, "status").read(), ""
    except StateLost:
        return None, f"{base.name}: neither slot is readable"
    except (OSError, ValueError, RecursionError) as exc:
        return None, f"{base.name}: {explain(exc)}"


def lock_holder(path: Path) -> int | None:
    """Return the pid of the process that holds the file's flock, None if nobody does.

    Asks the kernel's table: trying the lock would take it for a moment, and that moment is
    long enough to make a starting process believe that it is not alone.
    """
    try:
        info = path.stat()
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    inode = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    for line in table.splitlines():
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == inode:  # noqa: PLR2004
            return int(fields[4])
    return None


def count_files(directory: Path) -> tuple[int, int]:
    """Return how many regular files lie in *directory* and how many bytes they measure."""
    files = size = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False):
                        size += entry.stat(follow_symlinks=False).st_size
                        files += 1
                except OSError:
                    continue  # It went away between the two calls: files come and go here.
    except OSError:
        return 0, 0
    return files, size


def free_bytes(directory: Path) -> int | None:
    """Return what an ordinary user can still write on the directory's file system."""
    try:
        return Disk().free_bytes(directory)
    except OSError:
        return None


def _read(path: Path, limit: int) -> bytes | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError:
        return None
    try:
        return os.read(fd, limit)
    except OSError:
        return None
    finally:
        os.close(fd)
