"""A copy for a mirror that exists is staged, and comes in whole or not at all."""

import contextlib
import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.journal.records import RecordType
from aimfuse.replay.session import Session
from aimfuse.replay.state import Phase
from tests.dice import LONG
from tests.disks.cuts import keep_all, keep_none, keep_random
from tests.disks.faults import Crash
from tests.disks.simdisk import SimDisk
from tests.replay.crashes import (
    STORE,
    copy_store,
    plant,
    run_into,
    run_simulated,
    simulated_mirror,
    steps_of,
)
from tests.replay.faults import DiskLook, Steps, dying, failing, failing_at
from tests.replay.resyncs import BLOCK, do_more, do_much, make_source
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import begin, catch_up, exhaust, opened, report


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "spool")


@pytest.fixture
def store(source: Source, tmp_path: Path) -> Path:
    begin(tmp_path / "store", source)
    return tmp_path / "store"


def test_the_mirror_stays_at_its_point_until_all_is_there_and_then_equals_the_source(
    source: Source, store: Path
) -> None:
    before = mirror_of(store)
    copy = source.resync(do_much(source), to=4)
    copies = [next(copy)]
    journal = do_more(source)  # The rest of the copy is newer than its origin.
    copies += copy
    assert len(copies) > 4
    ack = report(catch_up(store))
    for number, file in enumerate(copies):
        deliver(store, file)
        session = catch_up(store)
        ack = report(session)
        assert mirror_of(store) == before
        assert ack["phase"] == "consistent"
        assert ack["sync"]["next_index"] == number + 1
        assert ack["sync"]["staged"]
        assert ack["received"]["number"] == 1
    assert ack["sync"]["done"]
    assert ack["sync"]["received"] == 3
    deliver(store, *journal)
    session = catch_up(store)
    assert session.store.state.phase is Phase.CONSISTENT
    assert mirror_of(store) == source.snapshot()
    assert not list((store / "staging").iterdir())
    assert not list((store / "work").iterdir())
    source.write(1, 0, b"life goes on")
    deliver(store, source.roll())
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_staged_files_in_any_order_and_twice_come_in_once(source: Source, store: Path) -> None:
    copies = list(source.resync(do_much(source), to=3))
    deliver(store, *copies[1:], copies[1])
    catch_up(store)
    deliver(store, copies[0], copies[2])
    catch_up(store)
    assert mirror_of(store) == source.snapshot()
    deliver(store, *copies)
    ack = report(catch_up(store))
    assert ack["stale"] == len(copies)
    assert mirror_of(store) == source.snapshot()


def test_what_was_overtaken_is_copied_again_in_another_round(source: Source, store: Path) -> None:
    first = list(source.resync(do_much(source), to=3))
    deliver(store, *first[:-1])
    catch_up(store)
    source.write(1, 0, b"\x99" * BLOCK)
    source.create("of the second round", 10)
    source.unlink(4)
    gone = [source.roll()]
    deliver(store, *source.resync(gone, to=4, index=len(first) - 1, round_number=1))
    session = catch_up(store)
    assert session.store.state.head is not None
    assert session.store.state.head.number == 4
    written = source.snapshot()
    written["v.img"] = mirror_of(store)["v.img"]  # Its last piece of round 0 is missing on purpose.
    assert mirror_of(store) == written
    assert mirror_of(store)["v.img"][:BLOCK] == b"\x99" * BLOCK


def test_a_copy_that_had_its_end_can_still_be_overtaken(source: Source, store: Path) -> None:
    first = list(source.resync(do_much(source), to=4))
    deliver(store, *first)
    catch_up(store)
    source.write(3, 0, b"\x98" * BLOCK)
    gone = [source.roll()]
    deliver(store, *source.resync(gone, to=4, index=len(first), round_number=1))
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_a_first_copy_that_cannot_catch_up_any_more_is_followed_by_a_staged_one(
    tmp_path: Path,
) -> None:
    source, store = make_source(tmp_path / "spool"), tmp_path / "store"
    deliver(store, *source.sync(to=3))
    session = catch_up(store)
    assert session.store.state.phase is Phase.CATCHING_UP
    assert mirror_of(store) == {}
    deliver(store, *source.resync(do_much(source), to=4))
    catch_up(store)
    deliver(store, *do_more(source))
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


@pytest.mark.expects_warnings
def test_behind_a_gap_a_whole_copy_is_taken(source: Source, store: Path) -> None:
    before = mirror_of(store)
    source.mark(RecordType.GAP, b'{"reason": "the image was taken as it is"}')
    source.volumes[1].data[:BLOCK] = b"\x42" * BLOCK  # Nobody recorded this.
    source.volumes[3].data[:BLOCK] = bytes(BLOCK)
    deliver(store, source.roll())
    assert "taken as it is" in report(catch_up(store))["needs_sync"]
    deliver(store, *source.resync([], to=2, whole=True))
    session = catch_up(store)
    assert mirror_of(store) == source.snapshot() != before
    assert report(session)["needs_sync"] is None
    assert report(session)["error"] is None


