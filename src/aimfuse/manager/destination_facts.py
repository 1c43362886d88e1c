"""A destination as the source sees it, read from its status dictionary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aimfuse.manager.fields import Fields
from aimfuse.manager.files import STALE_S
from aimfuse.manager.held import Held, read_held
from aimfuse.manager.model import (
    Amount,
    Lag,
    Level,
    Problem,
    Sync,
    level_of,
    read_amount,
    read_lag,
    read_sync,
)
from aimfuse.manager.verified import differing
from aimfuse.units import SECOND_NS

_HINTS = {
    "refused": "Nothing is tried again before somebody acts; the message says what is wrong.",
    "halted": "Its history does not fit this source's: find out which is right before going on.",
    "stopped": "Mount the image, or run `aimfuse ship`.",
    "paused": "Run `aimfuse destination resume IMAGE NAME`.",
}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way: *sent* of *bytes* have left."""

    name: str
    bytes: int
    sent: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a spool is full, or drained, if all goes on as it does; None where nobody can say."""

    full_in_s: float | None = None
    drained_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """One destination of a source as the source sees it; rates in bytes per second."""

    name: str
    url: str
    state: str
    level: Level
    queued: Amount
    in_flight: tuple[Upload, ...]
    received: Amount
    received_number: int
    pinned: Amount
    folded_bytes: int
    forecast: Forecast
    opens: str
    store_free_bytes: int | None
    applied_number: int
    applied_seq: int
    lag: Lag
    rate_bytes_s: float
    sent_bytes: int
    sync: Sync | None
    mirror_time_ns: int | None
    held: Held
    problems: tuple[Problem, ...]


def read_destination(status: Fields, now_ns: int, idle: str) -> Destination:
    """Return one destination; *idle* is the image's name if nobody ships for it, else empty."""
    state = status.text("state") or "new"
    sync, lag, applied = status.part("sync"), status.part("lag"), status.part("applied")
    ack = status.part("ack")
    problems = list(_destination_problems(status, state, ack, now_ns, idle))
    level = max([level_of(state), *(one.level for one in problems)])
    return Destination(
        name=status.text("name") or "?",
        url=status.text("url"),
        state=state,
        level=level,
        queued=read_amount(status.part("queued")),
        in_flight=tuple(
            Upload(one.text("name"), one.count("bytes"), one.count("sent"))
            for one in status.parts("in_flight")
        ),
        received=read_amount(status.part("received_not_applied")),
        received_number=status.part("received").count("number"),
        pinned=read_amount(status.part("pinned")),
        folded_bytes=0 if sync else status.part("folded").count("dirty_bytes"),
        forecast=_forecast(status.part("forecast")),
        opens=status.text("opens"),
        store_free_bytes=ack.maybe("free_bytes"),
        applied_number=applied.count("number"),
        applied_seq=applied.count("seq"),
        lag=read_lag(lag),
        rate_bytes_s=status.seconds("rate_bytes_s") or 0.0,
        sent_bytes=status.count("sent_bytes"),
        sync=read_sync(sync),
        mirror_time_ns=ack.maybe("mirror_time_ns"),
        held=read_held(ack),
        problems=tuple(problems),
    )


def _destination_problems(
    status: Fields, state: str, ack: Fields, now_ns: int, idle: str
) -> list[Problem]:
    level = level_of(state)
    found = []
    error = status.text("error")
    if error or level >= Level.BAD:
        hint = status.text("hint") or _HINTS.get(state, "")
        wait_s = status.seconds("retry_in_s")
        if state == "retrying" and wait_s is not None:
            hint = f"Next try in {wait_s:.0f} s."
        where = f"{status.text('url')}: "  # The line above says it.
        found.append(Problem(error.removeprefix(where) or state, hint, max(level, Level.WARN)))
    if status.flag("stuck"):
        found.append(Problem("work is pending and nothing moves", "", Level.BAD))
    updated_ns = status.maybe("updated_ns")
    # A time to come is as old as one that is past: a clock was set back.
    age_s = abs(now_ns - updated_ns) / SECOND_NS if updated_ns else 0.0
    if idle and (age_s > STALE_S or state == "stopped"):
        text = f"not shipping (unmounted): run `aimfuse ship {idle}`"
        found.append(Problem(text, "", Level.WARN))
    elif age_s > STALE_S and state not in {"stopped", "superseded"}:
        found.append(Problem(f"no news from the shipper for {age_s:.0f} s", "", Level.WARN))
    return found + _ack_problems(ack)


def _ack_problems(ack: Fields) -> list[Problem]:
    """Return what a store says is wrong there."""
    found = []
    if text := ack.text("error"):
        found.append(Problem(f"the store says: {text}", "", Level.BAD))
    if text := differing(ack):
        hint = "Find out which is right; `aimfuse verify IMAGE --repair` takes the image for it."
        found.append(Problem(text, hint))
    for key, what in (("missing", "waits for missing files"), ("damaged", "got damaged files")):
        if names := ack.items(key):
            found.append(Problem(f"the store {what}: {_listed(names)}", "", Level.WARN))
    if quarantined := ack.count("quarantined"):
        found.append(Problem(f"files that the store set aside: {quarantined}", "", Level.WARN))
    if text := ack.part("on_bookmark").text("problem"):
        found.append(Problem(f"the store says: {text}", "", Level.WARN))
    return found


def _listed(names: Sequence[Any]) -> str:
    few = ", ".join(str(name)[:64] for name in names[:3])
    return f"{few} and {len(names) - 3} more" if len(names) > 3 else few  # noqa: PLR2004


def _forecast(part: Fields) -> Forecast:
    return Forecast(part.seconds("full_in_s"), part.seconds("drained_in_s"))
