"""A scratch behaves as a file does, and what lies beneath it never changes."""

import errno
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.disk import Disk
from aimfuse.replay.scratch import Overlay, open_nameless
from aimfuse.units import GIB, MIB
from tests.replay.faults import failing_at

SPAN_BYTES = 40_000
BENEATH = bytes(range(1, 252)) * 120

offsets = st.integers(0, SPAN_BYTES)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("write"), offsets, st.integers(1, 9000)),
        st.tuples(st.just("truncate"), offsets, st.just(0)),
        st.tuples(st.just("zero"), offsets, st.integers(1, 9000)),
    ),
    max_size=12,
)


def overlay(disk: Disk, directory: Path, shift: int = 0) -> Overlay:
    """Return a layer over BENEATH, which begins *shift* bytes into the volume."""

    def shifted(offset: int, length: int) -> bytes:
        return (bytes(shift) + BENEATH)[offset : offset + length]

    return Overlay(disk, open_nameless(disk, directory), shifted, shift + len(BENEATH))


@given(changes=changes, shift=st.sampled_from([0, MIB - 12000]))
def test_a_scratch_reads_as_a_file_that_had_the_same_changes(
    changes: list[tuple[str, int, int]], shift: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        scratch, model = overlay(Disk(), Path(directory), shift), bytearray(shift) + BENEATH
        for fill, (what, at, length) in enumerate(changes, 1):
            offset = shift + at
            if what == "write":
                scratch.write(offset, bytes([fill]) * length)
                model.extend(bytes(max(0, offset + length - len(model))))
                model[offset : offset + length] = bytes([fill]) * length
            elif what == "zero":
                scratch.zero(offset, length)
                model.extend(bytes(max(0, offset + length - len(model))))
                model[offset : offset + length] = bytes(length)
            else:
                scratch.truncate(offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            assert scratch.size == len(model)
        assert scratch.read(0, len(model) + 10) == model
        for start in range(shift, len(model), 6007):
            assert scratch.read(start, 5000) == model[start : start + 5000]
        scratch.close()
        assert not list(Path(directory).iterdir())


def test_a_full_scratch_disk_leaves_what_was_there(tmp_path: Path) -> None:
    scratch = overlay(failing_at("scratch:write", errno.ENOSPC), tmp_path)
    with pytest.raises(OSError, match="No space"):
        scratch.write(5000, b"x" * 9000)
    assert scratch.read(0, len(BENEATH)) == BENEATH
    scratch.write(5000, b"x" * 9000)
    assert scratch.read(4999, 9002) == BENEATH[4999:5000] + b"x" * 9000 + BENEATH[14000:14001]
    scratch.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR])
def test_where_files_have_to_have_names_they_lose_them_at_once(tmp_path: Path, number: int) -> None:
    disk = failing_at("scratch:create", number)
    scratch = overlay(disk, tmp_path)
    assert disk.labels == ["scratch:create", "scratch:create", "scratch:unlink"]
    assert not list(tmp_path.iterdir())
    scratch.write(0, b"y")
    assert scratch.read(0, 2) == b"y" + BENEATH[1:2]
    scratch.close()


def test_a_discard_gives_the_room_back_and_hides_what_lies_beneath(tmp_path: Path) -> None:
    fd = open_nameless(Disk(), tmp_path)
    scratch = Overlay(Disk(), fd, lambda _offset, length: b"x" * length, 64 * MIB)
    scratch.write(MIB, b"y" * MIB)
    assert Disk().allocated(fd) >= MIB
    scratch.zero(0, 64 * MIB)
    assert Disk().allocated(fd) == 0
    assert scratch.read(MIB - 10, 20) == bytes(20)
    assert scratch.size == 64 * MIB
    scratch.truncate(MIB + 5000)
    scratch.truncate(3 * MIB)
    scratch.write(2 * MIB, b"z")
    assert scratch.read(MIB, 2 * MIB) == bytes(MIB) + b"z" + bytes(MIB - 1)
    scratch.close()


def test_a_discard_of_a_very_large_disk_takes_little_memory(tmp_path: Path) -> None:
    size = 64 * 1024 * GIB
    tracemalloc.start()
    try:
        scratch = overlay(Disk(), tmp_path)
        scratch.truncate(size)
        scratch.zero(4 * GIB, 256 * GIB)
        assert tracemalloc.get_traced_memory()[0] < 64 * MIB
    finally:
        tracemalloc.stop()
    assert scratch.read(4 * GIB, 10) == bytes(10)
    assert scratch.read(0, 10) == BENEATH[:10]
    scratch.close()
