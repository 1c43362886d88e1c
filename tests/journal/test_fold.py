"""Folding: the maps and tables of files that go are enough to bring a mirror behind them."""

import contextlib
import random
import tempfile
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord, TornRecord
from aimfuse.journal.contents import fold_into, read_contents
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.fold import Fold, FoldFile, FoldMaps, advance
from aimfuse.journal.journal import Head
from aimfuse.journal.portion import checked_columns
from aimfuse.journal.reader import read_sealed
from aimfuse.journal.records import (
    IOCB_BYTES,
    PAYLOAD_BYTES_MAX,
    RecordType,
    VolumeEntry,
    encode_iocb,
)
from aimfuse.units import KIB, Epoch, FileNumber, Seq, VolumeId
from tests.disks.cuts import keep_random
from tests.disks.faults import Crash
from tests.disks.simdisk import SimDisk
from tests.replay.source import Source

SIZE_MAX = 200 * KIB
SEED, HALF = 4711, 1 << 63


def change(source: Source, dice: random.Random) -> None:
    """Do one thing that an application may do."""
    volumes = list(source.volumes)
    kind = dice.randrange(10)
    if not volumes or kind == 0:
        source.create(f"v{source.next_volume}", dice.randrange(SIZE_MAX))
        return
    volume, at = dice.choice(volumes), dice.randrange(SIZE_MAX)
    if kind == 1:
        source.truncate(volume, dice.randrange(SIZE_MAX))
    elif kind == 2:
        source.rename(volume, dice.choice(["a", "b", source.volumes[volume].name]))
    elif kind == 3:
        source.unlink(volume)
    elif kind == 4:
        source.zero(volume, at, dice.randrange(1, 30_000))
    else:
        source.write(volume, at, dice.randbytes(dice.randrange(1, 9_000)))


@given(st.integers(0, 1 << 32))
def test_a_mirror_given_the_dirty_extents_equals_its_source(seed: int) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        source = Source(Path(scratch) / "spool")
        for _ in range(dice.randrange(8)):
            change(source, dice)
        source.roll()
        mirror = {v: bytearray(held.data) for v, held in source.volumes.items()}
        files = []
        for _ in range(dice.randrange(1, 4)):
            for _ in range(dice.randrange(8)):
                change(source, dice)
            files.append(source.roll())
        dirty = DirtyMap()
        end = fold_into(dirty, (read_contents(Disk(), path) for path in files))
    assert end is not None
    head, table = end
    assert (head.number, head.seq, head.digest) == (source.number, source.seq, source.digest)
    now = {v: (held.name, len(held.data)) for v, held in source.volumes.items()}
    assert {one.volume: (one.name, one.size_bytes) for one in table} == now
    for one in table:
        data = mirror.setdefault(one.volume, bytearray())
        del data[one.size_bytes :]
        data.extend(bytes(one.size_bytes - len(data)))
    for volume, offset, length in dirty.extents():
        fresh = source.volumes[volume].data[offset : offset + length]
        mirror[volume][offset : offset + len(fresh)] = fresh
    assert all(mirror[v] == held.data for v, held in source.volumes.items())


def test_contents_say_what_the_whole_file_says(tmp_path: Path) -> None:
    source, dice = Source(tmp_path / "spool"), random.Random(5)
    for _ in range(30):
        change(source, dice)
    path = source.roll()
    whole, contents = read_sealed(Disk(), path), read_contents(Disk(), path)
    columns, others = contents.columns, contents.others
    for index, iocb in enumerate(whole.iocbs):
        assert others.get(index, iocb) == iocb
        assert (index in others) == (iocb.type is not RecordType.WRITE)
        assert (columns.volumes[index], columns.sizes[index], columns.offsets[index]) == (
            iocb.volume, iocb.payload_bytes, iocb.offset,
        )  # fmt: skip
    for kind in RecordType:
        assert contents.count([kind]) == [one.type for one in whole.iocbs].count(kind)
    assert contents.table == whole.table()
    assert (contents.identity, contents.seal) == (whole.identity, whole.seal)


def test_contents_of_a_damaged_file_are_refused(tmp_path: Path) -> None:
    source = Source(tmp_path / "spool")
    source.create("a", 5)
    path = source.roll()
    whole = path.read_bytes()
    iocb_at = read_contents(Disk(), path).seal.iocb_at
    for at in (20, 600, iocb_at + 8, iocb_at + 70):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptRecord):
            read_contents(Disk(), path)
    at, end = iocb_at + IOCB_BYTES, iocb_at + 2 * IOCB_BYTES
    path.write_bytes(whole[:at] + whole[iocb_at:at] + whole[end:])
    with pytest.raises(CorruptRecord, match="in the place of another"):
        read_contents(Disk(), path)
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptRecord, match="cut short"):
        read_contents(Disk(), path)
    path.write_bytes(whole[:512] + bytes(3584) + whole[4096:])
    with pytest.raises(TornRecord):
        read_contents(Disk(), path)


