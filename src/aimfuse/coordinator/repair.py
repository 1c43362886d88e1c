"""Mend what a mirror says differs, where the settings say to do so unasked.

The driver writes again what the image holds there: that reaches the mirror in order, and what it
held is kept in its history. Of very much a copy is asked for, as `aimfuse sync` does.
"""

import logging

import trio

from aimfuse.coordinator.acks import Ack
from aimfuse.coordinator.place import Place
from aimfuse.coordinator.request import Range, Request, write_request
from aimfuse.coordinator.source import NotServed
from aimfuse.errors import Unavailable
from aimfuse.units import MIB, format_bytes

log = logging.getLogger(__name__)

WHY = "it differs from the image"
REWRITTEN_BYTES_MAX = 256 * MIB
ANSWER_S_MAX = 60.0
RETRY_S = 30.0
"""Pause behind a try that failed: the image is not mounted, or its volume has another name."""

AGAIN_S_MIN = 60.0
AGAIN_S_MAX = 86400.0
"""Pauses where mending is of no use, as on a disk that does not keep what it gets: they double."""


class Repairs:
    """The repairs of one destination; owned by its task."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._through = 0
        """The file that brings what was mended last: only behind it the mirror can tell."""
        self._not_before_s = 0.0
        self._pause_s = 0.0

    async def look(self) -> None:
        """Mend what the newest ack names, unless that is under way.

        Raises:
            OSError: a copy cannot be asked for.
        """
        place, ack = self._place, self._place.ack
        if ack is None or not place.parts.config.journal.scrub_repair:
            return
        if not ack.mismatches:
            if ack.phase == "consistent":
                self._pause_s = 0.0
            return
        is_busy = not place.is_shipping or place.is_copy_wanted()
        if ack.phase != "consistent" or is_busy or ack.applied_number < self._through:
            return
        if trio.current_time() < self._not_before_s:
            return
        size = sum(one.length for one in ack.mismatches)
        if size > REWRITTEN_BYTES_MAX:
            ranges = tuple(Range(one.volume, one.offset, one.length) for one in ack.mismatches)
            request = Request(is_whole=False, ranges=ranges, why=WHY)
            write_request(place.parts.disk, place.directory, request)
        elif not await self._rewrite(ack):
            return
        self._not_before_s = trio.current_time() + self._pause_s
        self._pause_s = min(max(AGAIN_S_MIN, 2 * self._pause_s), AGAIN_S_MAX)
        said = format_bytes(size)
        log.warning("%s differs from the image: it gets %s again", place.config.name, said)

    async def _rewrite(self, ack: Ack) -> bool:
        """Have the driver write it again; tell whether there is one that could."""
        ask = self._place.parts.source.ask
        try:
            for one in ack.mismatches:
                await ask(
                    "verify", ANSWER_S_MAX, rewrite=True, volume=one.volume, offset=one.offset,
                    end=one.offset + one.length,
                )  # fmt: skip
            answer = await ask("roll", ANSWER_S_MAX)
        except (NotServed, Unavailable) as exc:
            log.debug("%s: not mended: %s", self._place.config.name, exc)
            self._not_before_s = trio.current_time() + RETRY_S
            return False
        self._through = int(answer.get("number", 0))
        return True
