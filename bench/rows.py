"""What is measured, against what, and what the figures must reach. Pure arithmetic and tables."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

OURS = "aimfuse"
BARE = "bare pass-through"
QEMU = "qemu mirror"
SCP = "scp"
ONE = "one destination"
QUIET = "without the scrub"
FORGETFUL = "without history"
CP = "cp"
RESTORE = "restore"

Samples = Mapping[tuple[str, str], Sequence[float]]
"""What was measured, by (work, contestant), one figure per round."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    With a yardstick, *bar* is the least ratio to it; without, it is the most that the value
    may be.
    """

    id: str
    work: str
    """Names what is measured; rows with the same work share the measurements of ours."""
    title: str
    unit: str
    bar: float
    yardstick: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A row with its figures: medians over the rounds."""

    row: Row
    value: float
    against: float | None

    @property
    def ratio(self) -> float | None:
        """Return our figure divided by the yardstick's; None without a yardstick."""
        if self.against is None:
            return None
        return self.value / self.against if self.against else float("inf")

    @property
    def holds(self) -> bool:
        """Tell whether the figures reach the bar."""
        return self.value <= self.row.bar if self.ratio is None else self.ratio >= self.row.bar


_RANDOM = "4 KiB random writes, in memory"
_SEQUENTIAL = "1 MiB sequential writes, in memory"
_FSYNC = "4 KiB random write + fsync, on disk"
_QUEUE = "100,000 files queued"
_RSS = "memory, 10,000 files queued"

ROWS = (
    Row("random-bare", "random", _RANDOM, "IOPS", 0.7, BARE),
    Row("sequential-bare", "sequential", _SEQUENTIAL, "MB/s", 0.6, BARE),
    Row("fsync-bare", "fsync", _FSYNC, "IOPS", 0.9, BARE),
    Row("random-qemu", "random", _RANDOM, "IOPS", 2.0, QEMU),
    Row("sequential-qemu", "sequential", _SEQUENTIAL, "MB/s", 1.3, QEMU),
    Row("fsync-qemu", "fsync", _FSYNC, "IOPS", 1.0, QEMU),
    Row("lag", "lag", "lag at a steady 5 MB/s, p99", "s", 2.0),
    Row("backlog", "backlog", "shipping a backlog of 1 GiB", "MB/s", 0.8, SCP),
    Row("fan-out", "fan-out", f"{_RANDOM}, 3 destinations, 1 dead", "IOPS", 0.9, ONE),
    Row("scrub", "scrub", f"{_RANDOM}, beside a scrub", "IOPS", 0.97, QUIET),
    Row("copy-first", "copy-first", "first copy, 4 GiB half holes, under load", "MB/s", 0.6, SCP),
    Row("copy-fold", "copy-fold", "copied after a fold, of what the map names", "x", 1.15),
    Row("cap", "cap", "a cap of 1 and 20 MiB/s: ten seconds at worst", "% off", 5.0),
    Row("map-memory", "map-memory", "dirty map of 1 TiB at random, memory", "MB", 64.0),
    Row("map-file", "map-file", "dirty map of 1 TiB at random, file", "MB", 64.0),
    Row("queue-start", "queue-start", f"{_QUEUE}: start of the coordinator", "s", 3.0),
    Row("queue-status", "queue-status", f"{_QUEUE}: status", "s", 0.5),
    Row("view", "view", "view after 1,000,000 records: to the first byte", "s", 1.0),
    Row("history", "history", "replaying 1 GiB of 4 KiB writes, in memory", "MB/s", 0.5, FORGETFUL),
    Row("restore", "restore", "4 GiB restored, 1 GiB of history back", "MB/s", 0.5, CP),
    Row("rewind", "rewind", "going back in place over 1 GiB of history", "MB/s", 2.0, RESTORE),
    Row("promote", "promote", "promote with 1 GiB unapplied, beyond applying it", "s", 2.0),
    Row("rss-driver", "rss-driver", f"{_RSS}: driver", "MB", 150.0),
    Row("rss-coordinator", "rss-coordinator", f"{_RSS}: coordinator", "MB", 150.0),
    Row("rss-replayer", "rss-replayer", f"{_RSS}: replayer", "MB", 150.0),
    Row("rss-copy", "rss-copy", "memory, first copy: coordinator", "MB", 150.0),
    Row("rss-serve", "rss-serve", f"{_RSS}: serve", "MB", 150.0),
)


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that *percent* % of all values do not exceed.

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    rank = -(-len(ordered) * percent // 100)  # Rounded up.
    return ordered[max(0, int(rank) - 1)]


def results(rows: Iterable[Row], samples: Samples) -> list[Result]:
    """Return the rows for which everything was measured."""
    found = []
    for row in rows:
        ours = samples.get((row.work, OURS))
        theirs = samples.get((row.work, row.yardstick)) if row.yardstick else None
        if not ours or (row.yardstick and not theirs):
            continue
        against = statistics.median(theirs) if theirs else None
        found.append(Result(row, statistics.median(ours), against))
    return found


def to_json(found: Iterable[Result]) -> str:
    """Return the content of ``latest.json``."""
    content: list[dict[str, Any]] = [
        {
            "id": one.row.id,
            "value": round(one.value, 3),
            "unit": one.row.unit,
            "against": None if one.against is None else round(one.against, 3),
            "ratio": None if one.ratio is None else round(one.ratio, 3),
            "bar": one.row.bar,
            "holds": one.holds,
        }
        for one in found
    ]
    return json.dumps(content, indent=2) + "\n"


def to_table(rows: Iterable[Row], found: Iterable[Result]) -> Table:
    """Return the table; rows that could not be measured say so."""
    by_id = {one.row.id: one for one in found}
    table = Table(title="aimfuse, mirroring to a store on loopback", title_justify="left")
    for heading in ("id", "work"):
        table.add_column(heading)
    for heading in (OURS, "against", "ratio", "bar", "holds"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.id, row.title, *_cells(row, by_id.get(row.id)))
    return table


def _cells(row: Row, result: Result | None) -> tuple[str | Text, ...]:
    bar = f">= {row.bar:g} x" if row.yardstick else f"<= {row.bar:g} {row.unit}"
    if result is None:
        return "", row.yardstick or "", "", bar, Text("not measured", style="yellow")
    holds = Text("yes", style="green") if result.holds else Text("no", style="bold red")
    against = ""
    if result.against is not None:
        against = f"{row.yardstick}  {number(result.against)}"
    ratio = "" if result.ratio is None else f"{result.ratio:.2f} x"
    return f"{number(result.value)} {row.unit}", against, ratio, bar, holds


def number(value: float) -> str:
    """Return *value* with as many digits as it deserves."""
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
