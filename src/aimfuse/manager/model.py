"""What sources and stores have in common on a screen: levels, amounts, copies, lag, problems."""

from dataclasses import dataclass
from enum import IntEnum

from aimfuse.manager.fields import Fields


class Level(IntEnum):
    """How much a state wants to be looked at."""

    IDLE = 0
    FINE = 1
    BUSY = 2
    WARN = 3
    BAD = 4


_LEVELS = {
    "active": Level.FINE, "idle": Level.FINE, "shipping": Level.FINE, "consistent": Level.FINE,
    "syncing": Level.BUSY, "catching_up": Level.BUSY, "switching": Level.BUSY,
    "rewinding": Level.BUSY, "promoting": Level.BUSY,
    "connecting": Level.BUSY, "busy": Level.BUSY,
    "new": Level.IDLE, "empty": Level.IDLE, "unmounted": Level.IDLE,
    "stopped": Level.WARN, "paused": Level.IDLE, "waiting": Level.IDLE, "removed": Level.WARN,
    "delayed": Level.FINE, "held": Level.IDLE,
    "retrying": Level.WARN, "unclean": Level.WARN,
    "spool-full": Level.BAD, "refused": Level.BAD, "halted": Level.BAD, "damaged": Level.BAD,
    "silent": Level.BAD, "superseded": Level.BAD, "diverging": Level.BAD,
    "reserved": Level.IDLE, "promoted": Level.FINE, "rejoining": Level.WARN,
    "rejoined": Level.IDLE,
}  # fmt: skip


def level_of(state: str) -> Level:
    """Return how much *state* wants to be looked at; one that is not known, a little."""
    return _LEVELS.get(state, Level.WARN)


@dataclass(frozen=True, slots=True)
class Amount:
    """So many files with so many bytes in them."""

    files: int = 0
    bytes: int = 0


def read_amount(part: Fields) -> Amount:
    """Return the files and bytes that *part* counts."""
    return Amount(part.count("files"), part.count("bytes"))


@dataclass(frozen=True, slots=True)
class Sync:
    """A first copy or a resync under way; None where only the other end knows."""

    files: int
    done_bytes: int
    total_bytes: int | None
    eta_s: float | None
    step: str = ""
    why: str = ""
    journal_left_bytes: int = 0


def read_sync(part: Fields) -> Sync | None:
    """Return the copy that *part* tells of, None without one."""
    if not part:
        return None
    journal = part.part("journal")
    on_the_way = part.count("sent_bytes") if part.text("step") in {"", "copying"} else 0
    return Sync(
        part.count("next_index"),
        part.count("done_bytes") + on_the_way,
        part.maybe("total_bytes"),
        part.seconds("eta_s"),
        part.text("step"),
        part.text("why") or part.text("reason"),
        max(0, journal.count("total_bytes") - journal.count("done_bytes")),
    )


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a mirror is behind; None where only the other end knows."""

    seconds: float | None = None
    bytes: int | None = None
    files: int | None = None


def read_lag(part: Fields) -> Lag:
    """Return how far behind *part* says that a mirror is."""
    return Lag(part.seconds("seconds"), part.maybe("bytes"), part.maybe("files"))


@dataclass(frozen=True, slots=True)
class Problem:
    """Something an operator must see, and what to do about it."""

    text: str
    hint: str = ""
    level: Level = Level.BAD


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume and its size in bytes."""

    name: str
    size: int


def read_volumes(status: Fields) -> tuple[Volume, ...]:
    """Return the volumes that *status* lists."""
    return tuple(Volume(one.text("name"), one.count("size")) for one in status.parts("volumes"))
