"""What a store keeps of its past: every file boundary, whatever interrupts the keeping."""

import contextlib
import errno
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from aimfuse.disk import Disk, Places
from aimfuse.errors import JournalError
from aimfuse.journal.names import JournalName, UndoName
from aimfuse.replay.past import describe
from aimfuse.replay.undo import PART_BYTES, READ_ROWS, parts_of, read_undo
from aimfuse.units import MIB, SECOND_NS, Epoch, FileNumber
from tests.disks.cuts import keep_all, keep_none, keep_random
from tests.disks.faults import Crash
from tests.replay.backwards import Snapshot, states_of
from tests.replay.crashes import STORE, copy_store, run_into, simulated_store, steps_of
from tests.replay.faults import DiskLook, dying
from tests.replay.histories import Driver, files
from tests.replay.history_command import app, run_history
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import begin, busy_files, catch_up, exhaust, opened, synced

pytestmark = pytest.mark.expects_warnings

DAY_NS = 86400 * SECOND_NS


def a_store_with_past(scratch: Path) -> tuple[Source, Path, dict[int, Snapshot]]:
    source, store, right = synced(scratch)
    deliver(store, *busy_files(source, right))
    assert not catch_up(store).halted
    return source, store, right


@given(history=st.lists(files, min_size=1, max_size=5), epochs=st.sets(st.integers(0, 4)))
@example(
    history=[
        [("create", 0, 100, 0), ("create", 1, 100, 0)],
        [("rename", 0, 1, 0), ("late_write", 0, 0, 9), ("create", 0, 5, 0)],
    ],
    epochs={1},
)
def test_every_file_boundary_can_be_gone_back_to(
    history: list[list[tuple[str, int, int, int]]], epochs: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, store = Source(Path(scratch, "spool")), Path(scratch, "store")
        driver = Driver(source)
        source.create("first", 15000)
        source.write(1, 100, b"before the sync" * 500)
        source.roll()
        begin(store, source)
        right = {source.number: source.snapshot()}
        with opened(store) as session:
            for made in driver.play(history, epochs):
                deliver(store, made)
                exhaust(session)
                assert not session.halted
                right[source.number] = source.snapshot()
        assert states_of(store) == right


def test_holes_stay_holes(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", MIB)
    source.write(1, MIB // 4, b"x" * 4096)
    source.roll()
    begin(store, source)
    source.zero(1, 0, MIB)
    deliver(store, source.roll())
    catch_up(store)
    undo = store / "history" / str(UndoName(JournalName(Epoch(1), FileNumber(2))))
    assert undo.stat().st_size < 64 * 1024


def test_a_change_too_large_for_one_undo_file_is_kept_in_parts(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    volume = source.create("v.img")
    source.roll()
    begin(store, source)
    fill = random.Random(0).randbytes(MIB)
    for at in range(0, 2 * PART_BYTES + 3 * MIB, MIB):
        source.write(volume, at, fill)
    deliver(store, source.roll())
    catch_up(store)
    before = source.snapshot()
    source.truncate(volume, 5)
    deliver(store, source.roll())
    catch_up(store)
    undo = read_undo(Disk(), store / "history", JournalName(Epoch(1), FileNumber(3)))
    assert len(list(parts_of(Disk(), store / "history", undo))) == 3
    assert states_of(store)[2] == before
    (store / "history" / str(UndoName(undo.name, 1))).unlink()
    with pytest.raises(JournalError, match="gone"):
        states_of(store)


def many_records(scratch: Path) -> tuple[Source, Path, Snapshot]:
    """Return a source whose last file touches more than is read at once, and is in the inbox."""
    source, store = Source(scratch / "spool"), scratch / "store"
    first, second = source.create("first"), source.create("second")
    fill = random.Random(0).randbytes(2 * MIB)
    for volume in (first, second):
        source.write(volume, 0, fill)
    source.roll()
    begin(store, source)
    before = source.snapshot()
    for at in range(READ_ROWS + 100):
        source.write(first, 1000 * at, b"new")
        source.write(second, 1000 * at + 1, b"newer")
    deliver(store, source.roll())
    return source, store, before


def test_more_records_than_are_read_at_once_are_taken_back(tmp_path: Path) -> None:
    source, store, before = many_records(tmp_path)
    catch_up(store)
    assert mirror_of(store) == source.snapshot()
    assert states_of(store)[1] == before


class _Rotten(Disk):
    """Cannot read a stretch of the first volume's data any more."""

    def pread_places(self, fd: int, memory: memoryview, places: Places) -> int:
        rotten = [at for at, offset in enumerate(places.offsets) if self._is_rotten(fd, offset)]
        first = Places(*(column[: rotten[0] if rotten else None] for column in places))
        return super().pread_places(fd, memory, first)

    def pread_into(self, fd: int, view: memoryview, offset: int) -> int:
        if self._is_rotten(fd, offset):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread_into(fd, view, offset)

    def _is_rotten(self, fd: int, offset: int) -> bool:
        is_volume = Path(f"/proc/self/fd/{fd}").readlink().name == "00000001"
        return is_volume and offset == (READ_ROWS + 7) * 1000


def test_what_cannot_be_read_any_more_can_be_overwritten_and_history_begins_anew(
    tmp_path: Path,
) -> None:
    source, store, _before = many_records(tmp_path)
    catch_up(store, _Rotten())
    assert mirror_of(store) == source.snapshot()
    (gap,) = describe(Disk(), store)["gaps"]
    assert gap["behind"] == 2
    assert f"volume 1 at byte {(READ_ROWS + 7) * 1000}" in gap["why"]
    assert [path.name for path in (store / "history").glob("*.undo*")] == []


def test_whoever_is_killed_at_any_step_loses_nothing_of_the_past(tmp_path: Path) -> None:
    source, prepared, right = synced(tmp_path)
    deliver(prepared, *busy_files(source, right))
    labels = steps_of(prepared, tmp_path)
    assert {"undo:sync", "undo:rename", "undo:gone", "history:link"} <= set(labels)
    for die_at, label in enumerate(labels):
        store = tmp_path / f"killed-{die_at}"
        copy_store(prepared, store)
        run_into(dying(die_at), store)
        found = states_of(store)
        assert 1 in found, label
        assert all(right[number] == state for number, state in found.items()), label
        catch_up(store)
        assert states_of(store) == right, label
        assert not list((store / "history").glob("*.part")), label
        shutil.rmtree(store)


def test_an_undo_file_is_never_made_again_from_a_half_applied_mirror(tmp_path: Path) -> None:
    source, store, right = synced(tmp_path)
    deliver(store, *busy_files(source, right)[:1])
    with contextlib.suppress(Crash), opened(store, dying_at("apply:sync")) as session:
        exhaust(session)
    undo = store / "history" / str(UndoName(JournalName(Epoch(1), FileNumber(2))))
    first = undo.read_bytes()
    assert mirror_of(store) not in (right[1], right[2])
    assert states_of(store) == {1: right[1]}
    catch_up(store)
    assert undo.read_bytes() == first
    assert mirror_of(store) == right[2]


def test_without_its_history_a_half_applied_file_is_no_past(tmp_path: Path) -> None:
    source, store, right = synced(tmp_path)
    deliver(store, *busy_files(source, right))
    with contextlib.suppress(Crash), opened(store, dying_at("apply:sync")) as session:
        exhaust(session)
    shutil.rmtree(store / "history")
    catch_up(store)
    assert states_of(store) == {2: right[2], 3: right[3]}
    assert describe(Disk(), store)["gaps"][0]["why"] == "no history had been kept"


def dying_at(label: str) -> Disk:
    """Return a disk whose process is gone at the first step of that label."""
    return _DyingAt(label)


class _DyingAt(Disk):
    def __init__(self, label: str) -> None:
        self.label, self.dead = label, False

    def step(self, label: str) -> None:
        self.dead = self.dead or label == self.label
        if self.dead:
            raise Crash(label)


@pytest.mark.parametrize("torn", [False, True])
def test_a_power_cut_at_any_step_loses_nothing_of_the_past(tmp_path: Path, torn: bool) -> None:
    prepared, right = simulated_store(tmp_path)
    rehearsal = prepared.kill()
    catch_up(STORE, rehearsal, DiskLook(rehearsal))
    assert states_of(STORE, rehearsal, DiskLook(rehearsal)) == right
    for stop_at in range(len(rehearsal.labels)):
        disk = prepared.kill()
        disk.torn_pages = torn
        disk.stop_at(stop_at, after_bytes=random.Random(stop_at).randrange(5000))
        with contextlib.suppress(Crash), opened(STORE, disk, DiskLook(disk)) as session:
            exhaust(session)
        for cut, choice in enumerate((keep_none, keep_all, keep_random(stop_at))):
            after = disk.power_cut(choice)
            found = states_of(STORE, after, DiskLook(after))
            assert all(right[n] == state for n, state in found.items()), (stop_at, cut)
            catch_up(STORE, after, DiskLook(after))
            assert states_of(STORE, after, DiskLook(after)) == right, (stop_at, cut)


# What history does not reach.


def test_history_begins_where_a_staged_copy_was_switched_in(tmp_path: Path) -> None:
    source, store, _right = synced(tmp_path)
    source.write(1, 0, b"applied")
    deliver(store, source.roll())
    catch_up(store)
    source.write(1, 0, b"lost")
    gone = [source.roll()]
    deliver(store, *source.resync(gone, to=source.number))
    catch_up(store)
    right = {3: source.snapshot()}
    assert states_of(store) == right
    source.write(1, 0, b"behind")
    deliver(store, source.roll())
    catch_up(store)
    assert states_of(store) == right | {4: source.snapshot()}
    assert "a copy made the mirror" in describe(Disk(), store)["gaps"][0]["why"]


def test_every_flipped_bit_of_an_undo_file_is_noticed(tmp_path: Path) -> None:
    _source, store, _right = a_store_with_past(tmp_path)
    name = JournalName(Epoch(1), FileNumber(3))
    path = store / "history" / str(UndoName(name))
    sound = path.read_bytes()
    for bit in random.Random(3).sample(range(8 * len(sound)), 400):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(JournalError):
            read_undo(Disk(), store / "history", name)


def test_a_damaged_undo_file_of_an_interrupted_application_begins_history_anew(
    tmp_path: Path,
) -> None:
    source, store, right = synced(tmp_path)
    deliver(store, *busy_files(source, right)[:1])
    with contextlib.suppress(Crash), opened(store, dying_at("apply:sync")) as session:
        exhaust(session)
    path = store / "history" / str(UndoName(JournalName(Epoch(1), FileNumber(2))))
    path.write_bytes(path.read_bytes()[:-1])
    catch_up(store)
    assert mirror_of(store) == right[2]
    assert states_of(store) == {2: right[2]}


def test_a_store_without_a_mirror_has_no_past_and_says_so(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 20000)
    source.write(1, 0, b"x" * 20000)
    source.roll()
    deliver(store, next(source.sync()))
    catch_up(store)
    said = describe(Disk(), store)
    assert (said["phase"], said["oldest"]) == ("syncing", None)
    assert said["gaps"][0]["why"] == "the store has no consistent mirror now"


def test_history_lists_span_and_bookmarks(tmp_path: Path) -> None:
    _source, store, _right = a_store_with_past(tmp_path)
    said = describe(Disk(), store)
    assert said["oldest"]["file"] == 1
    assert said["newest"]["file"] == 3
    assert said["files"] == 2
    assert [(one["label"], one["file"]) for one in said["bookmarks"]] == [("the end", 3)]


def test_the_command_says_how_far_back_in_lines_and_in_json(tmp_path: Path) -> None:
    _source, store, _right = a_store_with_past(tmp_path)
    shown = run_history(store)
    assert f"{store}: consistent" in shown
    assert "no further back: a copy made the mirror what it was there" in shown
    assert "bookmark 'the end' at 1:" in shown
    assert json.loads(run_history(store, "--json")) == describe(Disk(), store)


def test_the_command_refuses_what_is_no_store(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["history", str(tmp_path)])
    assert done.exit_code == 2
    assert f"{tmp_path} is no store" in done.stderr
