"""Pins: who reads the past holds it, and nothing that he may still need is pruned.

A pin is a file in the history with a number: sets of files up to that one may go. Its holder
keeps it locked, so it ends with him, however he ends. ``pins.lock`` keeps a pin that is being
made apart from a pruning that is under way.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from aimfuse.disk import Disk

GATE = "pins.lock"
PREFIX = "pin-"
_NUMBER_BYTES = 20


class Movable(Protocol):
    """What holds the past."""

    def move(self, number: int) -> None:
        """Hold only what is behind file *number*."""


class Pin:
    """A pin that is held until `release`; at first everything is."""

    def __init__(self, disk: Disk, history: Path) -> None:
        """Take it, waiting for a pruning to end: moments.

        Raises:
            OSError: no file can be made in the history.
        """
        self._disk = disk
        self._path = history / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        gate = disk.open("pin:gate", history / GATE, os.O_RDWR | os.O_CREAT)
        try:
            disk.take_lock(gate, shared=True, wait=True)
            self._fd = disk.open("pin:create", self._path, os.O_RDWR | os.O_CREAT)
            disk.take_lock(self._fd)
            self.move(0)
        finally:
            disk.close(gate)

    def move(self, number: int) -> None:
        """Hold only what is behind file *number*."""
        self._disk.pwrite("pin:write", self._fd, [b"%-*d" % (_NUMBER_BYTES, number)], 0)

    def release(self) -> None:
        """Let go; whatever fails here is tidied up by whoever prunes."""
        with contextlib.suppress(OSError):
            self._disk.unlink("pin:unlink", self._path)
        self._disk.close(self._fd)


@contextmanager
def unpinned(disk: Disk, history: Path) -> Iterator[int | None]:
    """Keep new pins out; give the highest number whose set may go, None for no limit.

    It is 0, and nothing may go, while somebody is about to take a pin.

    Raises:
        OSError: the disk failed.
    """
    gate = disk.open("pins:gate", history / GATE, os.O_RDWR | os.O_CREAT)
    try:
        yield _lowest(disk, history) if disk.take_lock(gate) else 0
    finally:
        disk.close(gate)


def holders(disk: Disk, history: Path) -> str:
    """Return which processes hold the past, for people; "" if none does."""
    names = [name for name in disk.listdir(history) if name.startswith(PREFIX)]
    return ", ".join(name.split("-")[1] for name in names)


def _lowest(disk: Disk, history: Path) -> int | None:
    lowest: int | None = None
    for name in disk.listdir(history):
        if not name.startswith(PREFIX):
            continue
        try:
            fd = disk.open("pins:open", history / name, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            if disk.take_lock(fd):  # Its holder is gone.
                disk.unlink("pins:unlink", history / name)
                continue
            text = disk.pread(fd, _NUMBER_BYTES, 0).strip()
            number = int(text) if text.isdigit() else 0
            lowest = number if lowest is None else min(lowest, number)
        finally:
            disk.close(fd)
    return lowest
