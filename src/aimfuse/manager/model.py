"""What a screen shows of a source or a store: typed, complete, and free of surprises.

The status dictionaries come from files and sockets that other processes, also on other hosts,
have written. Here each value is taken for what it should be, or for its absence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from aimfuse.manager.fields import Fields
from aimfuse.manager.held import Held, read_held
from aimfuse.manager.verified import Scrub, compared_ns, differing, scrub_of, unreadable
from aimfuse.units import SECOND_NS, format_seconds

STALE_S = 5.0
"""A destination's status that was not renewed for so long says how things were."""


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


@dataclass(frozen=True, slots=True)
class Amount:
    """So many files with so many bytes in them."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way: *sent* of *bytes* have left."""

    name: str
    bytes: int
    sent: int


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


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a mirror is behind; None where only the other end knows."""

    seconds: float | None = None
    bytes: int | None = None
    files: int | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a spool is full, or drained, if all goes on as it does; None where nobody can say."""

    full_in_s: float | None = None
    drained_in_s: float | None = None


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
    newest_number: int
    spool: Amount
    spool_bytes_max: int | None
    spool_free_bytes: int | None
    spool_level: str
    memory_bytes: int
    volumes: tuple[Volume, ...]
    shipper: str
    scrub: Scrub | None
    promoted_ns: int
    destinations: tuple[Destination, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """A store on the far side; sizes in bytes."""

    path: str
    state: str
    level: Level
    replayer_pid: int | None
    received_number: int | None
    applied_number: int
    applied_seq: int
    epoch: int
    arrived: Amount
    waiting: Amount
    missing: tuple[int, ...]
    damaged: tuple[str, ...]
    quarantined: int
    quarantine: tuple[tuple[str, str], ...]
    sync: Sync | None
    volumes: tuple[Volume, ...]
    mirror_time_ns: int | None
    lag: Lag
    source_time_ns: int | None
    source_state: str
    source_newest: int | None
    source_seq: int | None
    source_spool: Amount
    free_bytes: int | None
    held: Held
    compared_ns: int
    readers: tuple[int, ...]
    problems: tuple[Problem, ...]


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
        tuple(_source(Fields(status), taken_ns) for status in sources),
        tuple(_store(Fields(status), taken_ns) for status in stores),
    )


def _source(status: Fields, now_ns: int) -> Source:
    state = status.text("state") or "unknown"
    level = _LEVELS.get(state, Level.WARN)
    spool, shipper = status.part("spool"), status.part("coordinator")
    is_served = status.flag("mounted") or bool(shipper.count("pid"))
    # What an ended history has not shipped is not to be shipped any more.
    idle = "" if is_served or state in _ENDED else status.text("image") or "IMAGE"
    destinations = tuple(_destination(one, now_ns, idle) for one in status.parts("destinations"))
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
        newest_number=status.part("active").count("number"),
        spool=_amount(spool),
        spool_bytes_max=spool.maybe("bytes_max"),
        spool_free_bytes=spool.maybe("free_bytes"),
        spool_level=spool.text("level"),
        memory_bytes=status.count("memory_bytes"),
        volumes=_volumes(status),
        shipper=_shipper(shipper),
        scrub=scrub_of(status),
        promoted_ns=status.part("promoted").count("at_ns"),
        destinations=destinations,
        problems=tuple(_source_problems(status, state, level, destinations)),
    )


def _shipper_pid(status: Fields) -> int | None:
    return status.part("coordinator").maybe("pid") or None


def _shipper(shipper: Fields) -> str:
    if not shipper.count("pid"):
        return ""
    restarts = shipper.count("restarts")
    again = f", restarted {restarts} times" if restarts else ""
    return f"pid {shipper.count('pid')}{again}"


