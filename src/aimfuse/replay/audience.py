"""Who reads a store's past from afar, as its report says: who, since when, and what that keeps.

In ``ack.json`` each is an object: `who` he says that he is, `owner`, the user id that his file has
here, `since_ns` and `heard_ns` by this host's clock, `first` and `last`, the numbers of the
files that are kept for him, and their `bytes`.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from aimfuse.disk import Disk, read_file
from aimfuse.replay.ack import ACK_BYTES_MAX
from aimfuse.replay.kept import KeptSet
from aimfuse.replay.readers import WHO_CHARACTERS_MAX, Known
from aimfuse.replay.state import Json
from aimfuse.replay.store import ACK
from aimfuse.units import SECOND_NS, natural

SHOWN_MAX = 16
COUNT_EVERY_NS = 5 * SECOND_NS
"""Time between two counts of what is kept for readers: they go over a long history, all at once."""

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
        shown = list(islice(known, SHOWN_MAX))
        self._counted = self._count({one.behind for one in shown}, sets)
        return [
            {
                "who": one.who or None,
                "owner": one.owner,
                "since_ns": one.since_ns,
                "heard_ns": one.heard_ns,
                "first": max(min(one.behind, head) + 1, int(sets[0].name.number)),
                "last": head,
                "bytes": self._counted[one.behind][1],
            }
            for one in shown
        ]

    def _count(self, behinds: set[int], sets: deque[KeptSet]) -> dict[int, tuple[int, int]]:
        """Return for each file when the bytes behind it were counted, and how many they are."""
        now_ns, held = self._clock(), 0
        counted = {
            behind: known
            for behind, known in self._counted.items()
            if behind in behinds and 0 <= now_ns - known[0] < COUNT_EVERY_NS
        }
        wanted = sorted(behinds - counted.keys())
        for one in reversed(sets):
            while wanted and one.name.number <= wanted[-1]:
                counted[wanted.pop()] = now_ns, held
            if not wanted:
                break
            held += one.size_bytes
        return counted | dict.fromkeys(wanted, (now_ns, held))


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
    shown = str(who or "")[:WHO_CHARACTERS_MAX]
    text = "".join(one if one.isprintable() else "?" for one in shown) or None
    return {"who": text, **{key: natural(said[key]) for key in _NUMBERS}}