def row(at: int, value: int, width: int) -> bytes:
    """Return a sound IOCB of a WRITE with *value* at byte *at*."""
    fields = bytearray(encode_iocb(SEED, RecordType.WRITE, VolumeId(1), 1, 0, 0, 4160, 1, b""))
    fields[at : at + width] = value.to_bytes(width, "little")
    return bytes(fields[:-4]) + crc32c(fields[:-4], SEED).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("at", "width", "most"),
    [(5, 1, 0), (6, 2, 0), (12, 4, PAYLOAD_BYTES_MAX), (24, 8, HALF - 1), (32, 8, HALF - 1)],
    ids=["flags", "reserved", "size", "offset", "length"],
)
def test_numbers_larger_than_any_are_refused_though_the_sum_is_right(
    at: int, width: int, most: int
) -> None:
    good, bad = row(at, most, width), row(at, most + 1, width)
    assert len(checked_columns(Path("file"), 0, good * 3, SEED).types) == 3
    with pytest.raises(CorruptRecord, match="IOCB"):
        checked_columns(Path("file"), 0, good * 2 + bad, SEED)
    with pytest.raises(CorruptRecord, match="checksum"):
        checked_columns(Path("file"), 0, good, SEED + 1)


def end_at(number: int) -> tuple[Head, tuple[VolumeEntry, ...]]:
    head = Head(Epoch(1), FileNumber(number), Seq(number), bytes([number]) * 32)
    return head, (VolumeEntry(VolumeId(1), "v", 1 << 20),)


def dirty_at(*blocks: int) -> DirtyMap:
    dirty = DirtyMap()
    for block in blocks:
        dirty.add(1, block * 4096, 4096)
    return dirty


def blocks_of(dirty: DirtyMap) -> set[int]:
    stretches = [range(one.offset, one.offset + one.length, 4096) for one in dirty.extents()]
    return {at // 4096 for stretch in stretches for at in stretch}


def test_what_came_behind_a_copys_start_is_told_apart() -> None:
    maps = FoldMaps()
    fold = advance(Fold(), maps, 3, dirty_at(1), end_at(5))
    assert (fold.since, fold.mid, fold.through) == (3, 3, 5)
    fold = advance(fold, maps, 3, dirty_at(2), end_at(6))
    assert (blocks_of(maps.old), blocks_of(maps.recent)) == (set(), {1, 2})
    fold = advance(fold, maps, 6, dirty_at(3), end_at(8))  # A copy began at 6.
    assert (fold.since, fold.mid, fold.through) == (3, 6, 8)
    assert (blocks_of(maps.old), blocks_of(maps.recent)) == ({1, 2}, {3})
    fold = advance(fold, maps, 6, dirty_at(1, 4), end_at(9))
    assert blocks_of(maps.recent) == {1, 3, 4}
    assert (fold.dirty_bytes(3), fold.dirty_bytes(6)) == (5 * 4096, 3 * 4096)
    assert fold.covers(3)
    assert not fold.covers(2)


def test_a_hole_between_fold_and_cursor_leaves_only_what_is_behind_it() -> None:
    maps = FoldMaps()
    fold = advance(Fold(), maps, 3, dirty_at(1), end_at(5))
    fold = advance(fold, maps, 7, dirty_at(2), end_at(9))
    assert (fold.since, fold.mid, fold.through) == (7, 7, 9)
    assert (blocks_of(maps.old), blocks_of(maps.recent)) == (set(), {2})
    assert not fold.covers(5)


def test_volumes_that_are_gone_leave_the_maps() -> None:
    maps = FoldMaps(dirty_at(1), dirty_at(2))
    head, _table = end_at(9)
    fold = Fold(FileNumber(1), FileNumber(2), FileNumber(7), head)
    advance(fold, maps, 2, DirtyMap(), (head, ()))
    assert not maps.old
    assert not maps.recent


def test_a_fold_is_read_back_and_cleared(tmp_path: Path) -> None:
    file = FoldFile(Disk(), tmp_path)
    assert file.read() == Fold()
    maps = FoldMaps()
    fold = file.write(advance(Fold(), maps, 3, dirty_at(1, 2), end_at(5)), maps)
    fold = file.write(advance(fold, maps, 5, dirty_at(7), end_at(6)), maps)
    again = FoldFile(Disk(), tmp_path)
    assert again.read() == fold
    found = again.read_maps(again.read())
    assert (blocks_of(found.old), blocks_of(found.recent)) == ({1, 2}, {7})
    assert len(list(tmp_path.glob("*.map"))) == 2
    again.clear(fold)
    assert not list(tmp_path.glob("*.map"))
    assert not FoldFile(Disk(), tmp_path).read().through


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_at_any_step_leaves_one_fold_or_the_next(seed: int) -> None:
    directory = Path("/d")
    ready = SimDisk()
    ready.make_directories(directory)
    maps = FoldMaps()
    first = FoldFile(ready, directory).write(advance(Fold(), maps, 3, dirty_at(1), end_at(5)), maps)
    following = advance(first, maps, 3, dirty_at(2), end_at(6))
    rehearsal = ready.kill()
    FoldFile(rehearsal, directory).write(following, maps)
    for die_at in range(len(rehearsal.labels) + 1):
        disk = ready.kill()
        disk.stop_at(die_at)
        with contextlib.suppress(Crash):
            FoldFile(disk, directory).write(following, maps)
        left = disk.power_cut(keep_random(seed))
        file = FoldFile(left, directory)
        found = file.read()
        expected = {5: {1}, 6: {1, 2}}[found.through]
        assert blocks_of(file.read_maps(found).recent) == expected
