"""A store on the far side as a screen shows it, read from its status dictionary."""

from dataclasses import dataclass

from aimfuse.manager.fields import Fields
from aimfuse.manager.held import Held, read_held
from aimfuse.manager.model import (
    Amount,
    Lag,
    Level,
    Problem,
    Sync,
    Volume,
    level_of,
    read_amount,
    read_lag,
    read_sync,
    read_volumes,
)
from aimfuse.manager.verified import compared_ns, differing
from aimfuse.units import MIB, SECOND_NS, format_seconds

SILENT_SOURCE_S = 120.0
"""A source that was not heard of for so long is away; what it writes meanwhile is unknown."""

FULL_BYTES = 1 * MIB
"""With less a store cannot even be relied on to report that its disk is full."""


@dataclass(frozen=True, slots=True)
class FarReader:
    """Who reads the past from another host, and the files that are kept for him."""

    who: str
    owner: int
    since_ns: int
    first: int
    last: int
    bytes: int


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
    far_readers: tuple[FarReader, ...]
    problems: tuple[Problem, ...]


def read_store(status: Fields, now_ns: int) -> Store:
    """Return the store that *status* tells of, as of *now_ns* in Unix ns; never raises."""
    state = status.text("phase") or "empty"
    level = level_of(state)
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
        arrived=read_amount(status.part("inbox")),
        waiting=read_amount(status.part("work")),
        missing=tuple(int(one) for one in status.items("missing") if isinstance(one, int)),
        damaged=tuple(str(one) for one in status.items("damaged")),
        quarantined=quarantine.count("files"),
        quarantine=tuple(
            (one.text("name"), one.text("reason")) for one in quarantine.parts("shown")
        ),
        sync=read_sync(status.part("sync")) if state == "syncing" or _is_staged(status) else None,
        volumes=read_volumes(status),
        mirror_time_ns=status.maybe("mirror_time_ns"),
        lag=read_lag(lag),
        source_time_ns=source.maybe("time_ns"),
        source_state=source.text("state"),
        source_newest=source.part("newest").maybe("number"),
        source_seq=source.maybe("accepted_seq"),
        source_spool=read_amount(source.part("spool")),
        free_bytes=status.maybe("free_bytes"),
        held=read_held(status),
        compared_ns=compared_ns(status),
        readers=tuple(one.count("pid") for one in status.parts("readers")),
        far_readers=tuple(_far_reader(one) for one in status.parts("far_readers")),
        problems=tuple(problems),
    )


def _far_reader(one: Fields) -> FarReader:
    return FarReader(
        one.text("who") or "somebody", one.count("owner"), one.count("since_ns"),
        one.count("first"), one.count("last"), one.count("bytes"),
    )  # fmt: skip


def _store_problems(status: Fields, level: Level, pid: int | None, now_ns: int) -> list[Problem]:
    found = []
    error = status.text("error") or status.text("reason")
    if error or level >= Level.BAD:
        found.append(Problem(error or "halted", "", max(level, Level.WARN)))
    free_bytes = status.maybe("free_bytes")
    if free_bytes is not None and free_bytes < FULL_BYTES:
        hint = "Make room there; it goes on by itself."
        found.append(Problem("the store's disk is full", hint, Level.WARN))
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


def _is_staged(status: Fields) -> bool:
    """Tell whether a copy waits beside the mirror."""
    return status.part("sync").flag("staged")
