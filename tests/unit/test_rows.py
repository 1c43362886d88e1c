"""Many rows of numbers in one call: by the extension, and by the code that stands in for it."""

from array import array
from collections.abc import Callable

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from aimfuse import _rows, rows

each_counts = pytest.mark.parametrize(
    "count", [_rows.count_sound, rows.count_sound_plainly], ids=["extension", "python"]
)
each_marks = pytest.mark.parametrize(
    "mark", [_rows.mark_blocks, rows.mark_blocks_plainly], ids=["extension", "python"]
)
Count = Callable[[bytes, int, int], int]
Mark = Callable[..., int]

CHUNK_BYTES, SHIFT = 4, 12
GRAINS, BLOCK = 8 * CHUNK_BYTES, 1 << SHIFT
FAR = 1 << 62


def test_the_extension_is_what_is_used() -> None:
    assert (rows.count_sound, rows.mark_blocks) == (_rows.count_sound, _rows.mark_blocks)


def summed(body: bytes, seed: int) -> bytes:
    return body + crc32c(body, seed).to_bytes(4, "little")


@each_counts
@pytest.mark.parametrize("body_bytes", [0, 1, 7, 8, 60, 61])
@pytest.mark.parametrize("seed", [0, 1, 0xFFFFFFFF])
def test_rows_are_counted_up_to_the_first_that_does_not_match(
    count: Count, body_bytes: int, seed: int
) -> None:
    made = [summed(bytes([row] * body_bytes), seed) for row in range(5)]
    assert count(b"".join(made), body_bytes + 4, seed) == 5
    for bad in range(5):
        for at in range(body_bytes + 4):
            spoilt = bytearray(made[bad])
            spoilt[at] ^= 0x80
            data = b"".join([*made[:bad], bytes(spoilt), *made[bad + 1 :]])
            assert count(data, body_bytes + 4, seed) == bad
    assert count(b"", body_bytes + 4, seed) == 0


@pytest.mark.parametrize(("length", "row_bytes"), [(63, 64), (64, 3), (64, 0), (64, -8)])
def test_what_are_no_whole_rows_is_refused(length: int, row_bytes: int) -> None:
    with pytest.raises(ValueError, match="rows"):
        _rows.count_sound(bytes(length), row_bytes, 0)


def marked(
    mark: Mark, stretches: list[tuple[int, int]], begin: int = 0
) -> tuple[int, dict[tuple[int, int], bytearray]]:
    chunks = {(7, number): bytearray(CHUNK_BYTES) for number in (0, 2, 256)}
    offsets = array("q", [offset for offset, _length in stretches])
    lengths = array("I", [length for _offset, length in stretches])
    return mark(chunks, CHUNK_BYTES, 7, SHIFT, offsets, lengths, begin), chunks


@each_marks
def test_each_block_gets_its_bit(mark: Mark) -> None:
    stretches = [(0, 1), (BLOCK, BLOCK), (3 * BLOCK - 1, 1), (256 * GRAINS * BLOCK, 2),
                 ((2 * GRAINS + 31) * BLOCK + 5, BLOCK - 5), (9 * BLOCK, 10)]  # fmt: skip
    done, chunks = marked(mark, stretches)
    assert done == 6
    assert [*chunks.values()] == [b"\x07\x02\0\0", b"\0\0\0\x80", b"\x01\0\0\0"]


@each_marks
@pytest.mark.parametrize(
    "left",
    [(0, 0), (1, BLOCK), (0, BLOCK + 1), (GRAINS * BLOCK, 1), (FAR, 1), (FAR, 0xFFFFFFFF)],
    ids=["empty", "in two blocks", "longer", "no chunk", "far", "far and long"],
)
def test_marking_ends_at_what_is_for_the_caller(mark: Mark, left: tuple[int, int]) -> None:
    done, chunks = marked(mark, [(BLOCK, 1), (0, 1), left, (2 * BLOCK, 1)], 1)
    assert done == 2
    assert chunks[7, 0] == b"\x01\0\0\0"
    assert marked(mark, [left, (2 * BLOCK, 1)], 1)[0] == 2


@given(st.lists(st.tuples(st.integers(0, 1 << 25), st.integers(0, 2 * BLOCK)), max_size=30))
def test_the_extension_does_what_its_stand_in_does(stretches: list[tuple[int, int]]) -> None:
    assert marked(_rows.mark_blocks, stretches) == marked(rows.mark_blocks_plainly, stretches)


def test_a_chunk_of_another_size_is_not_written_to() -> None:
    chunks = {(7, 0): bytearray(CHUNK_BYTES - 1)}
    assert _rows.mark_blocks(chunks, CHUNK_BYTES, 7, 12, array("q", [0]), array("I", [1]), 0) == 0
    assert chunks[7, 0] == bytes(CHUNK_BYTES - 1)


@pytest.mark.parametrize(
    ("offsets", "lengths", "begin"),
    [([0], [], 0), ([0], [1, 2], 0), ([0], [1], -1)],
)
def test_rows_that_do_not_belong_together_are_refused(
    offsets: list[int], lengths: list[int], begin: int
) -> None:
    with pytest.raises(ValueError, match="rows"):
        _rows.mark_blocks({}, 4, 7, 12, array("q", offsets), array("I", lengths), begin)
