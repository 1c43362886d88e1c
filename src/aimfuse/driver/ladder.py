"""What to do when the spool grows: marks with hysteresis, and whose unsent files are folded.

No side effects. Files that a destination with another policy keeps would stay anyway, so
nobody is folded for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aimfuse.journal.spool import WARN_RATIO
from aimfuse.units import FileNumber, format_bytes

FOLD = "fold"
FAIL = "fail"
CALM_RATIO = 0.6
_LOW_RATIO = 0.8


@dataclass(frozen=True, slots=True)
class Account:
    """What one destination needs: everything behind `pin`, but for what is folded already."""

    directory: Path
    pin: FileNumber
    folded: FileNumber = FileNumber(0)
    state: str = "shipping"

    @property
    def needs_behind(self) -> FileNumber:
        """Return the file above which all must stay."""
        return max(self.pin, self.folded)


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do when the spool, or a destination's share of it in bytes, is full.

    A clean end waits a little for those that are `awaited`.
    """

    when_full: str
    share_bytes: int | None = None
    is_awaited: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """The spool's sealed files with their bytes, and how many bytes of them should go."""

    sizes: tuple[tuple[FileNumber, int], ...] = ()
    excess_bytes: int = 0
    is_disk_short: bool = False

    def behind(self, number: int) -> int:
        """Return the bytes of the files behind *number*."""
        return sum(size for one, size in self.sizes if one > number)


PolicyOf = Callable[[Account], Policy]


def excess(spool_bytes: int, mark: int) -> int:
    """Return how much should go of a spool that is full, 0 if it is not: well below the mark."""
    return spool_bytes - int(mark * _LOW_RATIO) if spool_bytes >= mark else 0


def level(ratio: float, before: str, *, is_full: bool) -> str:
    """Return ``fine``, ``warn`` or ``full``; what was raised falls back later than it rose."""
    if is_full:
        return "full"
    calm = CALM_RATIO if before != "fine" else WARN_RATIO
    return "warn" if ratio >= calm else "fine"


def folds(
    accounts: Sequence[Account], policy_of: PolicyOf, load: Load, through_max: int
) -> list[tuple[Account, FileNumber]]:
    """Return whose files are to be folded, and through which one, at most *through_max*."""
    wanted: dict[Path, int] = {}
    foldable = [one for one in accounts if policy_of(one).when_full == FOLD]
    if load.excess_bytes > 0:
        keep = (one.needs_behind for one in accounts if policy_of(one).when_full != FOLD)
        through = min([_through(load, 0, load.excess_bytes), *keep])
        for one in foldable:
            wanted[one.directory] = through
    for one in foldable:
        share = policy_of(one).share_bytes
        over = load.behind(one.needs_behind) - share if share is not None else 0
        if share is not None and over > 0:
            spare = share - int(share * _LOW_RATIO)
            through = _through(load, one.needs_behind, over + spare)
            wanted[one.directory] = max(through, wanted.get(one.directory, 0))
    found = []
    for one in foldable:
        through = min(wanted.get(one.directory, 0), through_max)
        if through > one.needs_behind:
            found.append((one, FileNumber(through)))
    return found


def why_share_full(accounts: Sequence[Account], policy_of: PolicyOf, load: Load) -> str | None:
    """Return which destination's share is used up that is not folded, None if none is."""
    for one in accounts:
        policy = policy_of(one)
        if policy.share_bytes is None or policy.when_full == FOLD:
            continue
        if (held := load.behind(one.needs_behind)) >= policy.share_bytes:
            kept = format_bytes(held)
            return f"{kept} are kept for {one.directory.name}, its share of the spool"
    return None


def policy_of_lowest(accounts: Sequence[Account], policy_of: PolicyOf) -> str | None:
    """Return the policy of the destination that keeps the oldest file, None without any."""
    lowest = min(accounts, key=lambda one: one.needs_behind, default=None)
    return policy_of(lowest).when_full if lowest else None


def _through(load: Load, after: int, excess_bytes: int) -> int:
    """Return the last of the files behind *after* that hold so many bytes together."""
    through = after
    for number, size in load.sizes:
        if number <= after:
            continue
        if excess_bytes <= 0:
            break
        through = number
        excess_bytes -= size
    return through
