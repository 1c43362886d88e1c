"""The writer of one AIM file: crashes at every step, failures at every call."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.errors import JournalError
from aimfuse.journal.names import JournalName
from aimfuse.journal.reader import check_sealed, read_sealed
from aimfuse.journal.writer import AimWriter
from aimfuse.units import Epoch, FileNumber
from tests.disks.cuts import mixtures
from tests.disks.faults import Crash, Fault
from tests.disks.simdisk import SimDisk
from tests.journal.samples import (
    PREV_DIGEST,
    SPOOL,
    commit_mark,
    identity,
    new_writer,
    payload_of,
    scan,
    seqs,
    spool_disk,
    write_record,
)

OPEN = SPOOL / JournalName(Epoch(1), FileNumber(1)).open
FREE = SPOOL / "free-x"


def seal(writer: AimWriter) -> bytes:
    return writer.seal(PREV_DIGEST, Epoch(1), FileNumber(2)).digest


def write_three(writer: AimWriter) -> None:
    """Write records 1-3 and a mark; 1 and 2 are durable."""
    write_record(writer, 1, payload_of(1, 3000))
    write_record(writer, 2, payload_of(2, 3000))
    writer.sync()
    commit_mark(writer, 2, 2)
    write_record(writer, 3, payload_of(3, 3000))


def disk_with_free_file() -> SimDisk:
    disk = spool_disk()
    writer = new_writer(disk, identity(7))
    for seq in range(1, 6):
        write_record(writer, seq, payload_of(seq, 3000))
    seal(writer)
    writer.close()
    disk.rename("release", writer.path, FREE)
    disk.sync_dir("release", SPOOL)
    return disk.kill()


def for_every_crash(start: Callable[[], SimDisk], act: Callable[[SimDisk], None]) -> list[SimDisk]:
    """Return every disk that a power cut at any step, or after the last, can leave."""
    found: list[SimDisk] = []
    steps = 0
    while True:
        disk = start()
        disk.stop_at(steps)
        try:
            act(disk)
            finished = True
        except Crash:
            finished = False
        found += [disk.power_cut(choose) for _, choose in mixtures(disk.units())]
        if finished:
            return found
        steps += 1


# Making ready.


@pytest.mark.parametrize("recycle", [False, True])
def test_a_file_gets_its_name_durably_before_it_takes_a_record(recycle: bool) -> None:
    disk = disk_with_free_file() if recycle else spool_disk()
    writer = new_writer(disk, None, FREE if recycle else None)
    cut = disk.power_cut()
    assert cut.listdir(SPOOL) == [OPEN.name]
    assert scan(cut, OPEN).identity == writer.identity
    assert not scan(cut, OPEN).has_records


@pytest.mark.parametrize("torn_pages", [False, True])
def test_a_recycled_file_bears_an_open_name_only_with_a_whole_identity(torn_pages: bool) -> None:
    def start() -> SimDisk:
        disk = disk_with_free_file()
        disk.torn_pages = torn_pages
        return disk

    for cut in for_every_crash(start, lambda disk: new_writer(disk, None, FREE).close()):
        if cut.exists(OPEN):
            assert scan(cut, OPEN).identity == identity()
            assert seqs(scan(cut, OPEN)) == []


def test_a_failed_making_leaves_no_descriptor() -> None:
    for label in ("journal:identity", "journal:identity_sync", "journal:create_sync_dir"):
        disk = spool_disk()
        disk.inject(Fault(errno.ENOSPC, label))
        with pytest.raises(OSError, match="No space"):
            new_writer(disk)
        assert disk.open_paths == []


# Appending.


def test_after_a_sync_the_records_survive_in_every_mixture() -> None:
    disk = spool_disk()
    write_three(new_writer(disk))
    for name, choose in mixtures(disk.units(), every_up_to=512):
        found = scan(disk.power_cut(choose), OPEN)
        assert seqs(found) in ([1, 2], [1, 2, 3]), name
        assert found.committed_seq <= 2


def test_torn_pages_never_yield_a_record_that_was_not_written() -> None:
    disk = spool_disk()
    disk.torn_pages = True
    writer = new_writer(disk)
    for seq in range(1, 6):
        write_record(writer, seq, payload_of(seq, 700))
    for name, choose in mixtures(disk.units(), random_count=200):
        found = scan(disk.power_cut(choose), OPEN)
        assert seqs(found) == list(range(1, len(found.iocbs) + 1)), name
        assert all(found.payload(i) == payload_of(i.seq, 700) for i in found.iocbs), name


@pytest.mark.parametrize("short_bytes", [0, 1, 63, 64, 70, 163])
def test_a_failed_append_records_nothing_and_the_next_one_takes_its_place(
    short_bytes: int,
) -> None:
    disk = spool_disk()
    writer = new_writer(disk)
    write_record(writer, 1, payload_of(1, 100))
    end_at = writer.end_at
    disk.inject(Fault(errno.ENOSPC, "journal:append", short_bytes=short_bytes))
    with pytest.raises(OSError, match="No space"):
        write_record(writer, 2, payload_of(9, 100))
    assert (writer.end_at, writer.record_count, writer.last_seq) == (end_at, 1, 1)
    assert seqs(scan(disk, OPEN)) == [1]
    write_record(writer, 2, payload_of(2, 90))
    seal(writer)
    file = check_sealed(OPEN, disk.contents(OPEN))
    assert [file.payload(record) for record in file.records()] == [
        payload_of(1, 100),
        payload_of(2, 90),
    ]


def test_after_a_failed_sync_no_later_one_succeeds() -> None:
    disk = spool_disk()
    writer = new_writer(disk)
    write_record(writer, 1, b"x")
    disk.inject(Fault(errno.EIO, "journal:sync"))
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            writer.sync()
    with pytest.raises(OSError, match="Input/output"):
        seal(writer)
    assert disk.labels.count("journal:sync") == 1
    assert seqs(scan(disk.power_cut(), OPEN)) == []


def test_a_sync_without_news_costs_nothing() -> None:
    disk = spool_disk()
    writer = new_writer(disk)
    writer.sync()
    write_record(writer, 1, b"x")
    writer.sync()
    writer.sync()
    assert disk.labels.count("journal:sync") == 1


def test_what_was_appended_can_be_read_where_append_said() -> None:
    disk = spool_disk()
    writer = new_writer(disk)
    write_record(writer, 1, payload_of(1, 50))
    at = write_record(writer, 2, payload_of(2, 60))
    assert disk.contents(writer.path)[at : at + 60] == payload_of(2, 60)


# Sealing.


def test_sealed_bytes_tells_the_size_beforehand() -> None:
    disk = spool_disk()
    writer = new_writer(disk)
    write_three(writer)
    expected = writer.sealed_bytes
    seal(writer)
    assert disk.size(disk.open("x", OPEN, os.O_RDONLY)) == expected


@pytest.mark.parametrize("torn_pages", [False, True])
@pytest.mark.parametrize("recycle", [False, True])
def test_a_crash_while_sealing_loses_nothing_durable_and_sealing_again_gives_the_same_bytes(
    recycle: bool, torn_pages: bool
) -> None:
    def start() -> SimDisk:
        disk = disk_with_free_file() if recycle else spool_disk()
        disk.torn_pages = torn_pages
        return disk

    whole = start()
    writer = new_writer(whole, None, FREE if recycle else None)
    write_three(writer)
    seal(writer)
    expected = whole.contents(OPEN)

    first = len(steps_of_making(start(), recycle))
    for stop in range(6):
        disk = start()
        stop_in_seal(disk, stop, first, recycle)
        for name, choose in mixtures(disk.units(), random_count=30):
            cut = disk.power_cut(choose)
            found = scan(cut, OPEN)
            assert seqs(found) == [1, 2, 3], (stop, name)
            again = AimWriter.reopen(cut, found)
            seal(again)
            assert cut.power_cut().contents(OPEN) == expected, (stop, name)


def steps_of_making(disk: SimDisk, recycle: bool) -> list[str]:
    write_three(new_writer(disk, None, FREE if recycle else None))
    return disk.labels


def stop_in_seal(disk: SimDisk, stop: int, first: int, recycle: bool) -> None:
    writer = new_writer(disk, None, FREE if recycle else None)
    write_three(writer)
    writer.sync()
    disk.stop_at(first + 1 + stop)
    try:
        seal(writer)
    except Crash:
        return


@pytest.mark.parametrize("label", ["journal:iocbs", "journal:seal", "journal:cut"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_seal_that_failed_before_its_sync_loses_nothing_and_may_be_tried_again(
    label: str, number: int
) -> None:
    disk = spool_disk()
    writer = new_writer(disk)
    write_three(writer)
    writer.sync()
    disk.inject(Fault(number, label, short_bytes=40))
    with pytest.raises(OSError, match=os.strerror(number)):
        seal(writer)
    for name, choose in mixtures(disk.units(), random_count=30):
        assert seqs(scan(disk.power_cut(choose), OPEN)) == [1, 2, 3], name
    seal(writer)
    assert len(list(read_sealed(disk.power_cut(), OPEN).records())) == 3


def test_a_seal_whose_sync_failed_never_succeeds() -> None:
    disk = spool_disk()
    writer = new_writer(disk)
    write_three(writer)
    disk.inject(Fault(errno.EIO, "journal:seal_sync"))
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            seal(writer)
    for name, choose in mixtures(disk.units(), random_count=30):
        assert seqs(scan(disk.power_cut(choose), OPEN))[:2] == [1, 2], name


def test_every_failing_call_leaves_a_file_that_is_whole_or_refused() -> None:
    for failing in range(20):
        disk = spool_disk()
        disk.inject(Fault(errno.EIO, at=failing))
        try:
            writer = new_writer(disk)
            write_three(writer)
            seal(writer)
        except OSError:
            for _, choose in mixtures(disk.units()):
                whole_or_refused(disk.power_cut(choose), OPEN)
        else:
            assert failing == len(disk.labels)
            assert len(list(read_sealed(disk.power_cut(), OPEN).records())) == 3
            return
    pytest.fail("there was no end of calls")


def whole_or_refused(disk: SimDisk, path: Path) -> None:
    try:
        file = read_sealed(disk, path)
    except (JournalError, OSError):
        return
    assert [bytes(file.payload(r)) for r in file.records()] == [
        payload_of(seq, 3000) for seq in (1, 2, 3)
    ]
