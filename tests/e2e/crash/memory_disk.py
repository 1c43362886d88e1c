"""A small disk in memory that is quickly full."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


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


def free_bytes(path: Path) -> int:
    """Return what can still be written there."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize
