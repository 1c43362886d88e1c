"""Run a store in a test: open it, work until nothing gets further, close it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from aimfuse.disk import Disk
from aimfuse.replay.look import Look
from aimfuse.replay.session import Session
from aimfuse.replay.state import Json, Phase
from tests.replay.backwards import Snapshot
from tests.replay.source import Source, deliver

ROUNDS_MAX = 10_000


@contextmanager
def opened(store: Path, disk: Disk | None = None, look: Look | None = None) -> Iterator[Session]:
    """Open a session without the lock: simulated disks have none, and replayers test it."""
    session = Session(disk or Disk(), store, look)
    try:
        yield session
    finally:
        session.close()


def exhaust(session: Session) -> Session:
    """Work until a round gets nothing further."""
    for _round in range(ROUNDS_MAX):
        if not session.round():
            return session
    raise AssertionError("the session never comes to rest")


def catch_up(store: Path, disk: Disk | None = None, look: Look | None = None) -> Session:
    """Open the store, let it do what it can, close it; the session keeps what it found."""
    with opened(store, disk, look) as session:
        return exhaust(session)


def begin(store: Path, source: Source) -> None:
    """Give the store its first sync from the source's last sealed position."""
    deliver(store, *source.sync())
    session = catch_up(store)
    assert session.store.state.phase is Phase.CONSISTENT, session.error or session.halted


def made_source(spool: Path) -> Source:
    """Return a source with one volume and one sealed journal file."""
    made = Source(spool)
    made.create("v.img", 5000)
    made.roll()
    return made


def begun(store: Path, source: Source) -> Path:
    """Return the path of a new store with its first sync behind it."""
    begin(store, source)
    return store


def synced_store(scratch: Path) -> tuple[Source, Path]:
    """Return a source with volume 1, and its store with the first sync behind it."""
    source, store = Source(scratch / "spool"), scratch / "store"
    source.create("v.img", 9000)
    source.write(1, 4000, b"\xee" * 3000)
    source.roll()
    begin(store, source)
    return source, store


def busy_files(source: Source, right: dict[int, dict[str, bytes]] | None = None) -> list[Path]:
    """Make two files with every kind of record, on top of volume 1.

    The states behind them go into *right*, by their numbers.
    """
    right = {} if right is None else right
    source.write(1, 0, b"one" * 2000)
    second = source.create("second", 6000)
    source.write(second, 100, b"two" * 100)
    source.zero(1, 4096, 4096)
    first = source.roll()
    right[source.number] = source.snapshot()
    source.write(second, 9000, b"three")
    source.truncate(1, 3000)
    source.truncate(1, 8000)
    third = source.create("third")
    source.write(third, 0, b"3" * 10)
    source.rename(third, "second")
    source.mark_bookmark("the end")
    source.unlink(source.create("short-lived"))
    made = [first, source.roll()]
    right[source.number] = source.snapshot()
    return made


def report(session: Session) -> Json:
    """Return what the last ack says."""
    return dict(session._ack.last)  # noqa: SLF001 - the file itself may be on a simulated disk


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread or process brings about."""
    with trio.fail_after(120):
        while not condition():  # noqa: ASYNC110 - files send no events
            await trio.sleep(0.01)


def synced(scratch: Path) -> tuple[Source, Path, dict[int, Snapshot]]:
    """Return a source with a volume, its store, and the right states by file."""
    source, store = synced_store(scratch)
    return source, store, {1: source.snapshot()}
