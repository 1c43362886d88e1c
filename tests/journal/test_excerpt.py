"""Of a sealed file only what is needed is read, and nothing of that is believed unchecked."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord, JournalError, TornRecord
from aimfuse.journal.excerpt import FRONT_BYTES, GAP_BYTES, Excerpts, read_front, read_iocbs
from aimfuse.journal.header import FileKind, Identity
from aimfuse.journal.portion import columns_of
from aimfuse.journal.reader import AimFile, read_sealed
from aimfuse.journal.records import IOCB_BYTES, RecordType, VolumeEntry, encode_table
from aimfuse.journal.whole import Frame, encode_sealed
from aimfuse.units import ByteOffset, Epoch, FileNumber, VolumeId
from tests.dice import draw_seed

WRITE, ZERO = RecordType.WRITE, RecordType.ZERO
RECORD_BYTES = GAP_BYTES + 4096
"""Larger than what is read for being in between."""


class Noting(Disk):
    """Notes which bytes of files are read."""

    def __init__(self) -> None:
        self.got = 0

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        data = super().pread(fd, length, offset)
        self.got += len(data)
        return data

    def pread_places(self, fd: int, memory: memoryview, places: object) -> int:
        del fd, memory, places
        return 0  # Whoever reads goes on place by place.


def payload(volume: int, index: int) -> bytes:
    return random.Random(100 * volume + index).randbytes(RECORD_BYTES)


def made(path: Path, volumes: int = 4, names: int = 0) -> Path:
    """Make an undo file with four records of each volume, the last a hole."""
    table = encode_table(
        VolumeEntry(VolumeId(one), f"{one}".rjust(255 if names else 1, "x"), 0)
        for one in range(1, max(volumes, names) + 1)
    )
    none = (VolumeId(0), ByteOffset(0), 0)
    frames = [Frame(RecordType.TABLE, *none, table), Frame(RecordType.UNDO, *none, b"{}")]
    for volume in range(1, volumes + 1):
        for index in range(4):
            data = payload(volume, index) if index < 3 else b""
            at = ByteOffset(index * 2 * RECORD_BYTES)
            kind = WRITE if data else ZERO
            frames.append(Frame(kind, VolumeId(volume), at, RECORD_BYTES, data))
    identity = Identity(bytes(16), Epoch(1), FileNumber(2), 3, kind=FileKind.UNDO)
    path.write_bytes(b"".join(encode_sealed(identity, frames)[0]))
    return path


def records(aim: AimFile) -> list[tuple[int, int, bytes]]:
    """Return volume, offset and payload of each record that *aim* holds."""
    found = columns_of(aim)
    rows = zip(found.types, found.volumes, found.offsets, found.ats, found.sizes, strict=True)
    return [
        (volume, offset, bytes(aim.data[at : at + size]))
        for kind, volume, offset, at, size in rows
        if kind in {WRITE, ZERO}
    ]


def test_an_excerpt_has_the_records_of_the_volumes_that_are_needed_and_no_others(
    tmp_path: Path,
) -> None:
    path, disk = made(tmp_path / "f.undo"), Noting()
    found = Excerpts({3}).read(disk, path)
    assert records(found) == [
        (3, index * 2 * RECORD_BYTES, payload(3, index) if index < 3 else b"") for index in range(4)
    ]
    assert [one.type for one in found.iocbs] == [RecordType.TABLE, RecordType.UNDO]
    assert disk.got < 3 * RECORD_BYTES + 2 * FRONT_BYTES
    assert records(Excerpts({3}).read(Disk(), path)) == records(found)  # By one call for all.


def test_what_lies_between_is_read_only_if_it_is_little(tmp_path: Path) -> None:
    path, disk = made(tmp_path / "f.undo", volumes=8), Noting()
    found = Excerpts({1, 3, 8}).read(disk, path)
    assert [one[0] for one in records(found)] == [1] * 4 + [3] * 4 + [8] * 4
    assert disk.got < 9 * RECORD_BYTES + 2 * FRONT_BYTES


def test_of_a_file_of_which_nothing_is_needed_only_the_front_and_the_iocbs_are_read(
    tmp_path: Path,
) -> None:
    path, disk = made(tmp_path / "f.undo"), Noting()
    assert records(Excerpts({9}).read(disk, path)) == []
    assert disk.got < FRONT_BYTES + 4096


def test_of_which_most_is_needed_is_read_and_checked_whole(tmp_path: Path) -> None:
    path, most = made(tmp_path / "f.undo", volumes=8), {1, 2, 3, 5, 6, 7, 8}
    whole = read_sealed(Disk(), path)
    assert Excerpts(most).read(Disk(), path) == whole
    damaged = bytearray(path.read_bytes())
    damaged[columns_of(whole).ats[2 + 3 * 4]] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match="digest"):
        Excerpts(most).read(Disk(), path)
    assert records(Excerpts({1, 2}).read(Disk(), path))  # What is not used may be what it likes.


def test_of_which_all_volumes_are_needed_is_read_whole_at_once(tmp_path: Path) -> None:
    path, disk = made(tmp_path / "f.undo"), Noting()
    assert Excerpts({1, 2, 3, 4, 5}).read(disk, path) == read_sealed(Disk(), path)
    assert disk.got == path.stat().st_size


def test_no_flipped_bit_is_ever_in_an_excerpt(tmp_path: Path) -> None:
    path, dice = made(tmp_path / "f.undo"), random.Random(draw_seed())
    sound, right = path.read_bytes(), records(Excerpts({2, 4}).read(Disk(), path))
    ats = columns_of(read_sealed(Disk(), path)).ats
    used = range(8 * ats[2 + 4], 8 * (ats[2 + 4] + RECORD_BYTES))
    header = (*range(8 * 128), *range(8 * 512, 8 * 684))
    end = range(8 * (len(sound) - 18 * 64), 8 * len(sound))
    for bits, count in ((header, 60), (used, 30), (end, 60), (range(8 * len(sound)), 30)):
        for bit in dice.sample(bits, count):
            damaged = bytearray(sound)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                found = records(Excerpts({2, 4}).read(Disk(), path))
            except JournalError:
                continue
            assert bits is not used
            assert found == right, bit


@pytest.mark.parametrize("read", [read_iocbs, Excerpts({3}).read])
@pytest.mark.parametrize(("there", "instead"), [(10, 11), (12, 11), (11, 0), (2, 17), (17, 16)])
def test_a_record_of_the_same_file_in_the_place_of_another_is_noticed(
    tmp_path: Path, read: Callable[[Disk, Path], object], there: int, instead: int
) -> None:
    """As a disk does that reads or writes a sector in a wrong place: its sums are right."""
    path = made(tmp_path / "f.undo")
    data, at = bytearray(path.read_bytes()), read_sealed(Disk(), path).seal.iocb_at
    there, instead = at + there * IOCB_BYTES, at + instead * IOCB_BYTES
    data[there : there + IOCB_BYTES] = data[instead : instead + IOCB_BYTES]
    path.write_bytes(data)
    with pytest.raises(CorruptRecord, match="in the place of another"):
        read(Disk(), path)


@pytest.mark.parametrize("read", [read_front, read_iocbs, Excerpts({1}).read])
def test_a_file_that_ends_early_is_noticed(tmp_path: Path, read: object) -> None:
    assert callable(read)
    path = made(tmp_path / "f.undo")
    sound = path.read_bytes()
    for size in (0, 100, 4096, 5000, FRONT_BYTES, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:size])
        with pytest.raises(TornRecord):
            read(Disk(), path)


class Cutting(Disk):
    """Cuts the file while it is read."""

    def pread_places(self, fd: int, memory: memoryview, places: object) -> int:
        del memory, places
        os.truncate(f"/proc/self/fd/{fd}", 5000)
        return 0


def test_a_file_that_is_cut_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = made(tmp_path / "f.undo")
    with pytest.raises(TornRecord, match="while it was read"):
        Excerpts({1}).read(Cutting(), path)


def test_the_front_holds_the_marks_however_long_they_are(tmp_path: Path) -> None:
    path = made(tmp_path / "f.undo", names=1000)
    front, whole = read_front(Disk(), path), read_sealed(Disk(), path)
    assert front.iocbs == whole.iocbs[:2]
    assert front.table() == whole.table()
    assert len(front.data) < len(whole.data) // 2
    damaged = bytearray(path.read_bytes())
    damaged[front.iocbs[0].data_at + 200_000] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match="payload"):
        read_front(Disk(), path)


def test_all_iocbs_can_be_had_without_what_they_describe(tmp_path: Path) -> None:
    path, disk = made(tmp_path / "f.undo"), Noting()
    assert read_iocbs(disk, path).iocbs == read_sealed(Disk(), path).iocbs
    assert disk.got < FRONT_BYTES + 4096