@pytest.mark.expects_warnings
def test_a_gap_behind_the_copys_origin_makes_it_useless(source: Source, store: Path) -> None:
    before = mirror_of(store)
    deliver(store, *source.resync(do_much(source), to=4))
    source.mark(RecordType.GAP, b'{"reason": "again"}')
    deliver(store, source.roll())
    session = catch_up(store)
    assert not session.halted
    assert session.store.state.staging is None
    assert mirror_of(store) == before


def is_at_the_switch(session: Session) -> bool:
    return session.store.state.phase is Phase.SWITCHING


@pytest.mark.expects_warnings
def test_another_history_halts_the_store_only_behind_a_switch_that_has_begun(
    source: Source, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Source(tmp_path / "other")
    other.create("v.img", 1)
    copies = list(source.resync(do_much(source), to=3))
    deliver(store, *copies)
    monkeypatch.setattr("aimfuse.replay.applier.ROUND_S", 0.0)  # One step for each round.
    with opened(store) as session:
        while not is_at_the_switch(session):
            assert session.round()
        deliver(store, other.roll())
        while is_at_the_switch(session):
            assert session.round()
        exhaust(session)
        assert mirror_of(store) == source.snapshot()


def test_a_journal_that_comes_after_all_makes_the_copy_needless(
    source: Source, store: Path
) -> None:
    gone = do_much(source)
    deliver(store, *list(source.resync(gone, to=4))[:-1])
    catch_up(store)
    deliver(store, *gone, *do_more(source))
    session = catch_up(store)
    assert session.store.state.staging is None
    assert mirror_of(store) == source.snapshot()


def test_a_copy_older_than_the_mirror_is_no_trouble(source: Source, store: Path) -> None:
    old = list(source.resync([], to=1, whole=True))
    source.write(1, 0, b"newer")
    deliver(store, source.roll())
    catch_up(store)
    deliver(store, *old)
    session = catch_up(store)
    assert session.store.state.staging is None
    assert mirror_of(store) == source.snapshot()
    assert report(session)["quarantined"] == 0
    assert not list((store / "inbox").glob("sync-*"))


@pytest.mark.expects_warnings
def test_a_staged_file_that_was_damaged_since_is_noticed_before_anything_changes(
    source: Source, store: Path
) -> None:
    before = mirror_of(store)
    copies = list(source.resync(do_much(source), to=4))
    deliver(store, *copies)
    catch_up(store)
    staged = next((store / "staging").iterdir())
    data = bytearray(staged.read_bytes())
    data[len(data) // 2] ^= 1
    staged.write_bytes(data)
    journal = do_more(source)
    deliver(store, *journal)
    session = catch_up(store)
    assert session.store.state.staging is None
    assert mirror_of(store) == before
    assert report(session)["sync"]["staged"] is False
    deliver(store, *copies)
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


@pytest.mark.expects_warnings
def test_a_journal_file_that_was_damaged_since_comes_again(source: Source, store: Path) -> None:
    before = mirror_of(store)
    copies = list(source.resync(do_much(source), to=4))
    journal = do_more(source)
    deliver(store, *copies[:-1], *journal)
    catch_up(store)
    work = store / "work" / journal[0].name
    data = bytearray(work.read_bytes())
    data[-9] ^= 1
    work.write_bytes(data)
    deliver(store, copies[-1])
    session = catch_up(store)
    assert mirror_of(store) == before
    assert report(session)["damaged"] == [journal[0].name]
    deliver(store, *journal)
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


@pytest.mark.expects_warnings
def test_staged_files_that_somebody_removed_let_the_copy_begin_anew(
    source: Source, store: Path
) -> None:
    copies = list(source.resync(do_much(source), to=3))
    deliver(store, *copies[:-1])
    catch_up(store)
    shutil.rmtree(store / "staging")
    session = catch_up(store)
    assert session.store.state.staging is None
    deliver(store, *copies)
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


@pytest.mark.expects_warnings
def test_a_full_disk_keeps_the_mirror_readable_and_is_waited_for(
    source: Source, store: Path
) -> None:
    before = mirror_of(store)
    gone = do_much(source)
    disk = failing_at("staging:sync_dir", errno.ENOSPC, times=3)
    deliver(store, *source.resync(gone, to=3))
    with opened(store, disk) as session:
        for _ in range(3):
            session.round()
            assert "No space left" in session.error
            assert mirror_of(store) == before
        exhaust(session)
    assert mirror_of(store) == source.snapshot()


@pytest.mark.expects_warnings
def test_sizes_are_set_again_after_a_sync_that_failed(source: Source, store: Path) -> None:
    label = "switch:sync_dir"
    deliver(store, *source.resync(do_much(source), to=3))
    disk = failing_at(label, errno.EIO)
    with opened(store, disk) as session:
        while not session.error:
            session.round()
        failed = disk.labels.index(label)
        exhaust(session)
    assert mirror_of(store) == source.snapshot()
    assert "switch:size" in disk.labels[:failed]
    assert "switch:size" in disk.labels[failed:]


class Small(Steps):
    """A disk that says how much it has left once the switch asks."""

    free = 1 << 20

    def free_bytes(self, path: Path) -> int:
        return self.free if "switch:look" in self.labels else super().free_bytes(path)


@pytest.mark.expects_warnings
@pytest.mark.parametrize("behind_bytes", [0, 8 << 20])
def test_the_switch_does_not_begin_where_it_could_not_end(
    source: Source, store: Path, behind_bytes: int
) -> None:
    before = mirror_of(store)
    copies = list(source.resync(do_much(source), to=4))
    source.write(1, 0, b"here")
    for at in range(0, behind_bytes, 1 << 20):  # The journal behind the copy needs room, too.
        source.write(1, at, b"x" * (1 << 20))
    deliver(store, *copies, source.roll())
    with opened(store, small := Small()) as session:
        small.free += behind_bytes and 16 << 20
        exhaust(session)
        assert "may need" in session.error
        assert session.store.state.phase is Phase.CONSISTENT
        assert mirror_of(store) == before
        small.free = 1 << 40
        exhaust(session)
    assert mirror_of(store) == source.snapshot()


# Killed, failing and without power at every step.


def prepare(scratch: Path) -> tuple[Source, Path, dict[str, bytes]]:
    source, store = make_source(scratch / "spool"), scratch / "prepared"
    begin(store, source)
    before = mirror_of(store)
    copy = source.resync(do_much(source), to=4, chunk=4 * BLOCK)
    copies = [next(copy)]
    journal = do_more(source)
    deliver(store, *copies, *copy, *journal)
    return source, store, before


def is_switching(store: Path) -> bool:
    with opened(store, Steps()) as session:
        session.store.open()
        return session.store.state.phase in {Phase.SWITCHING, Phase.CATCHING_UP}


def test_a_store_killed_at_any_step_of_a_resync_shows_the_old_or_ends_at_the_new(
    tmp_path: Path,
) -> None:
    source, prepared, before = prepare(tmp_path)
    labels = steps_of(prepared, tmp_path)
    assert {"staging:link", "switch:sync", "switch:size_sync", "staging:unlink"} <= set(labels)
    for die_at, label in enumerate(labels):
        store = tmp_path / f"killed-{die_at}"
        copy_store(prepared, store)
        run_into(dying(die_at), store)
        if not is_switching(store):
            assert mirror_of(store) in (before, source.snapshot()), label
        session = catch_up(store)
        assert not session.halted, label
        assert mirror_of(store) == source.snapshot(), label
        assert not list((store / "staging").iterdir()), label
        assert not list((store / "work").iterdir()), label
        shutil.rmtree(store)


@pytest.mark.expects_warnings
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_step_of_a_resync_that_fails_once_loses_nothing(tmp_path: Path, number: int) -> None:
    source, prepared, _before = prepare(tmp_path)
    labels = steps_of(prepared, tmp_path)
    for fail_at, label in list(enumerate(labels))[number % 2 :: 1 if LONG else 3]:
        store = tmp_path / f"failed-{fail_at}"
        copy_store(prepared, store)
        with opened(store, failing(fail_at, number)) as session:
            exhaust(session)
            exhaust(session)
            assert not session.halted, label
        assert mirror_of(store) == source.snapshot(), label
        shutil.rmtree(store)


@pytest.mark.expects_warnings
def test_a_store_that_lost_power_in_a_resync_ends_equal_to_its_source(tmp_path: Path) -> None:
    source, prepared = make_source(tmp_path / "spool"), SimDisk(STORE / "inbox")
    plant(prepared, *source.sync())
    catch_up(STORE, prepared, DiskLook(prepared))
    gone = do_much(source)
    plant(prepared, *source.resync(gone, to=4, chunk=4 * BLOCK), *do_more(source))
    rehearsal = prepared.kill()
    run_simulated(rehearsal)
    assert simulated_mirror(rehearsal) == source.snapshot()
    choices: list[Callable[..., int]] = [keep_none, keep_all]
    for stop_at in range(0, len(rehearsal.labels), 1 if LONG else 2):
        disk = prepared.kill()
        disk.stop_at(stop_at, after_bytes=random.Random(stop_at).randrange(5000))
        with contextlib.suppress(Crash):
            run_simulated(disk)
        for choice in (*choices, keep_random(stop_at), keep_random(stop_at + 1000)):
            after = disk.power_cut(choice)
            run_simulated(after)
            assert simulated_mirror(after) == source.snapshot(), (stop_at, disk.labels[-1])
