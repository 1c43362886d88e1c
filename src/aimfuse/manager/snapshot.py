"""Both ends at one time, as a screen shows them: typed, complete, and free of surprises.

The status dictionaries come from files and sockets that other processes, also on other hosts,
have written. Here each value is taken for what it should be, or for its absence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aimfuse.manager.fields import Fields
from aimfuse.manager.model import Level
from aimfuse.manager.source_facts import Source, read_source
from aimfuse.manager.store_facts import Store, read_store


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Both ends as they were at one time, in Unix ns."""

    taken_ns: int
    sources: tuple[Source, ...] = ()
    stores: tuple[Store, ...] = ()

    @property
    def level(self) -> Level:
        """Return the worst level of anything in it."""
        levels = [source.level for source in self.sources]
        levels += [one.level for source in self.sources for one in source.destinations]
        levels += [store.level for store in self.stores]
        return max(levels, default=Level.IDLE)


def snapshot(sources: Sequence[Any], stores: Sequence[Any], taken_ns: int) -> Snapshot:
    """Return the snapshot of the status dictionaries; never raises on what they hold."""
    return Snapshot(
        taken_ns,
        tuple(read_source(Fields(status), taken_ns) for status in sources),
        tuple(read_store(Fields(status), taken_ns) for status in stores),
    )