def _source_problems(
    status: Fields, state: str, level: Level, destinations: Sequence[Destination]
) -> list[Problem]:
    found = []
    reason = status.text("reason")
    if reason or level >= Level.BAD:
        hint = _SOURCE_HINTS.get(state, "")
        is_quiet = not reason or state == "rejoined"  # It says where the mirror is.
        found.append(Problem(reason or state, hint, level if is_quiet else max(level, Level.WARN)))
    if text := unreadable(status):
        hint = "Look at its disk. What cannot be read may still be right in a mirror."
        found.append(Problem(text, hint))
    if problem := status.text("settings_error"):
        hint = "Correct it: until then the settings before stay in force."
        found.append(Problem(problem, hint, Level.WARN))
    if destinations and status.flag("mounted") and _shipper_pid(status) is None:
        found.append(Problem("nothing is shipped: the coordinator is not running", "", Level.WARN))
    return found


_ENDED = {"superseded", "switching", "rejoining", "rejoined"}

_SOURCE_HINTS = {
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

_DESTINATION_HINTS = {
    "refused": "Nothing is tried again before somebody acts; the message says what is wrong.",
    "halted": "Its history does not fit this source's: find out which is right before going on.",
    "stopped": "Mount the image, or run `aimfuse ship`.",
    "paused": "Run `aimfuse destination resume IMAGE NAME`.",
}


def _destination(status: Fields, now_ns: int, idle: str) -> Destination:
    """Return one destination; *idle* is the image's name if nobody ships for it, else empty."""
    state = status.text("state") or "new"
    sync, lag, applied = status.part("sync"), status.part("lag"), status.part("applied")
    ack = status.part("ack")
    problems = list(_destination_problems(status, state, ack, now_ns, idle))
    level = max([_LEVELS.get(state, Level.WARN), *(one.level for one in problems)])
    return Destination(
        name=status.text("name") or "?",
        url=status.text("url"),
        state=state,
        level=level,
        queued=_amount(status.part("queued")),
        in_flight=tuple(
            Upload(one.text("name"), one.count("bytes"), one.count("sent"))
            for one in status.parts("in_flight")
        ),
        received=_amount(status.part("received_not_applied")),
        received_number=status.part("received").count("number"),
        pinned=_amount(status.part("pinned")),
        folded_bytes=0 if sync else status.part("folded").count("dirty_bytes"),
        forecast=_forecast(status.part("forecast")),
        opens=status.text("opens"),
        store_free_bytes=ack.maybe("free_bytes"),
        applied_number=applied.count("number"),
        applied_seq=applied.count("seq"),
        lag=Lag(lag.seconds("seconds"), lag.maybe("bytes"), lag.maybe("files")),
        rate_bytes_s=status.seconds("rate_bytes_s") or 0.0,
        sent_bytes=status.count("sent_bytes"),
        sync=_sync(sync),
        mirror_time_ns=ack.maybe("mirror_time_ns"),
        held=read_held(ack),
        problems=tuple(problems),
    )


def _destination_problems(
    status: Fields, state: str, ack: Fields, now_ns: int, idle: str
) -> list[Problem]:
    level = _LEVELS.get(state, Level.WARN)
    found = []
    error = status.text("error")
    if error or level >= Level.BAD:
        hint = status.text("hint") or _DESTINATION_HINTS.get(state, "")
        wait_s = status.seconds("retry_in_s")
        if state == "retrying" and wait_s is not None:
            hint = f"Next try in {wait_s:.0f} s."
        found.append(Problem(error or state, hint, max(level, Level.WARN)))
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


def _store(status: Fields, now_ns: int) -> Store:
    state = status.text("phase") or "empty"
    level = _LEVELS.get(state, Level.WARN)
    applied, lag = status.part("applied"), status.part("lag")
    quarantine = status.part("quarantine")
    source = status.part("source")
    if source.part("newest").count("epoch") < applied.count("epoch"):
        source = Fields(None)  # Said by one that was the source before this one.
    pid = status.part("replayer").maybe("pid")
    problems = list(_store_problems(status, level, pid, now_ns))
    received = status.part("received").maybe("number")
    return Store(
        path=status.text("store") or "?",
        state=state,
        level=max([level, *(one.level for one in problems)]),
        replayer_pid=pid,
        received_number=received,
        applied_number=applied.count("number"),
        applied_seq=applied.count("seq"),
        epoch=applied.count("epoch"),
        arrived=_amount(status.part("inbox")),
        waiting=_amount(status.part("work")),
        missing=tuple(int(one) for one in status.items("missing") if isinstance(one, int)),
        damaged=tuple(str(one) for one in status.items("damaged")),
        quarantined=quarantine.count("files"),
        quarantine=tuple(
            (one.text("name"), one.text("reason")) for one in quarantine.parts("shown")
        ),
        sync=_sync(status.part("sync")) if state == "syncing" or _is_staged(status) else None,
        volumes=_volumes(status),
        mirror_time_ns=status.maybe("mirror_time_ns"),
        lag=Lag(lag.seconds("seconds"), lag.maybe("bytes"), lag.maybe("files")),
        source_time_ns=source.maybe("time_ns"),
        source_state=source.text("state"),
        source_newest=source.part("newest").maybe("number"),
        source_seq=source.maybe("accepted_seq"),
        source_spool=_amount(source.part("spool")),
        free_bytes=status.maybe("free_bytes"),
        held=read_held(status),
        compared_ns=compared_ns(status),
        readers=tuple(one.count("pid") for one in status.parts("readers")),
        problems=tuple(problems),
    )


def _store_problems(status: Fields, level: Level, pid: int | None, now_ns: int) -> list[Problem]:
    found = []
    error = status.text("error") or status.text("reason")
    if error or level >= Level.BAD:
        found.append(Problem(error or "halted", "", max(level, Level.WARN)))
    if text := status.part("on_bookmark").text("problem"):
        found.append(Problem(text, "", Level.WARN))
    if text := differing(status):
        hint = "`aimfuse verify` at its source compares it again, and repairs it if told to."
        found.append(Problem(text, hint))
    if pid is None:
        hint = "Run `aimfuse replay` on the directory it lies in."
        found.append(Problem("no replayer is running", hint, Level.WARN))
    # By the clock of this host, if it tells: the source's may show anything.
    heard_ns = status.maybe("heard_ns") or status.part("source").maybe("time_ns")
    silent_s = max(0, now_ns - heard_ns) / SECOND_NS if heard_ns else 0.0
    if silent_s > SILENT_SOURCE_S:
        text = f"nothing heard from the source for {format_seconds(silent_s)}"
        found.append(Problem(text, "", Level.WARN))
    return found


SILENT_SOURCE_S = 120.0
"""A source that was not heard of for so long is away; what it writes meanwhile is unknown."""


def _listed(names: Sequence[Any]) -> str:
    few = ", ".join(str(name)[:64] for name in names[:3])
    return f"{few} and {len(names) - 3} more" if len(names) > 3 else few  # noqa: PLR2004


def _amount(part: Fields) -> Amount:
    return Amount(part.count("files"), part.count("bytes"))


def _forecast(part: Fields) -> Forecast:
    return Forecast(part.seconds("full_in_s"), part.seconds("drained_in_s"))


def _sync(part: Fields) -> Sync | None:
    if not part:
        return None
    journal = part.part("journal")
    return Sync(
        part.count("next_index"),
        part.count("done_bytes"),
        part.maybe("total_bytes"),
        part.seconds("eta_s"),
        part.text("step"),
        part.text("why") or part.text("reason"),
        max(0, journal.count("total_bytes") - journal.count("done_bytes")),
    )


def _is_staged(status: Fields) -> bool:
    """Tell whether a copy waits beside the mirror."""
    return status.part("sync").flag("staged")


def _volumes(status: Fields) -> tuple[Volume, ...]:
    return tuple(Volume(one.text("name"), one.count("size")) for one in status.parts("volumes"))
