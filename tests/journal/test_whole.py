"""Files that are made at once, and looked at column by column or only checked."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord, JournalError, TornRecord
from aimfuse.journal.header import FileKind, Identity
from aimfuse.journal.portion import columns_of, spans_of
from aimfuse.journal.reader import (
    FRONT_BYTES,
    AimFile,
    OwnReader,
    check_own,
    check_sealed,
    read_own,
)
from aimfuse.journal.records import RecordType, Row, VolumeEntry, encode_table
from aimfuse.journal.whole import Frame, encode_rows, encode_sealed
from aimfuse.units import ByteOffset, Epoch, FileNumber, VolumeId
from tests.journal.samples import payload_of

ANY = Path("any")
IDENTITY = Identity(bytes(16), Epoch(1), FileNumber(7), 99, kind=FileKind.UNDO)

kinds = st.sampled_from([RecordType.WRITE, RecordType.ZERO])
rows_of_any_kind = st.lists(
    st.builds(
        lambda kind, volume, offset, length: (kind, VolumeId(volume), offset, length),
        kinds, st.integers(1, 3), st.integers(0, 1 << 40), st.integers(0, 300),
    ),
    max_size=8,
)  # fmt: skip


def marks(table_bytes: int = 20) -> list[Frame]:
    here = ByteOffset(0)
    count = max(1, table_bytes // 200)
    entries = [VolumeEntry(VolumeId(one + 1), f"{one:0180d}", 1) for one in range(count)]
    return [
        Frame(RecordType.TABLE, VolumeId(0), here, 0, encode_table(entries)),
        Frame(RecordType.UNDO, VolumeId(0), here, 0, b"a mark."),
    ]


def payloads(rows: list[Row]) -> list[bytes]:
    return [
        payload_of(index, row[3]) if row[0] is RecordType.WRITE else b""
        for index, row in enumerate(rows)
    ]


def made(rows: list[Row], table_bytes: int = 20) -> bytes:
    frames = [
        Frame(kind, volume, ByteOffset(offset), length, payload)
        for (kind, volume, offset, length), payload in zip(rows, payloads(rows), strict=True)
    ]
    return b"".join(encode_sealed(IDENTITY, [*marks(table_bytes), *frames])[0])


def some_rows(count: int = 3) -> list[Row]:
    return [(RecordType.WRITE, VolumeId(1), 1000 * at, 100) for at in range(count)]


@given(rows_of_any_kind, st.integers(1, 9))
def test_rows_that_are_filled_in_give_the_same_file_as_frames(rows: list[Row], step: int) -> None:
    found = payloads(rows)

    def fill(memory: memoryview, ats: Sequence[int]) -> Iterator[int]:
        for end in (*range(step, len(rows), step), len(rows)):
            for at, payload in list(zip(ats, found, strict=True))[:end]:
                memory[at : at + len(payload)] = payload
            yield end

    data, digest = encode_rows(IDENTITY, marks(), rows, fill)
    assert bytes(data) == made(rows)
    assert check_sealed(ANY, bytes(data)).seal.digest == digest


def test_what_filling_raises_goes_through() -> None:
    def fill(_memory: memoryview, _ats: Sequence[int]) -> Iterator[int]:
        yield 1
        raise OSError("the disk failed")

    with pytest.raises(OSError, match="the disk failed"):
        encode_rows(IDENTITY, marks(), some_rows(), fill)


@given(rows_of_any_kind)
def test_columns_say_what_the_records_do(rows: list[Row]) -> None:
    file = check_sealed(ANY, made(rows))
    columns = columns_of(file)
    assert list(columns.types) == [iocb.type for iocb in file.iocbs]
    for name, field in (
        ("volumes", "volume"), ("sizes", "payload_bytes"), ("offsets", "offset"),
        ("lengths", "length"), ("ats", "data_at"),
    ):  # fmt: skip
        assert list(getattr(columns, name)) == [getattr(iocb, field) for iocb in file.iocbs]


def test_the_records_of_a_volume_are_a_span() -> None:
    assert list(spans_of([])) == []
    assert list(spans_of([4, 4, 2, 4])) == [(4, 0, 2), (2, 2, 3), (4, 3, 4)]


@pytest.mark.parametrize("table_bytes", [20, FRONT_BYTES - 200, FRONT_BYTES + 5000])
@pytest.mark.parametrize("count", [0, 1, 3000])
def test_checking_finds_the_marks_that_reading_finds(
    tmp_path: Path, table_bytes: int, count: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(made(some_rows(count), table_bytes))
    checked, read = check_own(Disk(), path), read_own(Disk(), path)
    assert checked.iocbs[:2] == read.iocbs[:2]
    assert (checked.identity, checked.seal) == (read.identity, read.seal)
    assert checked.table() == read.table()
    assert bytes(checked.payload(checked.iocbs[1])) == b"a mark."


@given(st.data())
def test_checking_refuses_a_file_with_any_bit_flipped(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "file"
    damaged = bytearray(made(some_rows()))
    bit = draw.draw(st.integers(0, 8 * len(damaged) - 1), label="bit flipped")
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    with pytest.raises(JournalError):
        check_own(Disk(), path)


def test_checking_reads_to_the_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = made(some_rows(6000))
    assert len(whole) > 3 * FRONT_BYTES
    path.write_bytes(whole)
    check_own(Disk(), path)
    for at in (FRONT_BYTES, 2 * FRONT_BYTES + 1, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptRecord):
            check_own(Disk(), path)


@pytest.mark.parametrize("keep", [0, 100, 4095, 4096, 4200, -1])
def test_checking_refuses_a_file_that_is_cut_short(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(made(some_rows())[:keep])
    with pytest.raises(TornRecord):
        check_own(Disk(), path)


def test_checking_refuses_a_file_with_something_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(made(some_rows()) + b"more")
    with pytest.raises(CorruptRecord):
        check_own(Disk(), path)


def test_files_read_by_turns_are_those_that_were_written(tmp_path: Path) -> None:
    reader, read = OwnReader(2), []
    for count in (3000, 1, 0, 700):
        path = tmp_path / str(count)
        path.write_bytes(made(some_rows(count)))
        file = reader.read(Disk(), path)
        assert bytes(file.data) == path.read_bytes()
        assert file.iocbs[:2] == read_own(Disk(), path).iocbs[:2]
        read.append((file, path))
        for held, of in read[-2:]:
            assert bytes(held.data) == of.read_bytes(), "the one before is held still"


@given(st.data())
def test_a_memory_that_held_another_file_hides_no_damage(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "file"
    whole = made(some_rows())
    path.write_bytes(whole)
    reader = OwnReader(1)
    reader.read(Disk(), path)
    at = draw.draw(st.integers(0, len(whole) - 1), label="place")
    if draw.draw(st.booleans(), label="cut"):
        path.write_bytes(whole[:at])
    else:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(JournalError):
        reader.read(Disk(), path)


class _Shrinking(Disk):
    """A file that is cut after its size was asked for."""

    def size(self, fd: int) -> int:
        size = super().size(fd)
        os.truncate(f"/proc/self/fd/{fd}", size // 2)
        return size


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path, reader = tmp_path / "file", OwnReader(1)
    for disk in (Disk(), _Shrinking()):
        path.write_bytes(made(some_rows(6000)))
        if isinstance(disk, _Shrinking):
            with pytest.raises(CorruptRecord, match="digest"):
                reader.read(disk, path)
            with pytest.raises(JournalError):
                check_own(disk, path)
        else:
            reader.read(disk, path)


@pytest.mark.parametrize("read", [check_own, OwnReader(1).read], ids=["check", "read"])
def test_what_cannot_be_read_is_refused_at_once_and_each_time(
    tmp_path: Path, read: Callable[[Disk, Path], AimFile]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for _attempt in range(2):
        with pytest.raises(FileNotFoundError):
            read(Disk(), tmp_path / "missing")
        with pytest.raises((TornRecord, OSError)):
            read(Disk(), tmp_path / "pipe")
