"""One part of an undo file, executed on open files."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord
from aimfuse.journal.header import FileKind, Identity
from aimfuse.journal.reader import AimFile, check_sealed
from aimfuse.journal.records import RecordType
from aimfuse.journal.whole import Frame, encode_sealed
from aimfuse.replay.taken_back import ranges_of, take_back
from aimfuse.units import ByteOffset, Epoch, FileNumber, VolumeId

WRITE, ZERO = RecordType.WRITE, RecordType.ZERO


def part(*records: tuple[RecordType, int, int, int, bytes]) -> AimFile:
    identity = Identity(bytes(16), Epoch(1), FileNumber(2), 3, kind=FileKind.UNDO)
    frames = [
        Frame(kind, VolumeId(volume), ByteOffset(offset), length, payload)
        for kind, volume, offset, length, payload in records
    ]
    return check_sealed(Path("part"), b"".join(encode_sealed(identity, frames)[0]))


def opened(directory: Path, *volumes: int) -> dict[VolumeId, int]:
    fds = {}
    for volume in volumes:
        path = directory / str(volume)
        path.write_bytes(b"x" * 20_000)
        fds[VolumeId(volume)] = os.open(path, os.O_RDWR)
    return fds


def close(fds: dict[VolumeId, int]) -> None:
    for fd in fds.values():
        os.close(fd)


def test_every_volume_that_is_open_gets_its_data_and_its_holes(tmp_path: Path) -> None:
    fds = opened(tmp_path, 1, 3)
    undo = part(
        (WRITE, 1, 5, 3, b"old"), (ZERO, 1, 4096, 8192, b""), (WRITE, 1, 15_000, 2, b"er"),
        (WRITE, 2, 0, 4, b"shut"), (ZERO, 3, 0, 100, b""),
    )  # fmt: skip
    take_back(Disk(), undo, ranges_of(undo), fds, "test")
    close(fds)
    first = bytearray(b"x" * 20_000)
    first[5:8], first[4096 : 4096 + 8192], first[15_000:15_002] = b"old", bytes(8192), b"er"
    assert (tmp_path / "1").read_bytes() == first
    assert (tmp_path / "3").read_bytes() == bytes(100) + b"x" * 19_900


def test_a_part_that_points_out_of_itself_is_damaged(tmp_path: Path) -> None:
    fds = opened(tmp_path, 1)
    undo = part((WRITE, 1, 0, 3, b"old"))
    data = bytearray(undo.data)
    data[undo.seal.iocb_at + 12] = 255  # Its payload's length, which the digest would not let be.
    undo = replace(undo, data=memoryview(bytes(data)))
    with pytest.raises(CorruptRecord, match="memory"):
        take_back(Disk(), undo, ranges_of(undo), fds, "test")
    close(fds)
    assert (tmp_path / "1").read_bytes() == b"x" * 20_000


def test_a_part_with_records_of_an_unknown_type_is_damaged() -> None:
    undo = part((WRITE, 1, 0, 3, b"old"))
    data = bytearray(undo.data)
    data[undo.seal.iocb_at + 4] = 77
    with pytest.raises(CorruptRecord, match="not known"):
        ranges_of(replace(undo, data=memoryview(bytes(data))))
