"""The store's report to its sources: ``ack.json``, replaced whole, never more than needed.

It is not synced: what it says was made durable before it is written, so losing the newest one
in a power cut loses nothing. Its generation rises over restarts, also when the file was lost.
"""

import json
import logging
import os
from collections.abc import Callable

from aimfuse.disk import read_file
from aimfuse.replay.state import Json
from aimfuse.replay.store import ACK, Store
from aimfuse.units import MIB, SECOND_NS

log = logging.getLogger(__name__)

INTERVAL_NS = SECOND_NS // 10
HEARTBEAT_NS = 5 * SECOND_NS
LIST_MAX = 64
ACK_BYTES_MAX = MIB
_MODE = 0o644  # Sources read it; what it says is no secret, and the store's directory decides.
_MILLISECOND_NS = SECOND_NS // 1000


class AckFile:
    """Writes ``ack.json``: at once after a change, but at most ten times a second."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        """Find out which generation was the last; *clock* gives Unix ns."""
        self._store = store
        self._clock = clock
        self._written_ns = 0
        self._written: object = None
        self._failed = False
        self.last = _read_ack(store)
        generation = self.last.get("generation", 0)
        floor = clock() // _MILLISECOND_NS
        self._generation = max(generation if isinstance(generation, int) else 0, floor)

    def offer(self, key: object, build: Callable[[], Json], *, force: bool = False) -> None:
        """Write what *build* returns if *key* changed, or the last one has grown old.

        A failure is tried again at the next offer; it never stops the replay.
        """
        now_ns = self._clock()
        age_ns = now_ns - self._written_ns
        changed = key != self._written
        due = age_ns >= (INTERVAL_NS if changed else HEARTBEAT_NS) or age_ns < 0
        if not due and not (force and changed):
            return
        self._written_ns = now_ns
        try:
            self._write(build())
        except OSError as exc:
            if not self._failed:
                log.warning("%s cannot be written: %s", self._store.path / ACK, exc)
            self._failed = True
        else:
            self._written, self._failed = key, False

    def _write(self, ack: Json) -> None:
        self._generation += 1
        ack = {"version": 1, "generation": self._generation, **ack}
        disk, target = self._store.disk, self._store.home / ACK
        part = target.with_name(target.name + ".part")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        fd = disk.open("ack:create", part, flags, _MODE)
        try:
            _mode, uid, gid = disk.owner(fd)
            disk.set_owner(fd, _MODE, uid, gid)  # Whatever the umask took away.
            disk.pwrite("ack:write", fd, [json.dumps(ack).encode() + b"\n"], 0)
        finally:
            disk.close(fd)
        disk.rename("ack:rename", part, target)
        self.last = ack


def _read_ack(store: Store) -> Json:
    """Return the store's last ack, empty when there is none or it is unreadable."""
    try:
        data = json.loads(read_file(store.disk, store.home / ACK, ACK_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
