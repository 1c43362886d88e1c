"""Set aside what a store refuses: moved, never opened or followed, with a reason beside it.

A refused file NAME lies at ``quarantine/NAME`` and why at ``quarantine/NAME.reason``. Beyond
the first thousand, foreign things are only moved, to ``quarantine/more``, and damaged copies of
AIM files, which will be sent again, are dropped. So a flood costs one rename each, no memory.
"""

import contextlib
import errno
import json
import logging
import os
import re
from pathlib import Path

from aimfuse.replay.store import Store
from aimfuse.units import SECOND_NS

log = logging.getLogger(__name__)

KEPT_MAX = 1000
REASON = ".reason"
_MORE = "more"
_NAME_CHARACTERS_MAX = 100
_TEXT_CHARACTERS_MAX = 2000
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_IMMOVABLE = {errno.EXDEV, errno.EACCES, errno.EPERM, errno.EBUSY, errno.ENOENT}
_LOG_EVERY_NS = 10 * SECOND_NS


class Quarantine:
    """The refused files of one store; `count` is how many were set aside, ever."""

    def __init__(self, store: Store) -> None:
        """Count what is there already."""
        self._store = store
        self._more = store.quarantine / _MORE
        names = [name for name in store.look.scan(store.quarantine) if name != _MORE]
        self._kept = sum(not name.endswith(REASON) for name in names)
        self._beyond = 0
        if store.disk.exists(self._more):
            self._beyond = sum(1 for _name in store.look.scan(self._more))
        self._logged_ns = 0

    @property
    def count(self) -> int:
        """Return how many things lie here."""
        return self._kept + self._beyond

    def set_aside(self, path: Path, reason: str, now_ns: int, *, expendable: bool = False) -> bool:
        """Move *path* here; return False if it cannot be moved and stays where it is.

        Raises:
            OSError: the disk failed; it stays where it is.
        """
        self._log(path, reason, now_ns)
        try:
            if self._kept < KEPT_MAX:
                self._keep(path, reason, now_ns)
            elif expendable:
                self._store.disk.unlink("quarantine:drop", path)
            else:
                self._move_on(path)
        except OSError as exc:
            if exc.errno in _IMMOVABLE:
                return False
            raise
        return True

    def _log(self, path: Path, reason: str, now_ns: int) -> None:
        """Say it, but not a million times."""
        if now_ns - self._logged_ns >= _LOG_EVERY_NS or self._kept < 10:  # noqa: PLR2004 - a few
            self._logged_ns = now_ns
            log.warning("%s: %r set aside: %s", self._store.path, path.name, reason)

    def _keep(self, path: Path, reason: str, now_ns: int) -> None:
        disk = self._store.disk
        target = self._free_name(path.name)
        disk.rename("quarantine:rename", path, target)
        self._kept += 1
        body = {
            "name": path.name,
            "reason": reason[:_TEXT_CHARACTERS_MAX],
            "time_ns": now_ns,
        }
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with contextlib.suppress(OSError):  # The reason is a service; a full disk may have no room.
            fd = disk.open("quarantine:reason", target.with_name(target.name + REASON), flags)
            try:
                disk.pwrite("quarantine:reason", fd, [json.dumps(body).encode() + b"\n"], 0)
            finally:
                disk.close(fd)

    def _move_on(self, path: Path) -> None:
        if not self._beyond:
            self._store.disk.mkdir("quarantine:mkdir", self._more)
        target = self._more / f"{self._beyond:012d}"
        while self._store.disk.exists(target):
            self._beyond += 1
            target = self._more / f"{self._beyond:012d}"
        self._store.disk.rename("quarantine:rename_more", path, target)
        self._beyond += 1

    def _free_name(self, name: str) -> Path:
        safe = _UNSAFE.sub("_", name)[:_NAME_CHARACTERS_MAX].lstrip(".") or "_"
        if safe.endswith(REASON) or safe == _MORE:
            safe += "_"
        target = self._store.quarantine / safe
        again = 0
        while self._store.disk.exists(target):
            again += 1
            target = self._store.quarantine / f"{safe}-{again}"
        return target


def safe_name(name: str) -> str:
    """Return *name* fit for a terminal and a log: anything unusual replaced."""
    return _UNSAFE.sub("_", name)[:_NAME_CHARACTERS_MAX]
