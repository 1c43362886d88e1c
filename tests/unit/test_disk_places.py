"""Many places of a file in one call: by the extension, and by the code that stands in for it."""

import errno
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from aimfuse import _scatter
from aimfuse import disk as disk_module
from aimfuse.disk import Buffer, Disk, Places

HALF = 1 << 62

each_writes_places = pytest.mark.parametrize(
    "write",
    [_scatter.write_places, disk_module.write_places],
    ids=["extension", "python"],
)
each_writes_buffers = pytest.mark.parametrize(
    "write",
    [_scatter.write_buffers, disk_module.write_buffers],
    ids=["extension", "python"],
)
WritePlaces = Callable[..., None]
WriteBuffers = Callable[[int, tuple[int, ...], tuple[Buffer, ...]], None]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def places(*rows: tuple[int, int, int]) -> Places:
    return Places(*(array("q", column) for column in zip(*rows, strict=True)))


def read(disk: Disk, fd: int, memory: bytearray, wanted: Places) -> int:
    return disk.pread_places(fd, memoryview(memory), wanted)


@each_writes_places
def test_each_place_is_written_to_where_it_belongs(write: WritePlaces, file: int) -> None:
    wanted = places((3, 10, 2), (0, 0, 3), (1, 4, 0), (5, 100, 1))
    write(file, memoryview(b"abcdef"), *wanted)
    assert os.pread(file, 200, 0) == b"abc".ljust(10, b"\0") + b"de" + bytes(88) + b"f"


@each_writes_buffers
def test_buffers_of_any_kind_are_written_in_order(write: WriteBuffers, file: int) -> None:
    write(file, (0, 3, 9), (b"first", memoryview(b"..second..")[2:8], bytearray(b"third")))
    assert os.pread(file, 100, 0) == b"firsecondthird"


def test_nothing_at_all_may_be_written(file: int) -> None:
    Disk().pwrite_many("test", file, [], [])
    Disk().pwrite_places("test", file, memoryview(b""), Places(array("q"), array("q"), array("q")))
    assert os.fstat(file).st_size == 0


BAD = [(0, 0, 5), (4, 0, 1), (5, 0, 0), (-1, 0, 1), (0, -1, 1), (0, 0, -1), (HALF, 0, HALF)]


@each_writes_places
@pytest.mark.parametrize("bad", BAD)
def test_a_place_outside_of_the_memory_is_refused_before_anything_is_written(
    write: WritePlaces, file: int, bad: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match="memory"):
        write(file, memoryview(b"four"), *places((0, 0, 4), bad))
    assert os.fstat(file).st_size == 0


@each_writes_places
def test_rows_of_different_length_are_refused(write: WritePlaces, file: int) -> None:
    with pytest.raises(ValueError, match=r"equally|shorter|longer"):
        write(file, memoryview(b"four"), array("q", [0]), array("q", [0, 1]), array("q", [1]))


@pytest.mark.parametrize("cut", [b"", b"1234567", b"123456789"])
def test_rows_that_are_no_whole_numbers_are_refused(file: int, cut: bytes) -> None:
    with pytest.raises(ValueError, match="rows"):
        _scatter.write_places(file, b"four", cut, cut + b".", cut)  # type: ignore[arg-type]


BAD_BUFFERS: list[tuple[Sequence[object], Sequence[object], type[Exception]]] = [
    ((0,), (), ValueError),
    ((0, 1), (b"a", "text"), TypeError),
    ((0, 1), (b"a", None), TypeError),
    ((0, "1"), (b"a", b"b"), TypeError),
    ((0, 1 << 70), (b"a", b"b"), OverflowError),
    ([0], (b"a",), TypeError),
    ((0,), (memoryview(b"abcd")[::2],), BufferError),
]


@pytest.mark.parametrize(("offsets", "buffers", "error"), BAD_BUFFERS)
def test_what_are_no_buffers_and_offsets_is_refused_before_anything_is_written(
    file: int, offsets: Sequence[object], buffers: Sequence[object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        _scatter.write_buffers(file, offsets, buffers)  # type: ignore[arg-type]
    assert os.fstat(file).st_size == 0


@each_writes_places
def test_a_place_that_cannot_be_written_says_why(write: WritePlaces) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="space") as caught:
            write(full, memoryview(b"four"), *places((0, 0, 4)))
    finally:
        os.close(full)
    assert caught.value.errno == errno.ENOSPC


@each_writes_buffers
def test_a_buffer_that_cannot_be_written_says_why(write: WriteBuffers) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="space") as caught:
            write(full, (0,), (b"four",))
    finally:
        os.close(full)
    assert caught.value.errno == errno.ENOSPC


def test_places_are_read_to_where_they_belong(file: int) -> None:
    os.pwrite(file, b"0123456789", 0)
    memory = bytearray(b"........")
    assert read(Disk(), file, memory, places((6, 0, 2), (0, 8, 2), (3, 4, 0), (3, 5, 1))) == 4
    assert memory == b"89.5..01"


def test_reading_ends_at_the_first_place_that_cannot_be_read_whole(file: int) -> None:
    os.pwrite(file, b"0123456789", 0)
    memory = bytearray(8)
    wanted = places((0, 0, 2), (2, 9, 2), (4, 2, 2))
    assert read(Disk(), file, memory, wanted) == 1
    assert bytes(memory[:2] + memory[4:]) == b"01" + bytes(4)


def test_a_file_that_cannot_be_read_gives_no_place(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "written", os.O_WRONLY | os.O_CREAT)
    try:
        assert read(Disk(), fd, bytearray(4), places((0, 0, 4))) == 0
    finally:
        os.close(fd)


@pytest.mark.parametrize("bad", BAD)
def test_a_place_outside_of_the_memory_is_not_read_either(
    file: int, bad: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match="memory"):
        read(Disk(), file, bytearray(4), places(bad))


def test_memory_that_cannot_be_changed_is_not_read_into(file: int) -> None:
    with pytest.raises((TypeError, BufferError)):
        Disk().pread_places(file, memoryview(b"four"), places((0, 0, 4)))
