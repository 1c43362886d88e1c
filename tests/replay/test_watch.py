"""Whoever watches a store hears of all that can change what he reads, or hears that he cannot."""

from pathlib import Path

from aimfuse.replay.watch import NOTHING, Watch
from tests.replay.recorder import recorded
from tests.replay.source import deliver
from tests.replay.stores import catch_up

EVENTS_MAX = Path("/proc/sys/fs/inotify/max_queued_events")


def test_an_applied_file_is_told_by_its_undo_file_and_the_state(tmp_path: Path) -> None:
    _source, store, waiting = recorded(tmp_path)
    watch = Watch(store)
    assert watch.is_told
    assert watch.news() == NOTHING
    deliver(store, waiting[0])
    catch_up(store)
    news = watch.news()
    assert news is not None
    assert [name for name in news.names if name.endswith(".undo")] == [
        "00000001-000000000005-00000000.undo"
    ]
    assert news.is_written
    assert watch.news() == NOTHING
    watch.close()
    assert watch.news() is None


def test_whoever_missed_something_is_told_to_look(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    watch = Watch(store)
    slots = [(store / "state.0").open("r+b"), (store / "history" / "floor.1").open("r+b")]
    for number in range(int(EVENTS_MAX.read_text()) + 2):  # Two alike in a row count as one.
        slot = slots[number % 2]
        slot.seek(0)
        slot.write(b"x")
        slot.flush()
    assert watch.news() is None
    assert watch.news() == NOTHING
    for slot in slots:
        slot.close()
    watch.close()


def test_a_store_that_lacks_what_is_watched_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    watch = Watch(tmp_path)
    assert not watch.is_told
    assert watch.news() is None
    watch.close()
