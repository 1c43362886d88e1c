"""Hear of what a replayer does to a store, through the kernel (inotify) instead of looking.

An undo file gets its name, and a state or a floor is written, before the mirror changes by it;
the kernel notes that before the call returns. So whoever reads the mirror and asks afterwards
has heard of everything that what he read can have been changed by.
"""

import contextlib
import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import weakness
from aimfuse.replay.kept import FLOOR, HISTORY

_MODIFY = 0x2
_MOVED_TO = 0x80
_OVERFLOW = 0x4000
_EVENT = struct.Struct("iIII")
_READ_BYTES = 1 << 16
_FAR_AWAY = "on a network"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class News:
    """What happened: names that appeared in the history; whether a state or floor was written."""

    names: tuple[str, ...] = ()
    is_written: bool = False


NOTHING = News()


class Watch:
    """Watches one store until `close`. Where it cannot, `news` says so each time."""

    def __init__(self, store: Path) -> None:
        """Begin to watch; what happened before is not told."""
        self._history = -1
        self._fd = -1
        if _FAR_AWAY not in weakness(store):  # Of what another host does, nothing is told.
            self._begin(store)

    @property
    def is_told(self) -> bool:
        """Tell whether the kernel says what happens; else whoever reads has to look each time."""
        return self._fd >= 0

    def _begin(self, store: Path) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            return
        history = store / HISTORY
        slots = [base.with_name(f"{base.name}.{i}") for base in (store / "state", history / FLOOR)
                 for i in range(2)]  # fmt: skip
        self._history = self._add(history, _MOVED_TO)
        if self._history < 0 or any([self._add(slot, _MODIFY) < 0 for slot in slots]):  # noqa: C419 - all
            self.close()

    def _add(self, path: Path, mask: int) -> int:
        return int(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask))

    def news(self) -> News | None:
        """Return what happened since the last call, or None where nobody can tell: look."""
        if self._fd < 0:
            return None
        found = NOTHING
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, _READ_BYTES):
                told = self._told(data)
                if told is None:
                    return None
                found = News((*found.names, *told.names), found.is_written or told.is_written)
        return found

    def _told(self, data: bytes) -> News | None:
        names: list[str] = []
        is_written, at = False, 0
        while at < len(data):
            watched, mask, _cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            if mask & _OVERFLOW:
                return None
            if watched == self._history:
                names.append(os.fsdecode(data[at : at + length].rstrip(b"\0")))
            else:
                is_written = True
            at += length
        return News(tuple(names), is_written)

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
