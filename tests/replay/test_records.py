"""A file with one impossible record is refused whole, however sound its checksums are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.journal.records import RecordType
from tests.replay.source import Record, Source, deliver, mirror_of
from tests.replay.stores import begin, catch_up

pytestmark = pytest.mark.expects_warnings

W, Z, T = RecordType.WRITE, RecordType.ZERO, RecordType.TRUNCATE
C, R, U = RecordType.CREATE, RecordType.RENAME, RecordType.UNLINK

IMPOSSIBLE = {
    "a write that ends beyond any volume": Record(W, 1, (1 << 63) - 2, 4, b"xxxx"),
    "a write at the highest offset": Record(W, 1, (1 << 64) - 1, 4, b"xxxx"),
    "a hole that wraps around": Record(Z, 1, 1 << 63, 1 << 63, b""),
    "a hole of every byte": Record(Z, 1, 1, (1 << 64) - 1, b""),
    "a size beyond any volume": Record(T, 1, 0, 1 << 63, b""),
    "a volume that never was": Record(W, 9, 0, 4, b"xxxx"),
    "volume zero": Record(W, 0, 0, 4, b"xxxx"),
    "a name with a slash": Record(C, 3, 0, 0, b"../../etc/passwd"),
    "a name that goes up": Record(C, 3, 0, 0, b".."),
    "an empty name": Record(C, 3, 0, 0, b""),
    "a name with a control character": Record(C, 3, 0, 0, b"\x1b[2J"),
    "a name that is too long": Record(C, 3, 0, 0, b"x" * 256),
    "a name that is not UTF-8": Record(C, 3, 0, 0, b"\xff\xfe"),
    "a name that is taken": Record(C, 3, 0, 0, b"two"),
    "an id that was used": Record(C, 2, 0, 0, b"new"),
    "a rename that hides a volume": Record(R, 1, 0, 0, b"two"),
    "a rename that replaces another one": Record(R, 1, 7, 0, b"two"),
    "a rename to a path": Record(R, 1, 0, 0, b"a/b"),
}


@pytest.mark.parametrize("record", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_a_file_with_one_impossible_record_changes_nothing(tmp_path: Path, record: Record) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("one", 5000)
    source.create("two", 100)
    source.roll()
    begin(store, source)
    before = mirror_of(store)
    source.write(1, 0, b"sound, but in bad company")
    source.pending.append(record)
    deliver(store, source.roll())
    session = catch_up(store)
    assert session.halted
    assert mirror_of(store) == before
    assert not list((store / "work").iterdir())
    assert len(list((store / "quarantine").glob("*.aim"))) == 1


WRONG_TABLES: dict[str, Callable[[Source], None]] = {
    "another size": lambda source: source.volumes[1].data.extend(b"x"),
    "another name": lambda source: setattr(source.volumes[1], "name", "renamed"),
    "a volume less": lambda source: source.volumes.__delitem__(2),
}


@pytest.mark.parametrize("change", WRONG_TABLES.values(), ids=WRONG_TABLES.keys())
def test_a_table_that_contradicts_the_stores_own_halts_it(
    tmp_path: Path, change: Callable[[Source], None]
) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("one", 5000)
    source.create("two", 100)
    source.roll()
    begin(store, source)
    before = mirror_of(store)
    change(source)
    source.roll()  # Takes the wrong table along into the file after it.
    deliver(store, *sorted(source.spool.glob("00000001-*.aim"))[1:], source.roll())
    session = catch_up(store)
    assert "begins with the volumes" in session.halted
    assert mirror_of(store) == before


def test_offsets_near_the_end_of_the_largest_volume_are_no_error_of_the_arithmetic(
    tmp_path: Path,
) -> None:
    """The file system here cannot hold them: the position stays, and the ack says why."""
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("one", 5000)
    source.roll()
    begin(store, source)
    source.pending.append(Record(W, 1, (1 << 63) - 5, 4, b"xxxx"))
    deliver(store, source.roll())
    session = catch_up(store)
    assert session.error or session.store.state.head
    assert not session.halted
    if session.error:
        assert "File too large" in session.error or "Invalid argument" in session.error
        assert session.store.state.head is not None
        assert session.store.state.head.number == 1


def test_late_records_of_volumes_that_came_and_went_before_the_sync_are_passed_over(
    tmp_path: Path,
) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("one", 5000)
    gone = source.create("gone", 10)
    source.unlink(gone)
    source.roll()
    begin(store, source)
    source.write(gone, 0, b"by a program that still holds it")
    source.create("next", 10)
    deliver(store, source.roll())
    assert not catch_up(store).halted
    assert mirror_of(store) == source.snapshot()
