"""The spool as the coordinator sees it: a few bytes for each file, however many there are."""

import contextlib
import os
import tracemalloc
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.signal import Signal
from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord, ForeignFile, TornRecord
from aimfuse.journal.names import JournalName
from aimfuse.units import Epoch, FileNumber
from tests.coordinator.samples import GROUP, START_NS, SampleSource


def name(number: int, epoch: int = 1) -> JournalName:
    return JournalName(Epoch(epoch), FileNumber(number))


def put(spool: Path, number: int, epoch: int = 1, size: int = 10) -> None:
    (spool / name(number, epoch).sealed).write_bytes(bytes(size))


def test_ten_thousand_queued_files_take_little_memory(tmp_path: Path) -> None:
    for number in range(1, 10_001):
        put(tmp_path, number, size=0)
    backlog = Backlog(Disk(), tmp_path)
    tracemalloc.start()
    try:
        backlog.load()
        kept, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(backlog) == 10_000
    assert kept < 64 * 10_000


def test_only_sealed_files_are_seen(tmp_path: Path) -> None:
    put(tmp_path, 1)
    for other in (name(2).open, f"free-{name(1)}", "00000001-2.aim", "x.aim", "sync-1.aim"):
        (tmp_path / other).write_bytes(b"")
    backlog = Backlog(Disk(), tmp_path)
    backlog.load()
    assert len(backlog) == 1
    assert backlog.newest == 1
    assert not backlog.look()


def test_the_next_file_is_found_in_this_epoch_and_in_the_next(tmp_path: Path) -> None:
    backlog = Backlog(Disk(), tmp_path)
    backlog.load()
    assert backlog.oldest == 1
    for number, epoch in ((1, 1), (2, 1), (3, 2), (4, 3)):
        assert not backlog.look()
        put(tmp_path, number, epoch)
        assert backlog.look()
        assert backlog.head == name(number, epoch)
    assert backlog.name(3) == name(3, 2)
    assert backlog.name(5) is None


def test_following_goes_on_from_a_checkpoint_when_the_spool_is_empty(tmp_path: Path) -> None:
    backlog = Backlog(Disk(), tmp_path)
    backlog.load()
    backlog.note_head(4, 77)
    backlog.note_head(1, 3)
    put(tmp_path, 78, 4)
    assert backlog.look()
    assert backlog.oldest == 78


def test_a_checkpoint_past_files_that_were_not_looked_at_yet_hides_none(tmp_path: Path) -> None:
    put(tmp_path, 1)
    backlog = Backlog(Disk(), tmp_path)
    backlog.load()
    for number in (2, 3, 4):
        put(tmp_path, number)
    backlog.note_head(1, 4)
    put(tmp_path, 5)
    assert backlog.look()
    assert [backlog.name(number) for number in range(1, 6)] == [name(n) for n in range(1, 6)]


def test_a_listing_that_missed_a_file_hides_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 6):
        put(tmp_path, number, epoch=1 + number // 4)
    with os.scandir(tmp_path) as entries:
        listed = [entry for entry in entries if "-000000000003" not in entry.name]
    backlog = Backlog(Disk(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda _path: contextlib.nullcontext(listed))
        backlog.load()
    assert [backlog.name(number) is not None for number in range(1, 6)] == [True] * 5


def test_bytes_between_survive_forgetting(tmp_path: Path) -> None:
    for number in range(1, 7):
        put(tmp_path, number, size=number)
    backlog = Backlog(Disk(), tmp_path)
    backlog.load()
    assert backlog.bytes_between(0, 6) == 21
    assert backlog.bytes_between(2, 4) == 7
    backlog.drop_through(3)
    assert backlog.bytes_between(0, 6) == 15
    assert backlog.bytes_between(4, 5) == 5
    assert backlog.bytes_of(3) == 0
    assert backlog.oldest == 4
    backlog.drop_through(6)
    assert backlog.oldest == 7
    assert backlog.bytes_between(0, 10) == 0


async def test_a_file_that_polling_cannot_guess_is_found_by_the_rescan(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    backlog = Backlog(Disk(), tmp_path)
    backlog.load()
    signal = Signal()
    backlog.subscribers.add(signal)
    put(tmp_path, 5, 9)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backlog.follow, print)
        await signal.wait(600)
        nursery.cancel_scope.cancel()
    assert autojump_clock.current_time() < 600
    assert backlog.newest == 5


async def test_an_unreadable_spool_is_reported_and_tried_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    backlog = Backlog(Disk(), spool)
    said: list[OSError | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backlog.follow, said.append)
        await trio.sleep(100)
        spool.mkdir()
        put(spool, 1)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert isinstance(said[0], FileNotFoundError)
    assert said[-1] is None
    assert backlog.newest == 1
    assert autojump_clock.current_time() >= 100


def test_the_oldest_record_counts_not_the_oldest_file(tmp_path: Path) -> None:
    source = SampleSource(tmp_path)
    source.write(1, 1, records=0)
    source.wall.now_ns += 5
    source.write(1, 1)
    backlog = Backlog(Disk(), source.spool)
    backlog.load()
    assert backlog.first_time_ns(0) == START_NS + 5
    assert backlog.first_time_ns(2) == 0


def test_what_may_be_sent_is_checked_against_its_name_group_and_length(tmp_path: Path) -> None:
    source = SampleSource(tmp_path)
    good = source.write(1, 1)
    backlog = Backlog(Disk(), source.spool)
    assert backlog.check(good, GROUP)[0].number == 1
    with pytest.raises(ForeignFile):
        backlog.check(good, bytes(16))
    path = source.spool / good.sealed
    data = path.read_bytes()
    (source.spool / name(2).sealed).write_bytes(data)
    with pytest.raises(ForeignFile):
        backlog.check(name(2), GROUP)
    path.write_bytes(data[:-1])
    with pytest.raises(TornRecord):
        backlog.check(good, GROUP)
    path.write_bytes(b"\0" + data[1:])
    with pytest.raises(CorruptRecord):
        backlog.check(good, GROUP)
    path.write_bytes(data[:512] + bytes(len(data) - 512))
    with pytest.raises(TornRecord, match="never sealed"):
        backlog.check(good, GROUP)
