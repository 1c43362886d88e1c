"""Disks that die or fail at a chosen labelled step; `Step` can be put before any `Disk`."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.replay.look import Entry, Look
from tests.disks.faults import Crash


class Steps(Disk):
    """Counts the labelled steps and calls *before* with each number (from 0) and label."""

    def __init__(self, before: Callable[[int, str], None] = lambda _at, _label: None) -> None:
        self.labels: list[str] = []
        self.before = before

    def step(self, label: str) -> None:
        at = len(self.labels)
        self.labels.append(label)
        self.before(at, label)
        super().step(label)


def dying(die_at: int) -> Steps:
    """Return a disk whose process is gone at step *die_at*, and stays so."""

    def before(at: int, label: str) -> None:
        if at >= die_at:
            raise Crash(label)

    return Steps(before)


def failing(fail_at: int, number: int) -> Steps:
    """Return a disk that refuses step *fail_at* with errno *number*."""

    def before(at: int, label: str) -> None:
        if at == fail_at:
            raise OSError(number, os.strerror(number), label)

    return Steps(before)


def failing_at(label: str, number: int = errno.EIO, *, times: int = 1) -> Steps:
    """Return a disk that refuses the first *times* steps of that label."""
    left = times

    def before(_at: int, seen: str) -> None:
        nonlocal left
        if seen == label and left:
            left -= 1
            raise OSError(number, os.strerror(number), label)

    return Steps(before)


class DiskLook(Look):
    """Looks at a directory through a (simulated) disk; every file is old and plain."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def scan(self, directory: Path) -> Iterator[str]:
        yield from self.disk.listdir(directory)

    def sized(self, directory: Path) -> Iterator[tuple[str, int]]:
        for name in self.scan(directory):
            if entry := self.entry(directory / name):
                yield name, entry.size

    def entry(self, path: Path) -> Entry | None:
        if not self.disk.exists(path):
            return None
        try:
            self.disk.listdir(path)
        except OSError:
            fd = self.disk.open("look", path, os.O_RDONLY)
            try:
                return Entry("file", self.disk.inode(fd), self.disk.size(fd), 1, 0, 0)
            finally:
                self.disk.close(fd)
        return Entry("directory", 1, 0, 1, 0, 0)
