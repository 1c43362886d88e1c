"""A directory group under load: one thread that makes, fills, renames and removes files.

There is one such thread, so what any recovery leaves has to be what the first *k* of its calls
left, names and bytes alike, for some *k* not below what a sync of the directory had promised.
"""

import contextlib
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

from aimfuse import config as configuration
from aimfuse.config import DestinationConfig
from aimfuse.disk import Disk
from aimfuse.driver.group import GroupPaths, init_group
from tests.e2e.crash.machine import FAST, Machine, Source

CONTROL_DIR = ".aimfuse"
NAMES = 12
BYTES_MAX = 6000

Held = dict[str, bytes]


def held(directory: Path) -> Held:
    """Return what the files in *directory* hold, by name."""
    paths = (path for path in directory.iterdir() if path.name != CONTROL_DIR)
    return {path.name: path.read_bytes() for path in paths}


class DirectorySource(Source):
    """Like `Source`, but the group is a directory of images."""

    def __init__(self, machine: Machine, place: Path) -> None:
        """Make the directory."""
        super().__init__(machine, place)
        self.image = place / "images"
        self.image.mkdir()

    def begin(self, *destinations: DestinationConfig) -> None:
        """Initialise the group."""
        journal = replace(FAST, size_bytes_max=1 << 20)
        config = configuration.GroupConfig(
            self.state, self.image, journal=journal, destinations=destinations
        )
        init_group(Disk(), GroupPaths(config.image, config.state_dir, config.spool))
        configuration.save(config)


class NameHistory:
    """What the directory held after each call, since it was empty."""

    def __init__(self, seed: int) -> None:
        """Begin with nothing."""
        self.dice = random.Random(seed)
        self.now: Held = {}
        self.marks = [_mark(self.now)]
        """One for each call, and one for the beginning; equal contents have equal marks."""
        self.completed = 0
        self.acked = 0

    def expect(self, now: Held) -> None:
        """Note what the call that comes next leads to; it counts as made from now on."""
        self.now = now
        self.marks.append(_mark(now))

    def prefix(self, found: Held) -> int:
        """Return the largest k for which *found* is what the first k calls left."""
        mark = _mark(found)
        ks = [k for k, one in enumerate(self.marks) if one == mark]
        wrong = {name for name in self.now | found if self.now.get(name) != found.get(name)}
        assert ks, f"no prefix of {len(self.marks) - 1} calls; unlike after the last: {wrong}"
        return ks[-1]

    def recovered(self, found: Held) -> int:
        """Go on from *found*: the calls after it are forgotten, and none was promised."""
        k = self.prefix(found)
        assert k >= self.acked, f"{self.acked} calls were promised, {k} are there"
        del self.marks[k + 1 :]
        self.now = found
        self.completed = self.acked = k
        return k


class NameLoad:
    """Call as fast as it goes until stopped or refused; a second thread syncs the directory."""

    def __init__(self, directory: Path, history: NameHistory) -> None:
        """Work in *directory*, which holds what *history* says."""
        self.error: OSError | None = None
        self._history = history
        self._directory = directory
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(work,), daemon=True)
            for work in (self._call, self._sync)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a request never returned"

    def wait_for_trouble(self, wait_s_max: float) -> bool:
        """Wait until a call has failed, or the time is over; tell which."""
        return self._over.wait(wait_s_max)

    def _run(self, work: Callable[[int], None]) -> None:
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                while not self._over.is_set():
                    work(fd)
            finally:
                with contextlib.suppress(OSError):
                    os.close(fd)
        except OSError as exc:
            self.error = self.error or exc
            self._over.set()

    def _call(self, directory: int) -> None:
        history, dice = self._history, self._history.dice
        name, other = (f"f{dice.randrange(NAMES)}" for _ in range(2))
        kind = dice.choice(("write", "write", "write", "rename", "rename", "remove", "cut"))
        now = dict(history.now)
        if name not in now:
            history.expect(now | {name: b""})
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, dir_fd=directory))
        elif kind == "write":
            self._write(directory, name, now)
        elif kind == "cut":
            size = dice.randrange(BYTES_MAX)
            history.expect(now | {name: now[name][:size].ljust(size, b"\0")})
            os.truncate(self._directory / name, size)
        elif kind == "rename":
            if name == other:
                return
            data = now.pop(name)
            history.expect(now | {other: data})
            os.rename(name, other, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            del now[name]
            history.expect(now)
            os.unlink(name, dir_fd=directory)
        history.completed = len(history.marks) - 1

    def _write(self, directory: int, name: str, now: Held) -> None:
        """Write within one page, so that it is one request."""
        history, dice = self._history, self._history.dice
        at = dice.randrange(BYTES_MAX)
        stamp = f"{len(history.marks)}:{name};".encode() * 300
        data = stamp[: min(len(stamp), 4096 - at % 4096)]
        before = now[name].ljust(at, b"\0")
        history.expect(now | {name: before[:at] + data + before[at + len(data) :]})
        fd = os.open(name, os.O_RDWR, dir_fd=directory)
        try:
            os.pwrite(fd, data, at)
        finally:
            os.close(fd)

    def _sync(self, directory: int) -> None:
        completed = self._history.completed
        os.fsync(directory)
        self._history.acked = max(self._history.acked, completed)
        self._over.wait(0.01)


def _mark(now: Held) -> int:
    return hash(frozenset(now.items()))
