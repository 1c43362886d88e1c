"""Open files: as much as is sound, a torn tail told apart from damage, nothing from before."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from aimfuse.errors import CorruptRecord
from aimfuse.journal.header import HEADER_BYTES, IDENTITY_BYTES
from aimfuse.journal.reader import Scan, scan_open
from aimfuse.journal.records import MAGIC, RecordType
from aimfuse.units import Epoch, FileNumber, Seq
from tests.journal.samples import (
    PREV_DIGEST,
    SPOOL,
    commit_mark,
    identity,
    new_writer,
    open_file,
    payload_of,
    seqs,
    spool_disk,
    write_record,
)

ANY = Path("any")
PAGE = 4096


def scan(data: bytes, last_seq: int = 0) -> Scan:
    return scan_open(ANY, data, Seq(last_seq))


def ends(found: Scan) -> Iterator[int]:
    """Yield the place after each frame."""
    yield HEADER_BYTES
    for iocb in found.iocbs:
        yield iocb.end_at


def committed_file() -> bytes:
    """Return records 1-2, a mark that says 0, records 3-4, a mark that says 2, record 5."""
    disk = spool_disk()
    writer = new_writer(disk)
    for seq in range(1, 6):
        write_record(writer, seq, payload_of(seq, 100))
        if seq in {2, 4}:
            commit_mark(writer, seq, seq - 2)
    return disk.contents(writer.path)


def test_the_whole_of_a_sound_file_is_found() -> None:
    data = open_file([10, 0, 5000])
    found = scan(data)
    assert seqs(found) == [1, 2, 3]
    assert found.end_at == len(data)
    assert found.last_seq == 3
    assert found.has_records
    assert found.payload(found.iocbs[3]) == payload_of(3, 5000)


def test_cut_at_every_byte_it_ends_with_the_last_whole_frame() -> None:
    data = open_file([10, 0, 33])
    places = list(ends(scan(data)))
    for keep in range(IDENTITY_BYTES, len(data)):
        found = scan(data[:keep])
        assert found.end_at == max([HEADER_BYTES, *(end for end in places if end <= keep)])
        assert found.last_seq == max(0, len(found.iocbs) - 1)


def test_without_a_whole_identity_it_is_refused() -> None:
    data = open_file([10])
    for keep in range(IDENTITY_BYTES):
        with pytest.raises(CorruptRecord):
            scan(data[:keep])


def test_every_flipped_bit_ends_it_before_the_damaged_frame() -> None:
    data = open_file([10, 0, 16])
    for start, end in pairwise(ends(scan(data))):
        for bit in range(8 * start, 8 * end):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            found = scan(bytes(damaged))
            if found.end_at == end or found.end_at == len(data):
                payload_end = next(i for i in scan(data).iocbs if i.end_at == end)
                assert bit // 8 >= payload_end.data_at + payload_end.payload_bytes, bit
            else:
                assert found.end_at == start, bit


def test_a_lost_page_in_the_tail_ends_it_there_whatever_follows() -> None:
    data = open_file([1000] * 20)
    places = list(ends(scan(data)))
    for page in range(HEADER_BYTES, len(data), PAGE):
        holed = data[:page] + bytes(min(PAGE, len(data) - page)) + data[page + PAGE :]
        assert scan(holed).end_at == max(end for end in places if end <= page)


def test_a_later_valid_record_does_not_count() -> None:
    data = open_file([100, 100, 100])
    second = scan(data).iocbs[2]
    broken = bytearray(data)
    broken[second.data_at] ^= 1
    assert seqs(scan(bytes(broken))) == [1]


@pytest.mark.parametrize("last_seq", [1, 4])
def test_records_that_do_not_continue_the_numbers_do_not_count(last_seq: int) -> None:
    data = open_file([10, 10])
    assert scan(data, last_seq).iocbs == ()
    assert not scan(data, last_seq).has_records


def test_it_continues_from_the_number_given() -> None:
    assert seqs(scan(open_file([10, 10], first_seq=8), 7)) == [8, 9]


# Torn or damaged: COMMIT marks.


def test_without_a_break_the_newest_mark_counts() -> None:
    found = scan(committed_file())
    assert (found.last_seq, found.committed_seq) == (5, 2)


def test_a_mark_behind_the_break_tells_what_had_been_durable() -> None:
    data = committed_file()
    frames = {i.seq: i for i in scan(data).iocbs if not i.is_mark}
    for seq, frame in frames.items():
        broken = bytearray(data)
        broken[frame.data_at] ^= 1
        found = scan(bytes(broken))
        assert (found.last_seq, found.committed_seq) == (seq - 1, 2)


def test_a_cut_at_any_byte_is_never_taken_for_damage() -> None:
    data = committed_file()
    for keep in range(IDENTITY_BYTES, len(data)):
        found = scan(data[:keep])
        assert found.committed_seq <= found.last_seq


def test_a_mark_inside_a_payload_is_no_mark() -> None:
    other = spool_disk()
    writer = new_writer(other)
    commit_mark(writer, 0, 1000)
    forged = other.contents(writer.path)[HEADER_BYTES:]
    disk = spool_disk()
    writer = new_writer(disk)
    write_record(writer, 1, payload_of(1, 64))
    write_record(writer, 2, forged)
    assert scan(disk.contents(writer.path)).committed_seq == 0


@pytest.mark.parametrize("tail", [MAGIC, MAGIC + bytes([RecordType.COMMIT]), b"IOC"])
def test_the_beginning_of_a_frame_at_the_very_end_is_a_torn_tail(tail: bytes) -> None:
    data = open_file([16])
    found = scan(data + tail)
    assert found.end_at == len(data)
    assert found.committed_seq == 0


# What a recycled file held before.


def recycled_after(
    old_lengths: list[int], new_lengths: list[int], *, marks: bool, epoch: int = 2
) -> Scan:
    """Scan a file of *epoch* that was written over a sealed one of epoch 1."""
    disk = spool_disk()
    writer = new_writer(disk)
    for index, length in enumerate(old_lengths):
        write_record(writer, index + 1, payload_of(index + 1, length))
        if marks:
            commit_mark(writer, index + 1, index + 1)
    writer.seal(PREV_DIGEST, Epoch(1), FileNumber(2))
    writer.close()
    free = SPOOL / "free-x"
    disk.rename("release", writer.path, free)
    fresh = new_writer(disk, identity(2, epoch, created_ns=2), free)
    assert not disk.exists(free)
    for index, length in enumerate(new_lengths):
        write_record(fresh, index + 1, payload_of(index + 100, length))
    return scan(disk.contents(fresh.path))


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("new", range(5))
def test_a_recycled_file_never_yields_what_it_held_before(new: int, marks: bool) -> None:
    """Frames of equal length: the old file's next record lies exactly where the new one ends."""
    found = recycled_after([64] * 5, [64] * new, marks=marks)
    assert seqs(found) == list(range(1, new + 1))
    assert found.committed_seq == 0
    assert all(found.payload(i) == payload_of(i.seq + 99, 64) for i in found.iocbs)


def test_a_recycled_file_that_stays_in_its_epoch_yields_nothing_old_either() -> None:
    found = recycled_after([64] * 5, [64] * 2, marks=True, epoch=1)
    assert seqs(found) == [1, 2]
    assert found.committed_seq == 0
