"""Ask for a copy of what a mirror says differs, where the settings say to do so unasked."""

import logging

from aimfuse.coordinator.place import Place
from aimfuse.coordinator.request import Range, Request, write_request
from aimfuse.units import format_bytes

log = logging.getLogger(__name__)

WHY = "it differs from the image"


def repair(place: Place) -> None:
    """Leave a request, as `aimfuse sync` does, unless there is one or a copy under way.

    Once the copy is in, the store's ack names these ranges no more.

    Raises:
        OSError: the request cannot be written; nothing was asked for.
    """
    ack = place.ack
    if ack is None or not ack.mismatches or not place.parts.config.journal.scrub_repair:
        return
    if ack.phase != "consistent" or not place.is_shipping or place.is_copy_wanted():
        return
    ranges = tuple(Range(one.volume, one.offset, one.length) for one in ack.mismatches)
    write_request(
        place.parts.disk, place.directory, Request(is_whole=False, ranges=ranges, why=WHY)
    )
    size = format_bytes(sum(one.length for one in ranges))
    log.warning("%s differs from the image: %s are copied to it", place.config.name, size)
