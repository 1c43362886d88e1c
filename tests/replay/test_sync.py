"""A first sync is applied as it arrives, in its order, and promised only when it is complete."""

from pathlib import Path

import pytest

from aimfuse.replay.state import Phase
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import catch_up, report


@pytest.fixture
def source(tmp_path: Path) -> Source:
    made = Source(tmp_path / "spool")
    made.create("v.img", 30_000)
    made.write(1, 0, b"\x11" * 30_000)
    made.create("empty")
    made.create("sparse", 1 << 20)
    made.write(3, 1 << 19, b"in the middle")
    made.roll()
    return made


def test_a_synced_store_equals_its_source_and_keeps_the_holes(
    source: Source, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    deliver(store, *source.sync())
    session = catch_up(store)
    assert session.store.state.phase is Phase.CONSISTENT
    assert mirror_of(store) == source.snapshot()
    assert (store / "mirror" / "sparse").stat().st_blocks * 512 < 1 << 17


def test_sync_files_in_any_order_are_applied_in_theirs(source: Source, tmp_path: Path) -> None:
    store = tmp_path / "store"
    sync = list(source.sync())
    assert len(sync) > 3
    deliver(store, *sync[1:])
    session = catch_up(store)
    assert session.store.state.phase is Phase.EMPTY
    assert report(session)["queue"]["files"] == len(sync) - 1
    deliver(store, sync[0])
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_the_ack_says_where_the_sync_goes_on(source: Source, tmp_path: Path) -> None:
    store = tmp_path / "store"
    sync = list(source.sync(chunk=10_000, per_file=1))
    deliver(store, *sync[:2])
    ack = report(catch_up(store))
    assert ack["phase"] == "syncing"
    assert ack["sync"]["next_index"] == 2
    assert ack["sync"]["next"] == [1, 20_000]
    assert ack["sync"]["done"] is False
    assert ack["group"] == source.group.hex()
    assert mirror_of(store) == {}
    deliver(store, *sync)
    ack = report(catch_up(store))
    assert ack["sync"]["done"] is True
    assert ack["stale"] == 2
    assert mirror_of(store) == source.snapshot()


def test_the_mirror_appears_when_the_journal_reaches_the_promised_file(
    source: Source, tmp_path: Path
) -> None:
    """The copy is a mixture of times: writes went on while it was taken."""
    store = tmp_path / "store"
    origin = source.number
    sync = []
    for path in source.sync(to=origin + 2):
        sync.append(path)
        if len(sync) == 1:  # These reach the rest of the copy, and the journal.
            for volume in (1, 3):
                source.volumes[volume].data[20_000:20_500] = b"\x77" * 500
    source.write(1, 20_000, b"\x77" * 500)
    source.write(3, 20_000, b"\x77" * 500)
    source.write(1, 0, b"\x22" * 100)
    first = source.roll()
    source.truncate(1, 25_000)
    second = source.roll()
    deliver(store, second, *sync)
    session = catch_up(store)
    assert session.store.state.phase is Phase.CATCHING_UP
    assert mirror_of(store) == {}
    deliver(store, first)
    session = catch_up(store)
    assert session.store.state.phase is Phase.CONSISTENT
    assert mirror_of(store) == source.snapshot()


def test_journal_files_that_come_during_a_sync_wait_for_it(source: Source, tmp_path: Path) -> None:
    store = tmp_path / "store"
    sync = list(source.sync())
    source.write(1, 5, b"later")
    deliver(store, sync[0], source.roll())
    ack = report(catch_up(store))
    assert ack["received"] == {"number": 2}
    assert ack["applied"]["number"] == 1
    deliver(store, *sync[1:])
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_a_sync_that_begins_again_with_another_id_starts_over(
    source: Source, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    given_up = list(source.sync(sync_id=1))
    deliver(store, given_up[0], given_up[2])
    catch_up(store)
    source.zero(1, 0, 8000)
    source.roll()
    again = list(source.sync(sync_id=2))
    deliver(store, *again[:-1], given_up[1])
    session = catch_up(store)
    assert session.store.state.sync is not None
    assert session.store.state.sync.sync_id == 2
    deliver(store, again[-1])
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


@pytest.mark.expects_warnings
def test_a_store_that_has_its_sync_refuses_another(source: Source, tmp_path: Path) -> None:
    store = tmp_path / "store"
    deliver(store, *source.sync(sync_id=1))
    catch_up(store)
    before = mirror_of(store)
    source.write(1, 0, b"x" * 9000)
    source.roll()
    deliver(store, *source.sync(sync_id=2))
    session = catch_up(store)
    assert not session.halted
    assert mirror_of(store) == before
    assert report(session)["quarantined"] > 0


def test_an_empty_group_can_be_synced(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    deliver(store, *source.sync())
    assert catch_up(store).store.state.phase is Phase.CONSISTENT
    source.create("first.db", 10)
    deliver(store, source.roll())
    catch_up(store)
    assert mirror_of(store) == source.snapshot()
