"""A way back of many steps: what one of them has read ahead serves the next, or nobody."""

import os
import threading
from collections import Counter
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.journal.names import UNDO
from aimfuse.replay import rewind
from aimfuse.replay.promote import Request, promote_open
from aimfuse.replay.session import Session
from aimfuse.replay.state import Phase
from tests.disks.faults import Crash
from tests.replay.faults import Steps, failing_at
from tests.replay.recorder import Recorder, at, recorded, silent
from tests.replay.source import deliver, mirror_of
from tests.replay.stores import catch_up, exhaust

pytestmark = pytest.mark.expects_warnings

EARLY = (1, 12)


@pytest.fixture
def applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, Path]:
    """Return a source, and its store with all of its files applied; each is undone by itself."""
    monkeypatch.setattr(rewind, "STEP_FILES", 1)
    source, store, rest = recorded(tmp_path)
    deliver(store, *rest)
    catch_up(store)
    return source, store


def promote(store: Path, disk: Disk) -> None:
    session = Session(disk, store, read_ahead=True)
    try:
        promote_open(session, Request(at(EARLY)), silent)
    finally:
        session.close()


class Counting(Disk):
    """Counts how often which undo file is opened to be read as a whole."""

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()

    def open(self, label: str, path: Path, flags: int, mode: int = 0o600) -> int:
        if label == "read" and path.suffix == UNDO:
            self.opened[path.name] += 1
        return super().open(label, path, flags, mode)


def test_each_undo_file_is_read_once_to_check_it_and_once_to_execute_it(
    applied: tuple[Recorder, Path],
) -> None:
    source, store = applied
    disk = Counting()
    promote(store, disk)
    assert mirror_of(store) == source.states[EARLY]
    behind = sorted(disk.opened)[-4:]  # Those in front of them say where the point lies, too.
    assert [disk.opened[name] for name in behind] == [2, 2, 2, 2]


@pytest.mark.parametrize("label", ["rewind:write", "rewind:sync", "rewind:sync_dir"])
def test_a_step_that_fails_is_repeated(applied: tuple[Recorder, Path], label: str) -> None:
    source, store = applied
    promote(store, failing_at(label, times=2))
    assert mirror_of(store) == source.states[EARLY]


def test_nothing_reads_on_when_the_way_is_given_up(applied: tuple[Recorder, Path]) -> None:
    source, store = applied
    before, syncs = threading.active_count(), 0
    killer = Steps()

    def before_step(_at: int, label: str) -> None:
        nonlocal syncs
        syncs += label == "rewind:sync"
        if syncs == 3:
            raise Crash(label)

    killer.before = before_step
    with pytest.raises(Crash):
        promote(store, killer)
    assert threading.active_count() == before
    assert catch_up(store).store.state.phase is Phase.PROMOTED
    assert mirror_of(store) == source.states[EARLY]


def test_a_session_may_end_between_two_steps(applied: tuple[Recorder, Path]) -> None:
    source, store = applied
    before = threading.active_count()

    def interrupt(what: str, _done: int, _total: int) -> None:
        if what == "going back":
            raise KeyboardInterrupt

    session = Session(Disk(), store, read_ahead=True)
    with pytest.raises(KeyboardInterrupt):
        promote_open(session, Request(at(EARLY)), interrupt)
    session.close()
    assert threading.active_count() == before
    session = Session(Disk(), store, read_ahead=True)
    exhaust(session)
    session.close()
    assert mirror_of(store) == source.states[EARLY]


def test_what_goes_bad_on_the_way_stops_it_and_does_no_harm(
    applied: tuple[Recorder, Path],
) -> None:
    source, store = applied
    victim, good = sorted((store / "history").glob(f"*{UNDO}"))[3], b""

    def spoil(what: str, _done: int, _total: int) -> None:
        nonlocal good
        if what == "going back" and not good:
            good = victim.read_bytes()
            victim.write_bytes(bytes([*good[:-1], good[-1] ^ 1]))

    session = Session(Disk(), store)
    with pytest.raises(Exception, match="cannot go on"):
        promote_open(session, Request(at(EARLY)), spoil)
    session.close()
    assert mirror_of(store) in source.states.values()
    victim.write_bytes(good)
    os.utime(victim)
    catch_up(store)
    assert mirror_of(store) == source.states[EARLY]
