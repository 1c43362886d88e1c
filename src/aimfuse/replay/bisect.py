"""Find the last point of the past at which a check passes.

States that somebody had saved (behind a FLUSH or a bookmark) are tried first: between two of
them a database may be in the middle of something, which a check need not understand. Only
then, between the last good and the first bad of these, ends of files and single records are.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import OutOfReach, UsageError
from aimfuse.replay.hold import pinned, readable
from aimfuse.replay.look import Look
from aimfuse.replay.point import Wanted
from aimfuse.replay.state import Json
from aimfuse.replay.timeline import Spot, Timeline
from aimfuse.replay.trial import Trial, check_command

Check = Callable[[Spot], bool]
"""Tells whether the state at a spot is good."""


@dataclass(frozen=True, slots=True)
class Request:
    """Search for the last point at which *check* passes, between *good* and *bad*.

    *scratch* is a directory for what the check writes, None to have it read only.
    """

    store: Path
    check: str
    good: Wanted | None = None
    bad: Wanted | None = None
    volume: str | None = None
    scratch: Path | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """`good` is the last spot that is; `bad` the next one, None where all is good to the end."""

    good: Spot
    bad: Spot | None
    checks: int


class Search:
    """One search. Each spot is checked once at most."""

    def __init__(self, timeline: Timeline, check: Check) -> None:
        self._timeline = timeline
        self._check = check
        self._known: dict[Spot, bool] = {}

    def run(self, good: Spot | None, bad: Spot | None) -> Found:
        """Search between *good* and *bad*, by default all that is in reach.

        Raises:
            OutOfReach: at the first of them it is bad already.
            UsageError: they are in the wrong order, or what should be bad is good.
        """
        line = self._timeline
        first, last = good or line.oldest, bad or line.newest
        if last < first:
            raise UsageError(f"{last.position} is in front of {first.position}",
                             hint="--good is the earlier point, --bad the later one.")  # fmt: skip
        if self.is_good(last):
            if bad is not None:
                raise UsageError(f"the check passes at {last.position}, which should be bad",
                                 hint="Leave --bad out, or name a later point.")  # fmt: skip
            return Found(last, None, len(self._known))
        if first == last or not self.is_good(first):
            raise OutOfReach(
                f"the check fails at {first.position} already",
                hint="What broke it is older: name an earlier --good, or a check that passed then.",
            )
        for level in (self._saved_in_files, self._saved, self._ends, self._records):
            first, last = level(first, last)
        return Found(first, last, len(self._known))

    def is_good(self, spot: Spot) -> bool:
        """Check one spot, unless that was done."""
        if spot not in self._known:
            self._known[spot] = self._check(spot)
        return self._known[spot]

    def _saved_in_files(self, good: Spot, bad: Spot) -> tuple[Spot, Spot]:
        """Narrow down by what was saved last in each file; some have nothing of that kind."""
        low, high = good.file, bad.file  # Files between them may have a spot to try.
        while high - low > 1:
            middle = (low + high) // 2
            spot = self._last_saved(range(middle, low, -1))
            if spot is not None and self.is_good(spot):
                good, low = spot, middle
            elif spot is not None:
                bad, high = spot, spot.file
            else:
                spot = self._last_saved(range(middle + 1, high))
                if spot is None:
                    break
                low = spot.file
                if self.is_good(spot):
                    good = spot
                else:
                    bad = spot
                    break
        return good, bad

    def _last_saved(self, files: Iterable[int]) -> Spot | None:
        """Return the spot that was saved last in the first of *files* that has one."""
        return next((spots[-1] for one in files if (spots := self._timeline.saved_in(one))), None)

    def _saved(self, good: Spot, bad: Spot) -> tuple[Spot, Spot]:
        """Narrow down by all that was saved: files between the two have nothing of that kind."""
        files = sorted({one.file for one in (good, bad) if one.file >= 0})
        return self._narrow(good, bad, [s for one in files for s in self._timeline.saved_in(one)])

    def _ends(self, good: Spot, bad: Spot) -> tuple[Spot, Spot]:
        """Narrow down to one file by the ends of files."""
        low, high = good.file - 1, bad.file
        while high - low > 1:
            middle = (low + high) // 2
            spot = self._timeline.end_of(middle)
            if spot is None or spot <= good:
                low = middle
            elif self.is_good(spot):
                good, low = spot, middle
            else:
                bad, high = spot, middle
        return good, bad

    def _records(self, good: Spot, bad: Spot) -> tuple[Spot, Spot]:
        """Narrow down to one record."""
        return self._narrow(good, bad, self._timeline.records_in(bad.file))

    def _narrow(self, good: Spot, bad: Spot, spots: Sequence[Spot]) -> tuple[Spot, Spot]:
        between = [one for one in spots if good < one < bad]
        while between:
            middle = len(between) // 2
            if self.is_good(between[middle]):
                good, between = between[middle], between[middle + 1 :]
            else:
                bad, between = between[middle], between[:middle]
        return good, bad


def find_last_good(disk: Disk, request: Request, report: Callable[[Json], None]) -> Json:
    """Search while the past is held; tell each check to *report*; return the end as JSON.

    Raises:
        OutOfReach: the check fails at the first point already, or a point is out of reach.
        UsageError: the check cannot be run, or the points are in the wrong order.
        AimfuseError: the check was ended by a signal, or a point could not be shown.
        OSError: a disk failed.
    """
    check_command(request.check)
    look = Look()
    with contextlib.ExitStack() as held:
        pin = held.enter_context(pinned(disk, request.store))
        past = readable(disk, request.store, look, held)
        line = Timeline(disk, past)
        if pin and past.reach:
            pin.move(past.reach.base)
        as_directory = request.volume is None and len(past.state.volumes) != 1
        trial = Trial(request.store, request.check, request.scratch, request.volume, as_directory)
        good, bad = (line.spot(one) if one else None for one in (request.good, request.bad))

        def check(spot: Spot) -> bool:
            is_good = trial.run(spot.position)
            report(line.describe(spot) | {"good": is_good})
            return is_good

        found = Search(line, check).run(good, bad)
        return {
            "store": str(request.store),
            "check": request.check,
            "good": line.describe(found.good),
            "bad": line.describe(found.bad) if found.bad else None,
            "checks": found.checks,
        }
