"""The real disk where it meets what the simulated one does not show: block devices."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aimfuse.disk import Disk, NoPlainFile, read_file
from aimfuse.units import MIB

pytestmark = pytest.mark.usefixtures("require_root_loop")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    below = tmp_path / "below"
    below.write_bytes(bytes(MIB))
    command = ["losetup", "--find", "--show", str(below)]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


RANGES = [(1, 100), (4095, 2), (100, 9000), (0, 4096), (512, 1024), (MIB - 10, 10), (0, MIB)]


@pytest.mark.parametrize(("offset", "length"), RANGES)
def test_a_block_device_reads_zeros_in_any_range_that_was_punched(
    device: Path, offset: int, length: int
) -> None:
    fd = os.open(device, os.O_RDWR)
    try:
        expected = bytearray(b"x" * MIB)
        os.pwrite(fd, expected, 0)
        Disk().punch("test", fd, offset, length)
        expected[offset : offset + length] = bytes(length)
        assert os.pread(fd, MIB, 0) == expected
    finally:
        os.close(fd)


def test_a_range_whose_pages_are_in_use_reads_zeros_too(device: Path) -> None:
    claimed = os.open(device, os.O_RDWR | os.O_EXCL)
    fd = os.open(device, os.O_RDWR)  # Not the one that has the device for itself.
    try:
        os.pwrite(fd, b"x" * MIB, 0)
        Disk().punch("test", fd, 4096, 8192)
        assert os.pread(fd, MIB, 0) == b"x" * 4096 + bytes(8192) + b"x" * (MIB - 12288)
    finally:
        os.close(fd)
        os.close(claimed)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_plain_file_is_refused_without_waiting(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "x")
    with pytest.raises(NoPlainFile, match="is no plain file"):
        read_file(Disk(), tmp_path / "x", MIB)
