"""A source that remembers its state behind every record, and what a restore gives of it."""

from datetime import UTC, datetime
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.journal.records import RecordType
from aimfuse.replay.point import Wanted, parse_at
from aimfuse.replay.restore import Request, restore
from tests.replay.source import Source, deliver
from tests.replay.stores import begin, catch_up

Position = tuple[int, int]
Snapshot = dict[str, bytes]
NOW = datetime(2026, 11, 23, 14, 0, 0, tzinfo=UTC)


class Recorder(Source):
    """`states`: the volumes behind each record, by epoch and seq; 0 is the epoch's begin."""

    def __init__(self, spool: Path) -> None:
        super().__init__(spool)
        self.states: dict[Position, Snapshot] = {}

    def _add(
        self, kind: RecordType, volume: int, offset: int = 0, length: int = 0, payload: bytes = b""
    ) -> None:
        self._remember()  # The change of this record is made once it is added.
        super()._add(kind, volume, offset, length, payload)

    def roll(self) -> Path:
        self._remember()
        return super().roll()

    def _remember(self) -> None:
        self.states[self.epoch, self.seq + len(self.pending)] = self.snapshot()


def at(position: Position) -> Wanted:
    return parse_at(f"{position[0]}:{position[1]}", NOW)


def silent(_what: str, _done: int, _total: int) -> None:
    """Report nothing."""


def restored(
    store: Path,
    wanted: Wanted,
    output: Path,
    disk: Disk | None = None,
) -> Snapshot:
    """Restore all volumes into the directory *output*; return what is in them."""
    disk = disk or Disk()
    said = restore(disk, store, Request(output, wanted, as_directory=True), silent)
    found = {one["name"]: (output / one["name"]).read_bytes() for one in said["volumes"]}
    assert sorted(found) == disk.listdir(output)
    assert {one["name"]: one["size"] for one in said["volumes"]} == {
        name: len(data) for name, data in found.items()
    }
    return found


def position(text: str) -> Position:
    epoch, seq = text.split(":")
    return int(epoch), int(seq)


def begun_recorder(scratch: Path, *, before: bytes) -> tuple[Recorder, Path]:
    """Return a source with one volume that has *before* in it, and its store after the copy.

    Of its states only the one at the end of the copy counts: none before can be restored.
    """
    source, store = Recorder(scratch / "spool"), scratch / "store"
    source.create("first", 15000)
    if before:
        source.write(1, 100, before)
    source.roll()
    copied = max(source.states)
    source.states = {copied: source.states[copied]}
    begin(store, source)
    return source, store


def recorded(scratch: Path) -> tuple[Recorder, Path, list[Path]]:
    """Return a source, its store with three files applied, and three more."""
    source, store = Recorder(scratch / "spool"), scratch / "store"
    source.create("v.img", 30000)
    source.write(1, 0, b"begin" * 5000)
    source.roll()
    begin(store, source)
    made = []
    for index in range(6):
        source.write(1, 100 * index, b"%d" % index * 9000)
        source.create(f"extra-{index}", 5000 + index)
        source.write(source.next_volume - 1, 1000, b"%d" % index * 700)
        source.mark_bookmark(f"mark {index}")
        source.truncate(1, 20000 - 1000 * index)
        source.zero(1, 4096, 4096)
        source.truncate(1, 25000)
        if index:
            source.unlink(source.next_volume - 2)
        made.append(source.roll())
    deliver(store, *made[:3])
    catch_up(store)
    return source, store, made[3:]
