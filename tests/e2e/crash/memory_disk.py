"""A small disk in memory that is quickly full."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_BALLAST_BYTES = 64 * 1024


@contextlib.contextmanager
def memory_disk(path: Path, size: str) -> Iterator[None]:
    """Mount one at *path* for the block, of a *size* such as 24m."""
    if os.geteuid() != 0:
        pytest.skip("a tmpfs needs root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path, left_bytes: int = 0) -> Path:
    """Use up all but *left_bytes* there, whatever others write meanwhile; return the ballast."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(_BALLAST_BYTES))
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
        file.truncate(max(0, file.tell() - left_bytes))
    return ballast
