"""What the demo holds against each other at the end: bytes, file system, ledger."""

import shutil
import sqlite3
from pathlib import Path

from aimfuse.units import MIB
from demo.disks import LoopDisk
from demo.running import Failed, Patience
from demo.workload import LEDGER, row_sum

_STRETCH_BYTES = 4 * MIB


def compare(one: Path, other: Path) -> int:
    """Return how many bytes two files have, both the same.

    Raises:
        Failed: they differ; the message says where.
    """
    at = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            mine, theirs = left.read(_STRETCH_BYTES), right.read(_STRETCH_BYTES)
            if mine != theirs:
                pairs = enumerate(zip(mine, theirs, strict=False))
                here = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(theirs)))
                raise Failed(f"{one.name} and its mirror differ at byte {at + here}")
            at += len(mine)
            if not mine:
                return at


def compare_all(image: Path, mirror: Path) -> int:
    """Compare every volume of a group with its mirror; return the bytes of all."""
    if not image.is_dir():
        return compare(image, mirror / image.name)
    names = sorted(path.name for path in image.iterdir())
    mirrored = sorted(path.name for path in mirror.iterdir())
    if names != mirrored:
        raise Failed(f"the source has {names}, the mirror {mirrored}")
    return sum(compare(image / name, mirror / name) for name in names)


def open_copy(patience: Patience, mirror: Path, scratch: Path, *, on_ext4: bool) -> int:
    """Use a copy of the mirror as a host that takes over would; return the ledger's rows.

    Raises:
        Failed: the file system or the database is not sound.
    """
    scratch.mkdir()
    for path in mirror.iterdir():
        patience.run("cp", "--sparse=always", path, scratch, interruptible=True)
    if not on_ext4:
        return count_rows(scratch / LEDGER)
    (image,) = scratch.iterdir()
    disk = LoopDisk(patience, image, scratch / "mnt")
    try:
        disk.mount()
        rows = count_rows(disk.mountpoint / LEDGER)
    finally:
        disk.release()
    patience.run("e2fsck", "-f", "-n", image)
    return rows


def count_rows(ledger: Path) -> int:
    """Return how many rows the ledger has: 1 to n, no hole, each with the right sum.

    Raises:
        Failed: it is damaged, or a row is missing or wrong.
    """
    database = sqlite3.connect(ledger)
    try:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise Failed(f"the ledger is damaged: {verdict}")
        rows = 0
        query = "SELECT number, noise, sum FROM ledger ORDER BY number"
        for number, noise, found in database.execute(query):
            rows += 1
            if number != rows or found != row_sum(number, noise):
                raise Failed(f"row {rows} of the ledger is missing or wrong")
    except sqlite3.Error as exc:
        raise Failed(f"the ledger cannot be read: {exc}") from exc
    finally:
        database.close()
    return rows


def forget(directory: Path) -> None:
    """Remove a scratch directory."""
    shutil.rmtree(directory, ignore_errors=True)
