"""A store with many files in its history, and a disk that counts which are opened."""

from collections import Counter
from pathlib import Path

from aimfuse.disk import Disk
from tests.replay.recorder import (
    Recorder,
)
from tests.replay.source import deliver
from tests.replay.stores import begin, catch_up


class Counting(Disk):
    """Counts the files of a history that are opened, by the end of their names."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: Counter[str] = Counter()

    def open(self, label: str, path: Path, flags: int, mode: int = 0o666) -> int:
        if path.parent.name == "history":
            self.opened[path.suffix] += 1
        return super().open(label, path, flags, mode)


def many_files(scratch: Path, count: int, back: int = 0) -> tuple[Recorder, Path]:
    """Return a store with *count* files in its history; at half way the clock goes *back*."""
    source, store = Recorder(scratch / "spool"), scratch / "store"
    source.create("v.img", 30000)
    source.roll()
    begin(store, source)
    made = []
    for index in range(count):
        source.write(1, index, b"%d" % index)
        source.write(1, index, b"%d again" % index)
        made.append(source.roll())
        source.clock_ns -= back * (index == count // 2)
    deliver(store, *made)
    catch_up(store)
    return source, store
