"""A dirty map holds what was added, rounded to its grain, whatever was asked of it before."""

import random
import sys
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord
from aimfuse.journal.dirty import CHUNK_BYTES, DirtyMap, read_map, write_map
from aimfuse.units import BLOCK_BYTES, KIB, MIB, TIB

CHUNK_SPAN = 8 * CHUNK_BYTES * BLOCK_BYTES

stretches = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.one_of(
            st.integers(0, 40 * BLOCK_BYTES),
            st.integers(CHUNK_SPAN - 10 * BLOCK_BYTES, CHUNK_SPAN + 10 * BLOCK_BYTES),
        ),
        st.integers(0, 30 * BLOCK_BYTES),
    ),
    max_size=12,
)


def blocks(one: tuple[int, int, int]) -> set[tuple[int, int]]:
    volume, offset, length = one
    if not length:
        return set()
    first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
    return {(volume, block) for block in range(first, last + 1)}


def made_of(added: list[tuple[int, int, int]]) -> tuple[DirtyMap, set[tuple[int, int]]]:
    dirty, model = DirtyMap(), set[tuple[int, int]]()
    for one in added:
        dirty.add(*one)
        model |= blocks(one)
    return dirty, model


def covers(dirty: DirtyMap, model: set[tuple[int, int]]) -> bool:
    """Tell whether all of *model* is in it, however coarse it has become."""
    found = list(dirty.extents())
    return all(
        any(v == one.volume and 0 <= block * BLOCK_BYTES - one.offset < one.length for one in found)
        for v, block in model
    )


def held(dirty: DirtyMap) -> set[tuple[int, int]]:
    found = set[tuple[int, int]]()
    for one in dirty.extents():
        assert not found & blocks(one)
        found |= blocks(one)
    return found


@given(stretches)
def test_a_map_holds_the_blocks_that_were_added_and_no_others(
    added: list[tuple[int, int, int]],
) -> None:
    dirty, model = made_of(added)
    assert held(dirty) == model
    assert dirty.dirty_bytes() == len(model) * BLOCK_BYTES
    assert bool(dirty) == bool(model)
    ends = [(one.volume, one.offset + one.length) for one in dirty.extents()]
    starts = [(one.volume, one.offset) for one in dirty.extents()]
    assert starts == sorted(starts)
    assert not set(ends) & set(starts), "neighbours are one extent"


@given(stretches, st.integers(1, 4), st.sampled_from([1, 64]))
def test_many_stretches_added_at_once_make_the_same_map(
    added: list[tuple[int, int, int]], chunks_max: int, spread: int
) -> None:
    singly, at_once = DirtyMap(chunks_max * CHUNK_BYTES), DirtyMap(chunks_max * CHUNK_BYTES)
    offsets = array("q", [offset * spread for _volume, offset, _length in added])
    lengths = array("I", [length for _volume, _offset, length in added])
    for offset, length in zip(offsets, lengths, strict=True):
        singly.add(1, offset, length)
    at_once.add_many(1, offsets, lengths)
    assert at_once.encode() == singly.encode()


@given(stretches, stretches)
def test_a_union_holds_what_either_held(
    some: list[tuple[int, int, int]], more: list[tuple[int, int, int]]
) -> None:
    (one, in_one), (other, in_other) = made_of(some), made_of(more)
    one.add_all(other)
    assert held(one) == in_one | in_other
    assert held(other) == in_other


@given(stretches, st.integers(1, 3), st.integers(0, CHUNK_SPAN + 20 * BLOCK_BYTES))
def test_what_lies_before_a_place_can_be_dropped_or_passed_over(
    added: list[tuple[int, int, int]], volume: int, offset: int
) -> None:
    dirty, model = made_of(added)
    rest = {one for one in model if one >= (volume, offset // BLOCK_BYTES)}
    assert set().union(*map(blocks, dirty.extents(volume, offset))) == rest
    dirty.drop_before(volume, offset)
    assert held(dirty) == rest


@given(stretches, st.integers(1, 3))
def test_a_volume_that_is_gone_leaves_nothing(added: list[tuple[int, int, int]], gone: int) -> None:
    dirty, model = made_of(added)
    dirty.forget(gone)
    assert held(dirty) == {one for one in model if one[0] != gone}


@given(stretches, st.integers(1, 4), stretches)
def test_a_small_map_gets_coarser_and_forgets_nothing(
    added: list[tuple[int, int, int]], chunks_max: int, more: list[tuple[int, int, int]]
) -> None:
    small = DirtyMap(chunks_max * CHUNK_BYTES)
    model = set[tuple[int, int]]()
    for volume, offset, length in added:
        far = (1, offset + volume * 64 * CHUNK_SPAN, length)
        small.add(*far)
        model |= blocks(far)
    assert covers(small, model)
    assert len(small.encode()) <= chunks_max * (CHUNK_BYTES + 16) + 64
    fine, in_fine = made_of(more)
    fine.add_all(small)
    assert covers(fine, in_fine | model)
    small.add_all(made_of(more)[0])
    volumes = len({volume for volume, _block in in_fine | model})
    assert len(small.encode()) <= max(chunks_max, volumes) * (CHUNK_BYTES + 16) + 64
    assert covers(small, in_fine | model)


@given(stretches)
def test_what_is_written_is_read_back(added: list[tuple[int, int, int]]) -> None:
    dirty, model = made_of(added)
    again = DirtyMap.decode(dirty.encode())
    assert held(again) == model
    assert again.grain_bytes == dirty.grain_bytes


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    dirty, _model = made_of([(1, 0, 9000), (2, 5 * MIB, 1)])
    path = tmp_path / "some.map"
    write_map(Disk(), path, dirty)
    whole = path.read_bytes()
    dice = random.Random(1)
    for bit in dice.sample(range(8 * len(whole)), 400):
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoiled)
        with pytest.raises(CorruptRecord):
            read_map(Disk(), path)
    for cut in dice.sample(range(len(whole)), 100):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptRecord):
            read_map(Disk(), path)


def test_a_tebibyte_written_all_over_at_random_stays_small() -> None:
    """A write into every 4 MiB: every chunk exists, as after any longer random load."""
    dirty, dice = DirtyMap(), random.Random(2)
    for offset in range(0, TIB, 4 * MIB):
        dirty.add(1, offset + dice.randrange(4 * MIB // BLOCK_BYTES) * BLOCK_BYTES, 4 * KIB)
    held_bytes = sum(map(sys.getsizeof, dirty._chunks.values())) + sys.getsizeof(dirty._chunks)  # noqa: SLF001
    assert held_bytes <= 32 * MIB
    assert len(dirty.encode()) <= 20 * MIB
    assert dirty.grain_bytes <= 8 * KIB


def test_an_absurdly_large_stretch_costs_no_more() -> None:
    dirty = DirtyMap()
    dirty.add(1, 5, (1 << 62) - 10)
    assert len(dirty.encode()) <= 20 * MIB
    assert sum(one.length for one in dirty.extents()) >= (1 << 62) - 10
