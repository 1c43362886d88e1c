"""A group on its source host as a screen shows it, read from its status dictionary."""

from collections.abc import Sequence
from dataclasses import dataclass

from aimfuse.manager.destination_facts import Destination, read_destination
from aimfuse.manager.fields import Fields
from aimfuse.manager.model import (
    Amount,
    Level,
    Problem,
    Volume,
    level_of,
    read_amount,
    read_volumes,
)
from aimfuse.manager.verified import Scrub, scrub_of, unreadable


@dataclass(frozen=True, slots=True)
class Source:
    """A group on its source host; sizes in bytes."""

    image: str
    mountpoint: str
    mounted: bool
    state: str
    level: Level
    epoch: int
    accepted_seq: int
    durable_seq: int
    applied_seq: int
    spool: Amount
    spool_bytes_max: int | None
    spool_free_bytes: int | None
    spool_level: str
    volumes: tuple[Volume, ...]
    scrub: Scrub | None
    promoted_ns: int
    destinations: tuple[Destination, ...]
    problems: tuple[Problem, ...]


_ENDED = {"superseded", "switching", "rejoining", "rejoined"}

_HINTS = {
    "halted": "Unmount, look at the disk and the log, then mount again: recovery redoes the "
    "journal.",
    "spool-full": "Make room on the spool's disk, or bring a destination back.",
    "silent": "See what the driver's process waits for; its log says more.",
    "damaged": "Correct the file that is named, or put it back from a copy.",
    "unclean": "Mount it: nothing else may use the image before that.",
    "superseded": "Make it a mirror of the new source: aimfuse rejoin IMAGE URL.",
    "switching": "Run `aimfuse switchover` again: it goes on.",
    "rejoining": "Run `aimfuse rejoin` again: it goes on.",
    "diverging": "What is written here goes nowhere. Unmount it and run aimfuse rejoin IMAGE URL "
    "once it is to be a mirror of the new source.",
}


def read_source(status: Fields, now_ns: int) -> Source:
    """Return the source that *status* tells of, as of *now_ns* in Unix ns; never raises."""
    state = status.text("state") or "unknown"
    level = level_of(state)
    spool = status.part("spool")
    is_served = status.flag("mounted") or _has_shipper(status)
    # What an ended history has not shipped is not to be shipped any more.
    idle = "" if is_served or state in _ENDED else status.text("image") or "IMAGE"
    destinations = tuple(
        read_destination(one, now_ns, idle) for one in status.parts("destinations")
    )
    return Source(
        image=status.text("image") or "?",
        mountpoint=status.text("mountpoint"),
        mounted=status.flag("mounted"),
        state=state,
        level=level,
        epoch=status.count("epoch"),
        accepted_seq=status.count("accepted_seq"),
        durable_seq=status.count("durable_seq"),
        applied_seq=status.count("applied_seq"),
        spool=read_amount(spool),
        spool_bytes_max=spool.maybe("bytes_max"),
        spool_free_bytes=spool.maybe("free_bytes"),
        spool_level=spool.text("level"),
        volumes=read_volumes(status),
        scrub=scrub_of(status),
        promoted_ns=status.part("promoted").count("at_ns"),
        destinations=destinations,
        problems=tuple(_source_problems(status, state, level, destinations)),
    )


def _has_shipper(status: Fields) -> bool:
    return status.part("coordinator").count("pid") > 0


def _source_problems(
    status: Fields, state: str, level: Level, destinations: Sequence[Destination]
) -> list[Problem]:
    found = []
    reason = status.text("reason")
    if reason or level >= Level.BAD:
        hint = _HINTS.get(state, "")
        is_quiet = not reason or state == "rejoined"  # It says where the mirror is.
        found.append(Problem(reason or state, hint, level if is_quiet else max(level, Level.WARN)))
    if text := unreadable(status):
        hint = "Look at its disk. What cannot be read may still be right in a mirror."
        found.append(Problem(text, hint))
    if problem := status.text("settings_error"):
        hint = "Correct it: until then the settings before stay in force."
        found.append(Problem(problem, hint, Level.WARN))
    if destinations and status.flag("mounted") and not _has_shipper(status):
        found.append(Problem("nothing is shipped: the coordinator is not running", "", Level.WARN))
    return found
