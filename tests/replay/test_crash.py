"""Kill the replayer before every labelled step, fail every step, cut the power at every step.

A killed program keeps what it wrote; a power cut loses what was not synced, in many mixtures.
After each, the store is opened again on what is left and must end equal to the source.
"""

import errno
import random
import shutil
from pathlib import Path

import pytest

from aimfuse.journal.names import JournalName
from aimfuse.units import Epoch, FileNumber
from tests.disks.cuts import keep_none
from tests.disks.faults import Fault
from tests.replay.crashes import (
    STORE,
    copy_store,
    power_cuts,
    run_into,
    run_simulated,
    simulated_mirror,
    simulated_store,
    steps_of,
)
from tests.replay.faults import dying, failing, failing_at
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import busy_files, catch_up, exhaust, opened, synced_store

pytestmark = pytest.mark.expects_warnings


def test_a_store_that_was_killed_at_any_step_ends_equal_to_its_source(tmp_path: Path) -> None:
    source, prepared = synced_store(tmp_path)
    deliver(prepared, *busy_files(source))
    labels = steps_of(prepared, tmp_path)
    assert {"apply:sync", "store-state:sync", "mirror:rename", "work:sync_dir"} <= set(labels)
    for die_at, label in enumerate(labels):
        store = tmp_path / f"killed-{die_at}"
        copy_store(prepared, store)
        run_into(dying(die_at), store)
        session = catch_up(store)
        assert not session.halted, label
        assert mirror_of(store) == source.snapshot(), label
        assert not list((store / "work").iterdir()), label
        shutil.rmtree(store)


def test_a_restart_that_is_killed_too_ends_equal_to_its_source(tmp_path: Path) -> None:
    source, prepared = synced_store(tmp_path)
    deliver(prepared, *busy_files(source))
    labels = steps_of(prepared, tmp_path)
    for die_at in range(0, len(labels), 3):
        once = tmp_path / f"once-{die_at}"
        copy_store(prepared, once)
        run_into(dying(die_at), once)
        left = len(steps_of(once, tmp_path))
        for die_again_at in range(die_at % 5, left, 5):
            twice = tmp_path / f"twice-{die_again_at}"
            copy_store(once, twice)
            run_into(dying(die_again_at), twice)
            catch_up(twice)
            assert mirror_of(twice) == source.snapshot(), (die_at, die_again_at)
            shutil.rmtree(twice)
        shutil.rmtree(once)


def test_a_first_sync_that_was_killed_at_any_step_is_finished(tmp_path: Path) -> None:
    """Its parts have no private copy: each stays in the inbox until it is durable."""
    source, prepared = Source(tmp_path / "spool"), tmp_path / "prepared"
    source.create("v.img", 9000)
    source.write(1, 4000, b"\xee" * 3000)
    source.create("other", 5)
    source.roll()
    sync = [*source.sync(to=2, per_file=1)]
    source.write(2, 0, b"later")
    deliver(prepared, *sync, source.roll())
    labels = steps_of(prepared, tmp_path)
    assert "work:create" not in labels[: labels.index("inbox:unlink")]
    assert labels.index("apply:sync") < labels.index("inbox:unlink")
    for die_at, label in enumerate(labels):
        store = tmp_path / f"killed-{die_at}"
        copy_store(prepared, store)
        run_into(dying(die_at), store)
        catch_up(store)
        assert mirror_of(store) == source.snapshot(), label
        shutil.rmtree(store)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_step_that_fails_once_loses_nothing(tmp_path: Path, number: int) -> None:
    source, prepared = synced_store(tmp_path)
    deliver(prepared, *busy_files(source))
    for fail_at, label in enumerate(steps_of(prepared, tmp_path)):
        store = tmp_path / f"failed-{fail_at}"
        copy_store(prepared, store)
        with opened(store, failing(fail_at, number)) as session:
            exhaust(session)
            exhaust(session)
            assert not session.halted, label
            assert not session.error, label
        assert mirror_of(store) == source.snapshot(), label
        shutil.rmtree(store)


