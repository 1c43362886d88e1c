"""Restore reaches what a store has received and, on purpose or not yet, not applied."""

import shutil
from pathlib import Path

import pytest

from aimfuse.config.pauses import Pause, save_pauses
from aimfuse.disk import Disk
from aimfuse.errors import OutOfReach, UsageError
from aimfuse.replay.point import Wanted, parse_at
from aimfuse.replay.restore import Request, restore
from aimfuse.replay.state import Json
from tests.replay.faults import Steps
from tests.replay.recorder import NOW, Position, Recorder, at, recorded, restored, silent
from tests.replay.source import deliver, mirror_of
from tests.replay.stores import catch_up, exhaust, opened


def held(scratch: Path) -> tuple[Recorder, Path]:
    """Return a source, and its store: three files are applied, three are held back."""
    source, store, more = recorded(scratch)
    save_pauses(store, {"apply": Pause(1)}, Disk())
    deliver(store, *more)
    catch_up(store)
    return source, store


def newest(store: Path) -> Position:
    head = catch_up(store).store.state.head
    assert head is not None
    return head.epoch, head.seq


def planned(store: Path, wanted: Wanted) -> Json:
    request = Request(store.parent / "nowhere", wanted, as_directory=True)
    return restore(Disk(), store, request, silent, dry_run=True)


def test_every_record_that_was_received_can_be_had_and_the_mirror_stays(tmp_path: Path) -> None:
    source, store = held(tmp_path)
    before, applied = mirror_of(store), newest(store)
    ahead = {where: state for where, state in source.states.items() if where > applied}
    assert len(ahead) > 20
    for where, state in ahead.items():
        assert restored(store, at(where), tmp_path / "out") == state, where
        shutil.rmtree(tmp_path / "out")
    assert mirror_of(store) == before
    assert planned(store, parse_at(None, NOW))["ahead"] is False


def test_bookmarks_and_times_ahead_of_the_mirror_are_found(tmp_path: Path) -> None:
    source, store = held(tmp_path)
    said = planned(store, parse_at("mark 5", NOW))
    assert said["ahead"] is True
    assert said["file"] == source.number
    epoch, seq = map(int, said["position"].split(":"))
    assert (
        restored(store, Wanted("mark 5", label="mark 5"), tmp_path / "out")
        == (source.states[epoch, seq])
    )
    then = Wanted("then", time_ns=source.clock_ns + seq)
    assert planned(store, then)["position"] == said["position"]
    before = Wanted("then", time_ns=source.clock_ns + seq, before=True)
    assert planned(store, before)["position"] == f"{epoch}:{seq - 1}"
    end = planned(store, Wanted("end", time_ns=1 << 60))
    assert end["position"] == f"{source.epoch}:{source.seq}"


def test_a_file_that_is_missing_ends_the_way(tmp_path: Path) -> None:
    source, store = held(tmp_path)
    (store / "work" / f"00000001-{source.number - 1:012d}.aim").unlink()
    with pytest.raises(OutOfReach, match="not here yet"):
        planned(store, at((source.epoch, source.seq)))
    with pytest.raises(OutOfReach):
        planned(store, parse_at("mark 5", NOW))
    assert planned(store, parse_at("mark 3", NOW))["ahead"] is True


def test_a_replayer_that_applies_them_meanwhile_changes_nothing_of_it(tmp_path: Path) -> None:
    source, store = held(tmp_path)
    save_pauses(store, {}, Disk())
    with opened(store) as session:
        begun = False

        def before(_at: int, label: str) -> None:
            nonlocal begun
            if label.startswith("restore") and not begun:
                begun = True
                exhaust(session)

        where = (source.epoch, source.seq - 2)
        found = restored(store, at(where), tmp_path / "out", Steps(before))
        assert begun
        assert found == source.states[where]


def test_two_bookmarks_of_a_name_on_both_sides_of_the_mirror_are_told_apart(
    tmp_path: Path,
) -> None:
    source, store = held(tmp_path)
    source.mark_bookmark("mark 1")
    deliver(store, source.roll())
    catch_up(store)
    with pytest.raises(UsageError, match="several bookmarks"):
        planned(store, parse_at("mark 1", NOW))
