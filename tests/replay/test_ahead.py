"""Reading the next file on a second thread changes nothing but the time it takes."""

import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.replay.ahead import ReadAhead, results_of
from aimfuse.replay.session import Session
from tests.replay.source import Source, deliver, inbox_of, mirror_of
from tests.replay.stores import begin, exhaust, report


def test_what_was_read_ahead_is_given_to_its_key_only() -> None:
    ahead: ReadAhead[str, int] = ReadAhead()
    ahead.start("one", lambda: 1)
    ahead.start("two", lambda: 22)  # One at a time: this is not done.
    assert ahead.take("two", lambda: 2) == 2
    assert ahead.take("one", lambda: 11) == 1
    assert ahead.take("one", lambda: 11) == 11


def test_an_error_comes_up_where_the_result_is_wanted() -> None:
    ahead: ReadAhead[str, int] = ReadAhead()
    ahead.start("one", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        ahead.take("one", lambda: 1)
    ahead.start("two", lambda: 1 // 0)
    ahead.drop()
    assert ahead.take("two", lambda: 2) == 2


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_results_come_in_order_whatever_ran_first(threads: int) -> None:
    first_waits = threading.Event()

    def call(number: int) -> int:
        if threads > 1 and number == 0:
            first_waits.wait()
        if number == 1:
            first_waits.set()
        return number

    assert list(results_of([partial(call, number) for number in range(7)], threads)) == [*range(7)]


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_what_a_call_raises_comes_behind_the_results_before_it(threads: int) -> None:
    found = results_of([lambda: 1, lambda: 1 // 0, lambda: 3], threads)
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_no_more_calls_are_made_than_results_are_awaited(threads: int) -> None:
    made: list[int] = []
    before = threading.enumerate()
    calls = (partial(made.append, number) for number in range(100))
    with closing(results_of(calls, threads)) as found:
        next(found)
        next(found)
    assert len(made) <= 2 + threads
    begun = set(threading.enumerate()) - set(before)
    assert not [one for one in begun if one.name.startswith("read-ahead")]


@pytest.mark.expects_warnings
def test_a_long_queue_with_a_damaged_file_in_it_is_applied_up_to_there(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 3000)
    source.roll()
    begin(store, source)
    files = []
    for fill in range(30):
        source.write(1, fill * 10, bytes([fill + 1]) * 10)
        files.append(source.roll())
    deliver(store, *files)
    damaged = inbox_of(store) / files[14].name
    damaged.write_bytes(b"x" * 5000)
    later = time.time_ns() + 10_000_000_000
    session = Session(Disk(), store, clock=lambda: later, read_ahead=True)
    exhaust(session)
    session.close()
    ack = report(session)
    assert ack["applied"]["number"] == 15
    assert ack["damaged"] == [files[14].name]
    assert ack["missing"] == [16]
    deliver(store, files[14])
    session = Session(Disk(), store, read_ahead=True)
    exhaust(session)
    session.close()
    assert mirror_of(store) == source.snapshot()
