"""Put a disk that dies, fails or takes notes into any aimfuse process that this environment starts.

Python imports a module of this name at its start, so it also reaches children that a
supervisor starts. The environment variable AIMFUSE_CRUELTY holds a JSON object: `role` (the
command it is meant for: mount, ship, replay, serve), `trace` (a file that gets every label
once), `at` and `nth` (the label, and its how-manyeth step), `do` (kill, eio, enospc, short),
`times` (for how many such steps) and `armed` (a file that the first process to get there
removes, so that the one that takes its place lives).
"""

import contextlib
import errno
import json
import os
import signal
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ERRNO = {"eio": errno.EIO, "enospc": errno.ENOSPC, "short": errno.ENOSPC}


def _plan() -> dict[str, Any] | None:
    words = sys.orig_argv
    text = os.environ.get("AIMFUSE_CRUELTY")
    if not text or "aimfuse" not in words:
        return None
    plan: dict[str, Any] = json.loads(text)
    role = words[words.index("aimfuse") + 1 : words.index("aimfuse") + 2]
    return plan if role == [plan["role"]] else None


def _install(plan: dict[str, Any]) -> None:
    from aimfuse.disk import Buffer, Disk, install  # noqa: PLC0415 - only in our processes

    class CruelDisk(Disk):
        """The real disk until its hour has come; then it dies, fails, or forgets."""

        def __init__(self) -> None:
            self.steps: Counter[str] = Counter()
            self.lock = threading.Lock()
            self.undo: dict[int, list[tuple[int, bytes, int]]] = defaultdict(list)

        def _is_time(self, label: str) -> bool:
            with self.lock:
                self.steps[label] += 1
                if self.steps[label] == 1 and plan.get("trace"):
                    _append(plan["trace"], f"{label}\n")
            nth = plan.get("nth", 1)
            if label != plan.get("at") or not nth <= self.steps[label] < nth + plan.get("times", 1):
                return False
            return not plan.get("armed") or _disarmed(plan["armed"])

        def step(self, label: str) -> None:
            if not self._is_time(label):
                return
            if plan["do"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(_ERRNO[plan["do"]], os.strerror(_ERRNO[plan["do"]]))

        def pwrite(self, label: str, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
            whole = b"".join(buffers)
            self._remember(fd, offset, len(whole))
            if plan["do"] == "short" and self._is_time(label):
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
            if plan["do"] == "eio":
                self.undo[fd].append((offset, os.pread(fd, length, offset), os.fstat(fd).st_size))

        def _forget_what_was_not_synced(self, fd: int) -> None:
            """Do what a kernel does after EIO: the pages are clean, and hold what they did."""
            for offset, before, size in reversed(self.undo.pop(fd, [])):
                os.pwrite(fd, before, offset)
                os.ftruncate(fd, size)

    install(CruelDisk())


def _append(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(text)


def _disarmed(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
        return True
    return False


if (_found := _plan()) is not None:
    _install(_found)
