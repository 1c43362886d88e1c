"""Who reads a store's past from afar, as its report says: who, since when, and what that keeps.

In ``ack.json`` each is an object: `who` he says that he is, `owner`, the user id that his file has
here, `since_ns` and `heard_ns` by this host's clock, `first` and `last`, the numbers of the
files that are kept for him, and their `bytes`.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path

from aimfuse.disk import Disk, read_file
from aimfuse.replay.ack import ACK_BYTES_MAX
from aimfuse.replay.kept import KeptSet
from aimfuse.replay.readers import Known
from aimfuse.replay.state import Json
from aimfuse.replay.store import ACK
from aimfuse.units import SECOND_NS, natural

SHOWN_MAX = 16
COUNT_EVERY_NS = 5 * SECOND_NS
"""Time between two counts of what one reader keeps: it goes over a long history."""

_NUMBERS = ("owner", "since_ns", "heard_ns", "first", "last", "bytes")


class Audience:
    """What the report of one open store says of who reads it."""

    def __init__(self, clock: Callable[[], int]) -> None:
        """*clock* gives Unix ns."""
        self._clock = clock
        self._counted: dict[int, tuple[int, int]] = {}

    def report(self, known: Iterable[Known], sets: deque[KeptSet], head: int) -> list[Json]:
        """Return what is to be said of those *known*, of whom some are enough."""
        if not sets:
            return []
        said: list[Json] = []
        counted: dict[int, tuple[int, int]] = {}
        for one, _ in zip(known, range(SHOWN_MAX), strict=False):
            counted[one.behind] = self._count(one.behind, sets)
            said.append(
                {
                    "who": one.who or None,
                    "owner": one.owner,
                    "since_ns": one.since_ns,
                    "heard_ns": one.heard_ns,
                    "first": max(one.behind + 1, int(sets[0].name.number)),
                    "last": head,
                    "bytes": counted[one.behind][1],
                }
            )
        self._counted = counted
        return said

    def _count(self, behind: int, sets: deque[KeptSet]) -> tuple[int, int]:
        """Return when the bytes behind file *behind* were counted, and how many they are."""
        now_ns = self._clock()
        known = self._counted.get(behind)
        if known is not None and 0 <= now_ns - known[0] < COUNT_EVERY_NS:
            return known
        kept = takewhile(lambda one: one.name.number > behind, reversed(sets))
        return now_ns, sum(one.size_bytes for one in kept)


def read_audience(disk: Disk, store: Path) -> list[Json]:
    """Return what a store's report says, none where there is no such thing.

    Raises:
        OSError: it could not be read.
    """
    try:
        ack = json.loads(read_file(disk, store / ACK, ACK_BYTES_MAX))
        return [_checked(one) for one in ack["readers"][:SHOWN_MAX]]
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _checked(said: Json) -> Json:
    """Return what is said of one; errors as for `natural`."""
    who = said["who"]
    text = "".join(one if one.isprintable() else "?" for one in str(who)) if who else None
    return {"who": text, **{key: natural(said[key]) for key in _NUMBERS}}