def test_a_full_disk_stops_the_store_where_it_is_and_says_so(tmp_path: Path) -> None:
    source, store = synced_store(tmp_path)
    deliver(store, *busy_files(source))
    full = failing_at("apply:write", errno.ENOSPC, times=3)
    with opened(store, full) as session:
        before = session.store.state
        for failures in (1, 2, 3):
            session.round()
            assert session.failures == failures
            assert "No space left" in session.error
            assert session.store.state.head == (before.head or session.store.state.head)
        exhaust(session)
        assert session.error == ""
    assert mirror_of(store) == source.snapshot()


def test_after_a_failed_sync_of_the_mirror_the_whole_file_is_written_again(tmp_path: Path) -> None:
    source, store = synced_store(tmp_path)
    source.write(1, 0, b"a" * 10)
    source.write(1, 5000, b"b" * 10)
    deliver(store, source.roll())
    disk = failing_at("apply:sync")
    with opened(store, disk) as session:
        session.round()
        assert session.store.state.head is not None
        assert session.store.state.head.number == 1
        exhaust(session)
    attempts = [label for label in disk.labels if label.startswith(("apply:", "work:open"))]
    assert attempts.count("apply:open") == 2
    assert attempts.count("apply:write") == 2
    assert mirror_of(store) == source.snapshot()


# Power cuts, on a simulated disk: names and contents as a user would find them.


@pytest.mark.parametrize("torn", [False, True])
def test_a_store_that_lost_power_at_any_step_ends_equal_to_its_source(
    tmp_path: Path, torn: bool
) -> None:
    prepared, snapshots = simulated_store(tmp_path)
    rehearsal = prepared.kill()
    run_simulated(rehearsal)
    assert simulated_mirror(rehearsal) == snapshots[3]
    steps = len(rehearsal.labels)
    assert steps > 50
    for stop_at in range(steps):
        disk = prepared.kill()
        disk.torn_pages = torn
        disk.stop_at(stop_at, after_bytes=random.Random(stop_at).randrange(5000))
        run_simulated(disk)
        for cut, choice in enumerate(power_cuts()):
            after = disk.power_cut(choice(stop_at * 100 + cut))
            run_simulated(after)
            assert simulated_mirror(after) == snapshots[3], (stop_at, cut, disk.labels[-1])


def test_what_is_removed_from_the_inbox_survives_a_power_cut(tmp_path: Path) -> None:
    prepared, snapshots = simulated_store(tmp_path)
    rehearsal = prepared.kill()
    run_simulated(rehearsal)
    removals = [at for at, label in enumerate(rehearsal.labels) if label == "inbox:unlink"]
    assert len(removals) == 2
    for number, at in enumerate(removals, start=2):
        disk = prepared.kill()
        disk.stop_at(at + 1)
        run_simulated(disk)
        after = disk.power_cut(keep_none)
        after.unlink("test", STORE / "inbox" / JournalName(Epoch(1), FileNumber(number)).sealed)
        head = run_simulated(after).head
        assert head is not None
        assert head.number == 3
        assert simulated_mirror(after) == snapshots[3]


def test_every_sync_that_fails_is_made_up_for(tmp_path: Path) -> None:
    """On this disk a failed sync forgets the data, and the next one succeeds without it."""
    prepared, snapshots = simulated_store(tmp_path)
    rehearsal = prepared.kill()
    run_simulated(rehearsal)
    syncs = [at for at, label in enumerate(rehearsal.labels) if label.endswith(":sync")]
    assert len(syncs) >= 6
    for at in syncs:
        disk = prepared.kill()
        disk.inject(Fault(errno.EIO, at=at))
        run_simulated(disk)
        after = disk.power_cut(keep_none)
        run_simulated(after)
        assert simulated_mirror(after) == snapshots[3], rehearsal.labels[at]
