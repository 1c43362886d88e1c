"""Only the file that follows is applied: gaps wait, copies go, other histories halt the store."""

import random
from pathlib import Path

import pytest

from aimfuse.journal.records import RecordType
from aimfuse.replay.state import Phase
from tests.replay.source import Source, deliver, inbox_of, mirror_of
from tests.replay.stores import catch_up, report

FOREIGN = bytes(reversed(range(16)))


def write_file(source: Source, fill: int) -> Path:
    source.write(1, fill * 10, bytes([fill]) * 10)
    return source.roll()


def test_files_in_any_order_end_up_in_the_right_one(source: Source, store: Path) -> None:
    files = [write_file(source, fill) for fill in range(1, 20)]
    random.Random(1).shuffle(files)
    for file in files:
        deliver(store, file)
        catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_a_gap_stops_the_mirror_and_is_named(source: Source, store: Path) -> None:
    files = [write_file(source, fill) for fill in range(1, 6)]
    at_gap = source.snapshot()["v.img"][:20].ljust(5000, b"\0")
    deliver(store, files[0], files[2], files[4])
    ack = report(catch_up(store))
    assert ack["missing"] == [3, 5]
    assert ack["received"] == {"number": 2}
    assert ack["applied"]["number"] == 2
    assert ack["queue"]["files"] == 2
    assert mirror_of(store)["v.img"] == at_gap
    deliver(store, files[1])
    ack = report(catch_up(store))
    assert ack["missing"] == [5]
    assert ack["received"] == {"number": 4}
    deliver(store, files[3])
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_copies_of_old_and_waiting_files_are_dropped(source: Source, store: Path) -> None:
    files = [write_file(source, fill) for fill in range(1, 5)]
    deliver(store, *files[:2], files[3])
    catch_up(store)
    before = mirror_of(store)
    deliver(store, *files[:2], files[3])
    session = catch_up(store)
    assert not session.halted
    assert mirror_of(store) == before
    assert not list(inbox_of(store).iterdir())
    deliver(store, files[2])
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_a_new_epoch_that_begins_at_the_head_goes_on(source: Source, store: Path) -> None:
    deliver(store, write_file(source, 1))
    source.branch()
    deliver(store, write_file(source, 2))
    source.branch()
    deliver(store, source.roll(), write_file(source, 3))
    session = catch_up(store)
    assert session.store.state.head is not None
    assert (session.store.state.head.epoch, session.store.state.head.number) == (3, 5)
    assert mirror_of(store) == source.snapshot()


def test_a_file_without_records_moves_the_position_only(source: Source, store: Path) -> None:
    before = mirror_of(store)
    deliver(store, source.roll(), write_file(source, 0))
    session = catch_up(store)
    assert session.store.state.head is not None
    assert session.store.state.head.number == 3
    assert mirror_of(store) == before


def twin(source: Source, tmp_path: Path) -> Source:
    """Return a clone of the source as it is now, with a spool of its own."""
    clone = Source(tmp_path / "clone", source.group)
    clone.volumes = {v: type(held)(held.name, held.data[:]) for v, held in source.volumes.items()}
    clone.next_volume, clone.table = source.next_volume, source.table
    clone.epoch, clone.number, clone.seq = source.epoch, source.number, source.seq
    clone.digest, clone.parent = source.digest, source.parent
    return clone


@pytest.mark.expects_warnings
@pytest.mark.parametrize("applied", [1, 2])
def test_a_clone_that_writes_another_history_halts_the_store(
    source: Source, store: Path, tmp_path: Path, applied: int
) -> None:
    clone = twin(source, tmp_path)
    mine = [write_file(source, 1), write_file(source, 2)][:applied]
    deliver(store, *mine)
    catch_up(store)
    before = mirror_of(store)
    write_file(clone, 7)
    others = [*sorted(clone.spool.glob("*.aim")), write_file(clone, 8), write_file(clone, 9)]
    deliver(store, *others)
    session = catch_up(store)
    assert session.halted.startswith("fork: ")
    ack = report(session)
    assert ack["phase"] == "halted"
    assert ack["error"].startswith("fork: ")
    assert mirror_of(store) == before
    assert len(list((store / "quarantine").glob("*.aim"))) == 1
    again = catch_up(store)
    assert again.halted.startswith("fork: ")
    assert mirror_of(store) == before


@pytest.mark.expects_warnings
def test_a_source_that_went_back_in_time_halts_the_store(
    source: Source, store: Path, tmp_path: Path
) -> None:
    """It recovered from an old snapshot: a new epoch, whose parent lies behind the head."""
    old = twin(source, tmp_path)
    deliver(store, write_file(source, 1), write_file(source, 2))
    catch_up(store)
    before = mirror_of(store)
    old.branch()
    old.number = source.number
    deliver(store, write_file(old, 5))
    session = catch_up(store)
    assert "fork" in session.halted
    assert "went back in time" in session.halted
    assert mirror_of(store) == before


@pytest.mark.expects_warnings
def test_two_files_of_one_number_that_wait_are_a_fork(
    source: Source, store: Path, tmp_path: Path
) -> None:
    write_file(source, 1)
    clone = twin(source, tmp_path)
    deliver(store, write_file(source, 2))
    catch_up(store)
    clone.write(1, 0, b"other")
    deliver(store, clone.roll())
    assert "fork" in catch_up(store).halted


@pytest.mark.expects_warnings
def test_a_foreign_groups_file_is_set_aside_and_the_store_goes_on(
    source: Source, store: Path, tmp_path: Path
) -> None:
    foreign = Source(tmp_path / "foreign", FOREIGN)
    foreign.create("v.img", 100)
    foreign.roll()
    foreign.write(1, 0, b"not yours")
    wrong = foreign.roll()
    deliver(store, wrong)
    session = catch_up(store)
    ack = report(session)
    assert "foreign" in ack["error"]
    assert ack["phase"] == "consistent"
    assert ack["quarantined"] == 1
    assert (store / "quarantine" / wrong.name).exists()
    assert "foreign" in (store / "quarantine" / f"{wrong.name}.reason").read_text()
    deliver(store, write_file(source, 3))
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


@pytest.mark.expects_warnings
def test_a_gap_record_holds_the_mirror_before_anything_of_its_file(
    source: Source, store: Path
) -> None:
    deliver(store, write_file(source, 1))
    catch_up(store)
    before = mirror_of(store)
    source.write(1, 0, b"in front of the gap")
    source.mark(RecordType.GAP, b'{"reason": "spool full"}')
    deliver(store, source.roll())
    session = catch_up(store)
    assert not session.halted
    assert session.store.state.phase is Phase.CONSISTENT
    assert mirror_of(store) == before
    assert "spool full" in report(session)["needs_sync"]
    assert "spool full" in report(catch_up(store))["needs_sync"]


def test_journal_files_wait_in_the_inbox_of_an_empty_store(source: Source, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    sync = list(source.sync())
    file = write_file(source, 1)
    deliver(empty, file)
    session = catch_up(empty)
    assert session.store.state.phase is Phase.EMPTY
    assert [path.name for path in inbox_of(empty).iterdir()] == [file.name]
    deliver(empty, *sync)
    catch_up(empty)
    assert mirror_of(empty) == source.snapshot()
