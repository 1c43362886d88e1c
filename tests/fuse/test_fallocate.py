"""fallocate through a real mount, served by a child process: see fallocate_child.py."""

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

CHILD = Path(__file__).with_name("fallocate_child.py")
TIMEOUT_S = 60
PUNCH = 3
ZERO_KEEP_SIZE = 17
ZERO = 16
PLAIN = 0


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> int:
    """Return the errno that the system call ended with, 0 for success."""
    done = _libc.fallocate(descriptor, mode, offset, length) == 0
    return 0 if done else ctypes.get_errno()


@dataclass
class Mount:
    """A mounted file, and the process that serves it."""

    file: Path
    process: subprocess.Popen[str]

    def fallocate(self, mode: int, offset: int, length: int) -> int:
        """Return the errno that the system call ended with, 0 for success."""
        descriptor = os.open(self.file, os.O_RDWR)
        try:
            return fallocate(descriptor, mode, offset, length)
        finally:
            os.close(descriptor)

    def unmount(self) -> list[tuple[int, int, int]]:
        """Unmount and return what the handler was asked, as (mode, offset, length)."""
        subprocess.run(["fusermount3", "-u", str(self.file.parent)], check=True, timeout=TIMEOUT_S)
        output, _ = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0
        return [tuple(json.loads(line)) for line in output.splitlines()]


@contextmanager
def mounted(directory: Path, *options: str) -> Iterator[Mount]:
    directory.mkdir()
    command = [sys.executable, str(CHILD), str(directory), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Mount(directory / "volume", process)
    finally:
        if process.poll() is None:
            subprocess.run(["fusermount3", "-uz", str(directory)], check=False, timeout=TIMEOUT_S)
            process.kill()
        process.communicate(timeout=TIMEOUT_S)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path / "mnt") as one:
        yield one


@pytest.mark.parametrize(
    ("flags", "mode"),
    [(["-p"], PUNCH), (["-z", "-n"], ZERO_KEEP_SIZE), (["-z"], ZERO)],
    ids=["punch", "zero-keep-size", "zero"],
)
def test_the_handler_sees_what_the_fallocate_command_asked_for(
    mount: Mount, flags: list[str], mode: int
) -> None:
    command = ["fallocate", *flags, "-o", "8192", "-l", "4096", str(mount.file)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S)
    assert mount.unmount() == [(mode, 8192, 4096)]


def test_a_mode_that_the_handler_does_not_know_is_refused_and_asked_again(mount: Mount) -> None:
    assert mount.fallocate(PLAIN, 0, 4096) == errno.EOPNOTSUPP
    assert mount.fallocate(PLAIN, 4096, 4096) == errno.EOPNOTSUPP
    assert mount.unmount() == [(PLAIN, 0, 4096), (PLAIN, 4096, 4096)]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [(1000, errno.EIO), (1001, errno.ENOSPC), (1002, errno.EROFS), (1003, errno.EFBIG)],
    ids=["a bug", "an OSError", "a FUSEError", "a refusal of ours"],
)
def test_an_exception_in_the_handler_costs_one_request_and_not_the_mount(
    mount: Mount, offset: int, expected: int
) -> None:
    assert mount.fallocate(PUNCH, offset, 1) == expected
    assert mount.fallocate(PUNCH, 0, 4096) == 0
    assert mount.file.read_bytes() == bytes(65536)
    assert mount.unmount() == [(PUNCH, offset, 1), (PUNCH, 0, 4096)]


@pytest.mark.parametrize("answer", [-1, 5000, "no number"])
def test_an_answer_that_is_no_errno_becomes_an_input_output_error(
    tmp_path: Path, answer: int | str
) -> None:
    with mounted(tmp_path / "mnt", f"--answer={json.dumps(answer)}") as mount:
        assert mount.fallocate(PUNCH, 0, 4096) == errno.EIO
        assert mount.unmount() == [(PUNCH, 0, 4096)]


def test_many_at_once_are_each_answered_with_their_own_result(mount: Mount) -> None:
    asked = [(PUNCH if i % 2 else PLAIN, i * 4096, 4096) for i in range(64)]
    descriptor = os.open(mount.file, os.O_RDWR)
    try:
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(lambda call: fallocate(descriptor, *call), asked))
    finally:
        os.close(descriptor)
    assert results == [0 if i % 2 else errno.EOPNOTSUPP for i in range(64)]
    assert sorted(mount.unmount()) == sorted(asked)


def test_a_request_that_is_cancelled_is_answered_and_its_caller_goes_on(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt", "--cancel") as mount:
        assert mount.fallocate(PUNCH, 0, 4096) == errno.ENOTCONN
        assert mount.file.read_bytes() == bytes(65536)
        assert mount.unmount() == [(PUNCH, 0, 4096)]


def test_a_request_whose_task_cannot_start_is_answered(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt", "--closed-nursery") as mount:
        assert mount.fallocate(PUNCH, 0, 4096) == errno.ENOTCONN
        assert mount.file.read_bytes() == bytes(65536)
        assert mount.unmount() == []


def test_without_a_handler_the_request_is_refused_and_the_mount_serves_on(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt", "--no-handler") as mount:
        assert mount.fallocate(PUNCH, 0, 4096) == errno.EOPNOTSUPP
        assert mount.file.read_bytes() == bytes(65536)
        assert mount.unmount() == []


def test_without_the_extension_the_kernel_refuses_by_itself(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt", "--no-extension") as mount:
        assert mount.fallocate(PUNCH, 0, 4096) == errno.EOPNOTSUPP
        assert mount.file.read_bytes() == bytes(65536)
        assert mount.unmount() == []


def test_a_request_left_open_when_the_mount_ends_harms_nobody(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt", "--leave-open") as mount, ThreadPoolExecutor(1) as pool:
        descriptor = os.open(mount.file, os.O_RDWR)
        try:
            call = pool.submit(fallocate, descriptor, PUNCH, 0, 4096)
            output, _ = mount.process.communicate(timeout=TIMEOUT_S)
            assert call.result(TIMEOUT_S) in {errno.ECONNABORTED, errno.ENOTCONN}
        finally:
            with suppress(OSError):  # The file system is gone.
                os.close(descriptor)
    assert mount.process.returncode == 0
    assert output == "[3, 0, 4096]\n"


def test_loaded_after_pyfuse3_it_says_that_it_will_not_be_asked() -> None:
    code = """
import pyfuse3
from aimfuse import fallocate
async def handler(*request): return 0
print(fallocate.load(), fallocate.install(handler, print), fallocate.served())
fallocate.uninstall()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.stdout == "False False False\n"
