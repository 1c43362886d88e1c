"""Whether a copy can ever end: what is written meanwhile has to cross the same link.

A copy that was overtaken by a full spool goes into another round. Where more is written than
the link carries, that may go on for ever, and nobody would see but by watching.
"""

from aimfuse.coordinator.cursor import SyncState
from aimfuse.coordinator.forecast import Trend
from aimfuse.errors import Unavailable
from aimfuse.units import format_bytes


class Race:
    """The writers against the link of one destination, as of the last minute or so."""

    def __init__(self) -> None:
        self._written = Trend()
        self._carried = Trend()

    def note(self, now: float, written_bytes: int, carried_bytes: int) -> None:
        """Note what was ever written and ever carried, at the monotonic time *now*."""
        self._written.note(now, written_bytes)
        self._carried.note(now, carried_bytes)

    def verdict(self, sync: SyncState | None) -> Unavailable | None:
        """Return why *sync* will not end if all goes on like this; None while it may."""
        written, carried = self._written.bytes_per_s, self._carried.bytes_per_s
        if sync is None or not sync.round or not carried or written <= carried:
            return None
        return Unavailable(
            f"the copy cannot catch up: writes {format_bytes(int(written))}/s, link "
            f"{format_bytes(int(carried))}/s, and the spool was too small {sync.round} "
            f"time{'s' * (sync.round > 1)}",
            hint="Give it more spool (spool_bytes_max, spool_share) or more of the link, or let "
            'writers wait for it until it is through: when_full = "block" in its table.',
        )
