"""A store that was copied: whole if it was closed, and doubted if a replayer had it open."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.errors import StoreError
from aimfuse.replay.doubt import COPIED, REJOINED
from aimfuse.replay.kept import is_whole
from aimfuse.replay.past import look_at
from aimfuse.replay.point import Wanted
from aimfuse.replay.promote import Request, promote
from aimfuse.replay.session import Session
from aimfuse.replay.state import Head, Phase, StoreState, SyncProgress
from aimfuse.units import Epoch, FileNumber, Seq
from tests.replay.recorder import silent
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import exhaust, report


@pytest.fixture
def store(source: Source, tmp_path: Path) -> Path:
    """Return a store with its first copy and a file behind it, closed in order."""
    path = tmp_path / "store"
    deliver(path, *source.sync())
    source.write(1, 0, b"one")
    deliver(path, source.roll())
    replayed(path)
    return path


@contextmanager
def held(store: Path) -> Iterator[Session]:
    """Have the store open as a replayer has it."""
    session = Session(Disk(), store)
    session.store.lock()
    try:
        exhaust(session)
        yield session
    finally:
        session.close()


def replayed(store: Path) -> Session:
    with held(store) as session:
        return session


def copied(store: Path, name: str = "copy") -> Path:
    """Copy a store by hand."""
    return Path(shutil.copytree(store, store.with_name(name)))


def test_a_closed_store_is_copied_and_moved_at_will(source: Source, store: Path) -> None:
    other = copied(store)
    store.rename(store.with_name("moved"))
    source.write(1, 1, b"two")
    file = source.roll()
    for path in (other, store.with_name("moved")):
        deliver(path, file)
        assert replayed(path).store.state.phase is Phase.CONSISTENT
        assert mirror_of(path) == source.snapshot()


def test_one_that_was_killed_is_not_doubted_where_it_lies(source: Source, store: Path) -> None:
    session = Session(Disk(), store)
    session.store.lock()
    exhaust(session)
    session.store._let_go()  # noqa: SLF001 - as the kernel does, and without a word
    store = store.rename(store.with_name("moved"))
    source.write(1, 1, b"two")
    deliver(store, source.roll())
    replayed(store)
    assert mirror_of(store) == source.snapshot()


@pytest.mark.expects_warnings
def test_a_copy_of_an_open_store_takes_no_file_until_everything_was_copied(
    source: Source, store: Path
) -> None:
    with held(store):
        other = copied(store)
    (other / "volumes" / "00000001").write_bytes(b"of several times".ljust(5000, b"?"))
    shown = {"v.img": (other / "volumes" / "00000001").read_bytes()}
    source.write(1, 1, b"two")
    deliver(other, source.roll())
    for _ in range(2):  # It is as sure of that after a restart.
        ack = report(replayed(other))
        assert ack["phase"] == "catching_up"
        assert ack["needs_sync"] == COPIED
        assert ack["applied"]["number"] == 2
        assert mirror_of(other) == shown
    to = source.number
    deliver(other, *source.resync([], to, reason="files 1 to 3 left the full spool"))
    ack = report(replayed(other))
    assert (ack["phase"], ack["needs_sync"]) == ("catching_up", COPIED)
    deliver(other, *source.resync([], to, whole=True, reason=COPIED, sync_id=9))
    ack = report(replayed(other))
    assert ack["needs_sync"] is None
    assert ack["phase"] == "consistent"
    assert mirror_of(other) == source.snapshot()
    source.write(1, 2, b"three")
    deliver(other, source.roll())
    replayed(other)
    assert mirror_of(other) == source.snapshot()


@pytest.mark.expects_warnings
def test_a_copy_in_the_middle_of_a_first_copy_begins_anew(source: Source, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first, *_rest = source.sync(per_file=1)
    deliver(store, first)
    with held(store) as session:
        assert session.store.state.phase is Phase.SYNCING
        other = copied(store)
    assert report(replayed(other))["phase"] == "empty"
    deliver(other, *source.sync())
    assert replayed(other).store.state.phase is Phase.CONSISTENT
    assert mirror_of(other) == source.snapshot()


HEAD = Head(Epoch(1), FileNumber(7), Seq(70), bytes(32), 1)


@pytest.mark.parametrize(
    ("phase", "to", "doubt", "expected"),
    [
        (Phase.CONSISTENT, 5, "", True),
        (Phase.CONSISTENT, 5, COPIED, False),
        (Phase.CATCHING_UP, 9, "", False),
        (Phase.CATCHING_UP, 5, COPIED, False),
        (Phase.HALTED, 7, "", True),
        (Phase.HALTED, 8, "", False),
        (Phase.HALTED, None, "", False),
        (Phase.HALTED, 7, COPIED, False),
        (Phase.HALTED, 7, REJOINED, False),
        (Phase.PROMOTED, 5, "", False),
    ],
)
def test_a_mirror_is_whole_behind_its_copy_unless_it_is_doubted_halted_or_not(
    phase: Phase, to: int | None, doubt: str, *, expected: bool
) -> None:
    sync = SyncProgress(0xA1, HEAD, 3, (1, 0), to)
    state = StoreState(bytes(16), HEAD, phase=phase, sync=sync, doubt=doubt)
    assert is_whole(state) is expected
    assert not is_whole(replace(state, head=None))


@pytest.mark.expects_warnings
def test_a_copy_of_an_open_store_that_had_halted_is_doubted_and_stays_halted(store: Path) -> None:
    with held(store) as session:
        session.store.save(replace(session.store.state, phase=Phase.HALTED, reason="fork"))
        other = copied(store)
    assert is_whole(look_at(Disk(), store).state)
    shown = mirror_of(store)
    for _look in range(2):
        past = look_at(Disk(), other)
        assert (past.state.doubt, past.reach) == (COPIED, None)
        session = replayed(other)
        assert (session.halted, session.store.state.phase) == ("fork", Phase.HALTED)
        assert not is_whole(session.store.state)
        assert mirror_of(other) == shown
    with pytest.raises(StoreError, match="this store was copied"):
        promote(Disk(), other, Request(Wanted("now")), silent)


@pytest.mark.expects_warnings
def test_a_doubted_store_that_halts_gives_no_past(source: Source, store: Path) -> None:
    with held(store):
        other = copied(store)
    replayed(other)
    with held(other) as session:
        session.store.save(replace(session.store.state, phase=Phase.HALTED, reason="fork"))
    past = look_at(Disk(), other)
    assert (past.state.phase, past.state.doubt, past.reach) == (Phase.HALTED, COPIED, None)
    assert not is_whole(past.state)
    assert is_whole(look_at(Disk(), store).state)
    del source
