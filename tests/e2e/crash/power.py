"""A file system of its own whose power can be cut: all that is not on its disk is gone."""

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import Self

_SHUTDOWN = 0x8004587D
_WITHOUT_LOG_FLUSH = struct.pack("I", 2)
_SIZE_BYTES = 320 << 20
_PATIENCE_S = 120.0


class Disk:
    """A loop-mounted file system; a context manager that leaves neither mount nor loop behind."""

    def __init__(self, root: Path, name: str, kind: str) -> None:
        self.backing = root / f"{name}.disk"
        self.path = root / name
        self.kind = kind
        self.path.mkdir()
        with self.backing.open("wb") as file:
            file.truncate(_SIZE_BYTES)
        options = ["-q", "-F"] if kind == "ext4" else ["-q", "-f"]
        _run(f"mkfs.{kind}", *options, str(self.backing))

    def __enter__(self) -> Self:
        self.mount()
        return self

    def __exit__(self, *_exc: object) -> None:
        _run("umount", "--lazy", str(self.path))

    def mount(self) -> None:
        command = ("mount", "-t", self.kind, "-o", "loop", str(self.backing), str(self.path))
        end_s = time.monotonic() + _PATIENCE_S
        while (done := _done(*command)).returncode:  # The loop device before may be just going.
            assert time.monotonic() < end_s, done.stderr
            time.sleep(0.05)

    def sync(self) -> None:
        """Make everything on it durable."""
        _run("sync", "--file-system", str(self.path))

    def cut(self) -> None:
        """Cut the power: what was not durable is lost, and from now on every call fails."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_LOG_FLUSH)
        finally:
            os.close(fd)

    def revive(self) -> None:
        """Unmount what is dead and mount it again, which replays the file system's own log."""
        end_s = time.monotonic() + _PATIENCE_S
        while (done := _done("umount", str(self.path))).returncode:
            assert time.monotonic() < end_s, f"somebody holds the dead file system: {done.stderr}"
            time.sleep(0.05)
        self.mount()


def _done(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)


def _run(*command: str) -> None:
    done = _done(*command)
    assert done.returncode == 0, (command, done.stderr)
