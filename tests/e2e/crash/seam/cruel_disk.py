"""A disk that dies, fails or forgets at one labelled step; see sitecustomize.py for the plan."""

import contextlib
import errno
import os
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimfuse.disk import Buffer, Disk

_ERRNO = {"eio": errno.EIO, "enospc": errno.ENOSPC, "short": errno.ENOSPC}
_TRACED = (1, 2, 4)
"""Which steps of one label are noted: how often there are more differs from run to run."""


class CruelDisk(Disk):
    """The real disk until its hour has come; then it dies, fails, or forgets."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.steps: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.met = _lines(plan["met"]) if "met" in plan else None
        self.only = tuple(plan.get("only", [""]))
        self.undo: dict[int, list[tuple[int, bytes, int]]] = defaultdict(list)

    def _is_time(self, label: str) -> bool:
        with self.lock:
            self.steps[label] += 1
            count = self.steps[label]
            if count in _TRACED and self.plan.get("trace"):
                _append(self.plan["trace"], f"{label} {count}\n")
        first = self.plan.get("nth", 1)
        last = first + self.plan.get("times", 1) - 1
        if label not in self.plan.get("at", "").split(",") or not first <= count <= last:
            return False
        return not self.plan.get("armed") or _disarmed(self.plan["armed"])

    def step(self, label: str) -> None:
        if self.met is not None:
            if label.startswith(self.only):
                self._die_if_new(label, self.met)
            return
        if self.plan["do"] == "short" or not self._is_time(label):
            return
        if self.plan["do"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(_ERRNO[self.plan["do"]], os.strerror(_ERRNO[self.plan["do"]]))

    def _die_if_new(self, label: str, met: set[str]) -> None:
        with self.lock:
            if label not in met:
                _append(self.plan["met"], f"{label}\n")
                os.kill(os.getpid(), signal.SIGKILL)

    def pwrite(self, label: str, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        whole = b"".join(buffers)
        self._remember(fd, offset, len(whole))
        if self.plan["do"] == "short" and self._is_time(label):
            os.pwrite(fd, whole[: len(whole) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().pwrite(label, fd, buffers, offset)

    def fdatasync(self, label: str, fd: int) -> None:
        try:
            super().fdatasync(label, fd)
        except OSError:
            self._forget_what_was_not_synced(fd)
            raise
        self.undo.pop(fd, None)

    def close(self, fd: int) -> None:
        self.undo.pop(fd, None)
        super().close(fd)

    def _remember(self, fd: int, offset: int, length: int) -> None:
        if self.plan["do"] == "eio":
            self.undo[fd].append((offset, os.pread(fd, length, offset), os.fstat(fd).st_size))

    def _forget_what_was_not_synced(self, fd: int) -> None:
        """Do what a kernel does after EIO: the pages are clean, and hold what they did."""
        for offset, before, size in reversed(self.undo.pop(fd, [])):
            os.pwrite(fd, before, offset)
            os.ftruncate(fd, size)


def _lines(path: str) -> set[str]:
    return set(Path(path).read_text().splitlines()) if Path(path).exists() else set()


def _append(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(text)


def _disarmed(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
        return True
    return False
