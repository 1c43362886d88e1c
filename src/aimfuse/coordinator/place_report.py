"""What a destination says of itself: ``status.json``, replaced whole."""

import contextlib
import json
import os
from typing import Any

import trio

from aimfuse.coordinator.acks import Ack
from aimfuse.coordinator.copy_report import folded, progress
from aimfuse.coordinator.forecast import Trend
from aimfuse.coordinator.lag import Lag, Stage, seconds_behind
from aimfuse.coordinator.place import Place
from aimfuse.coordinator.race import Race
from aimfuse.errors import Unavailable, explain
from aimfuse.journal.spool import full_mark, full_reserve

STATUS_NAME = "status.json"
STUCK_S = 30.0


class PlaceReport:
    """The report of one destination. Owned by that destination's tasks."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._trend = Trend()
        self._race = Race()

    def pinned(self) -> Stage:
        """Return what stays in the spool for this destination, whoever else needs it too."""
        place = self._place
        if place.pin is None:
            return Stage(0, 0)
        backlog, pin = place.parts.backlog, max(place.pin, int(place.fold.through))
        return Stage(backlog.count_above(pin), backlog.bytes_between(pin, backlog.newest))

    def lag(self) -> Lag:
        """Return how far the mirror is behind, by stage."""
        place = self._place
        delivery, ack = place.delivery, place.ack
        queued, flying = delivery.queued(), delivery.in_flight()
        received = delivery.received(ack.queue_bytes if ack else 0)
        return Lag(queued, flying, received, self._seconds_behind())

    def status(self) -> dict[str, Any]:
        """Return the content of ``status.json``."""
        place = self._place
        now, lag, ack = trio.current_time(), self.lag(), place.ack
        pending = lag.files > 0 or place.cursor.sync is not None
        if not pending or place.state in {"paused", "waiting"} or _waits_on_purpose(ack, lag):
            place.moved_at = now
        flights = [
            *place.delivery.flights.values(),
            *(f for f in place.outgoing if f.sent < f.bytes),
        ]
        applied = ack.applied if ack else None
        rate = place.meter.bytes_per_s(now)
        self._race.note(now, place.parts.backlog.total_bytes, place.meter.total_bytes)
        error = place.error or self._endless()
        return {
            "name": place.config.name,
            "url": place.config.url,
            "state": place.state,
            "since_ns": place.since_ns,
            "error": explain(error) if error else None,
            "hint": getattr(error, "hint", "") or None,
            "opens": None if place.gate.is_open() else place.gate.opens(),
            "bandwidth_bytes_s": place.config.bandwidth_bytes_s,
            "retry_in_s": None if place.retry_at is None else max(0.0, place.retry_at - now),
            "queued": lag.queued.to_json(),
            "pinned": {**self.pinned().to_json(), "bytes_max": place.config.spool_share_bytes},
            "spool": place.parts.backlog.summary(),
            "folded": folded(place.fold, self._applied),
            "forecast": self._forecast(now, rate),
            "in_flight": [{"name": f.name, "bytes": f.bytes, "sent": f.sent} for f in flights],
            "received_not_applied": lag.received.to_json(),
            "received": {"number": self._received},
            "applied": {
                "number": self._applied,
                "seq": applied.seq if applied else 0,
                "epoch": applied.epoch if applied else 0,
            },
            "lag": {"seconds": lag.seconds, "bytes": lag.bytes, "files": lag.files},
            "rate_bytes_s": rate,
            "sent_bytes": place.meter.total_bytes,
            "sync": progress(
                place.cursor.sync, ack, [*place.delivery.flights.values(), *place.outgoing],
                place.parts.backlog, rate,
            ),
            "ack": ack.raw if ack else None,
            "updated_ns": place.parts.wall_ns(),
            "stuck": pending and now - place.moved_at >= STUCK_S,
        }  # fmt: skip

    def _endless(self) -> Unavailable | None:
        """Return why a copy will not end, where nobody waits for it."""
        place = self._place
        when_full = place.config.when_full or place.parts.config.journal.when_full
        if place.state != "syncing" or when_full != "fold":
            return None
        return self._race.verdict(place.cursor.sync)

    @property
    def _received(self) -> int:
        """Return up to where the store has the files: a copy's origin is not there yet."""
        place = self._place
        sync = place.cursor.sync
        if sync is None:
            return place.delivery.confirmed
        return place.ack.confirmed if place.ack and sync.staged else 0

    @property
    def _applied(self) -> int:
        """Return where the mirror is: in front of a staged copy until its switch."""
        place = self._place
        sync = place.cursor.sync
        if sync is None:
            return place.delivery.applied
        if not sync.staged:
            return 0
        return place.ack.applied_number if place.ack else place.cursor.applied

    def _forecast(self, now: float, sent_bytes_s: float) -> dict[str, float | None]:
        """Return how the spool's share goes on if all stays as it is."""
        place = self._place
        pinned, journal = self.pinned().bytes, place.parts.config.journal
        self._trend.note(now, pinned)
        room = [full_mark(journal.spool_bytes_max, journal.file_bytes) - pinned]
        if place.config.spool_share_bytes is not None:
            room.append(place.config.spool_share_bytes - pinned)
        with contextlib.suppress(OSError):
            free = place.parts.disk.free_bytes(place.parts.backlog.spool)
            room.append(free - full_reserve(journal.spool_reserve_bytes, journal.file_bytes))
        return self._trend.forecast(pinned, max(0, min(room)), is_sent=sent_bytes_s > 0)

    def write_status(self) -> None:
        """Replace ``status.json``; atomic, not durable, for it is only for reading now."""
        place = self._place
        path = place.directory / STATUS_NAME
        part = path.with_name(STATUS_NAME + ".part")
        disk = place.parts.disk
        fd = disk.open("status:create", part, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            disk.pwrite("status:write", fd, [json.dumps(self.status()).encode()], 0)
        finally:
            disk.close(fd)
        disk.rename("status:rename", part, path)

    def _seconds_behind(self) -> float | None:
        place = self._place
        sync = place.cursor.sync
        if place.cursor.is_new or (sync and not sync.staged):
            return None
        applied, backlog = self._applied, place.parts.backlog
        if applied >= backlog.newest:
            return 0.0
        oldest_ns = backlog.first_time_ns(applied)
        if applied + 1 < backlog.oldest and place.ack:  # The file has left the spool.
            # Behind a copy other files wait there than the one that the mirror lacks first.
            waiting_ns = 0 if sync else place.ack.oldest_waiting_ns
            oldest_ns = waiting_ns or place.ack.mirror_time_ns or oldest_ns
        return seconds_behind(place.parts.wall_ns(), oldest_ns) if oldest_ns else 0.0


def _waits_on_purpose(ack: Ack | None, lag: Lag) -> bool:
    """Tell whether all that is not applied waits for the store's delay, or for its operator."""
    if ack is None or lag.in_flight.files:
        return False
    return ack.takes_nothing or (ack.is_held and not lag.queued.files)
