"""What an operator asked for with `aimfuse sync`: a file beside the cursor, until it is begun.

``request.json``: `whole` (true or false), `ranges` ([volume name, offset, length] each), `why`.
Written by the command, whole; removed by the coordinator once the cursor speaks of the copy.
"""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aimfuse.coordinator.cursor import SyncVolume
from aimfuse.disk import Disk, publish, read_file
from aimfuse.journal.dirty import Extent
from aimfuse.units import MIB

REQUEST = "request.json"
_BYTES_MAX = 1 * MIB


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of a volume, which goes by its present name; in bytes."""

    volume: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Request:
    """A copy that was asked for: of all, or of some ranges and of what the mirror lacks."""

    is_whole: bool
    ranges: tuple[Range, ...] = ()
    why: str = "asked for"

    def extents(self, volumes: Iterable[SyncVolume]) -> list[Extent]:
        """Return the ranges by volume ids; those of unknown volumes are left out."""
        ids = {one.entry.name: int(one.entry.volume) for one in volumes}
        return [
            Extent(ids[one.volume], one.offset, one.length)
            for one in self.ranges
            if one.volume in ids
        ]


def write_request(disk: Disk, directory: Path, request: Request) -> None:
    """Leave *request* for the coordinator of the destination in *directory*, durably."""
    content = {
        "whole": request.is_whole,
        "ranges": [[one.volume, one.offset, one.length] for one in request.ranges],
        "why": request.why,
    }
    publish(disk, "request", directory / REQUEST, json.dumps(content).encode())


def read_request(disk: Disk, directory: Path) -> Request | None:
    """Return what was asked for; what cannot be read was not asked for."""
    try:
        content = json.loads(read_file(disk, directory / REQUEST, _BYTES_MAX))
        ranges = tuple(
            Range(str(name), int(offset), int(length)) for name, offset, length in content["ranges"]
        )
        return Request(bool(content["whole"]), ranges, str(content["why"])[:200])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_request(disk: Disk, directory: Path) -> None:
    """Remove the request: the cursor speaks of the copy by now."""
    with contextlib.suppress(FileNotFoundError):
        disk.unlink("request:unlink", directory / REQUEST)
