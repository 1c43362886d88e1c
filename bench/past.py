"""The past: what keeping it costs a replayer, and how fast it comes back.

A group is mirrored to a store in a directory; then 1 GiB is written to it in random blocks of
4 KiB, which arrive while nobody replays. `history`: how fast copies of that store are replayed,
with history and, as the yardstick, with ``keep = 0``. `restore`: how long it takes to go back
over all of it, beside `cp` of the mirror's image. Everything is in memory: as little as can be,
for what a virtual machine takes beyond what it has just used, its host hands out slowly.
"""

import shutil
import time
from pathlib import Path

from aimfuse import config as configuration
from aimfuse.journal.names import JournalName, parse
from bench.load import GIB, MB, fio_words
from bench.ours import FarHost, Group
from bench.rig import MOUNTPOINT, VOLUME
from bench.running import AIMFUSE, Failed, Runner

SIZE = 4 * GIB
"""Of the image that is restored."""

REPLAYED_SIZE = 2 * GIB
"""Of the image whose changes are replayed: there are two copies of it at a time."""

WRITTEN_BYTES = 1 * GIB
_S_MAX = 600.0

Taken = tuple[list[float], list[float]]
"""Figures of ours and of the yardstick."""


class Past:
    """A store into whose inbox `WRITTEN_BYTES` of changes have come, and which waits for them.

    `store` is the copy of it that was worked on last, `origin` the position in front of them.
    """

    def __init__(self, runner: Runner, directory: Path, size_bytes: int) -> None:
        """Make it, for an image of so many bytes, below *directory*; takes a minute."""
        self._runner = runner
        self._directory = directory
        self._far = FarHost(runner, directory / "far")
        self._group = Group(runner, directory / "near")
        self.store = directory / "copy"
        self._output = directory / "output"
        self._size_bytes = size_bytes
        (directory / "near" / MOUNTPOINT).mkdir(parents=True)
        self.origin = self._build()
        self._bytes = sum(path.stat().st_size for path in self._inbox().values())
        if self._bytes < WRITTEN_BYTES:
            raise Failed(f"only {self._bytes / MB:.0f} MB came into the inbox")
        shutil.rmtree(directory / "near")  # Memory is scarce.

    def replay(self, rounds: int) -> Taken:
        """Return the MB/s with history and without."""
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(self._bytes / MB / self._replay_s("keep = 0\n"))
            ours.append(self._bytes / MB / self._replay_s(""))
        return ours, theirs

    def restore(self, rounds: int) -> Taken:
        """Return the MB/s of the image, of ours over all of the history and of cp, in turns."""
        ours, theirs = [], []
        words = (*AIMFUSE, "restore", self.store, "-o", self._output, "--at", self.origin)
        for _ in range(rounds):
            theirs.append(self._made_s("cp", self.store / "mirror" / VOLUME, self._output))
            ours.append(self._made_s(*words))
        size = self._size_bytes / MB
        return [size / one for one in ours], [size / one for one in theirs]

    def _build(self) -> str:
        """Mirror, end the replayer, write; return the position in front of what was written."""
        group, far, runner = self._group, self._far, self._runner
        group.initialise(self._size_bytes)
        group.save(configuration.add_destination(group.config(), f"dir://{far.store}"))
        with group.mounted():
            with far.replaying():
                group.drain(far)
            applied = far.ack()["applied"]
            options = ("--rw=randwrite", "--bs=4k", "--norandommap", f"--io_size={WRITTEN_BYTES}")
            report = group.image.with_name("fio.json")
            runner.run(*fio_words(group.volume, self._size_bytes, options, report))
            last = int(group.call("applied")["number"])
            runner.until(lambda: last in self._inbox(), "all has come into the inbox", _S_MAX)
        return f"{applied['epoch']}:{applied['seq']}"

    def _inbox(self) -> dict[int, Path]:
        found = {path: parse(path.name) for path in (self._far.store / "inbox").iterdir()}
        return {one.number: path for path, one in found.items() if isinstance(one, JournalName)}

    def unapplied(self) -> Path:
        """Return a new copy of the store, in place of the one before."""
        shutil.rmtree(self.store, ignore_errors=True)
        self._runner.run("cp", "-a", self._far.store, self.store)
        return self.store

    def apply_last(self) -> None:
        """Apply a copy, with history, and have no more new ones: memory is scarce."""
        self._replay_s("")
        shutil.rmtree(self._far.root)

    def _replay_s(self, settings: str) -> float:
        self.unapplied()
        (self.store / "store.toml").write_text(settings)
        began_s = time.monotonic()
        self._runner.run(*AIMFUSE, "replay", "--once", self.store)
        return time.monotonic() - began_s

    def _made_s(self, *words: str | Path) -> float:
        began_s = time.monotonic()
        self._runner.run(*words)
        took_s = time.monotonic() - began_s
        self._output.unlink()
        return took_s
