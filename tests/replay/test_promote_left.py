"""What is taken for a mirror to go on with, and what is not: what halts and deaths have left."""

import json
import os
from pathlib import Path

import pytest

from aimfuse.errors import StoreError
from aimfuse.replay.state import Phase
from tests.replay.promotions import applied, promoted, served
from tests.replay.resyncs import do_much, make_source
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import begin, catch_up

pytestmark = pytest.mark.expects_warnings


def test_what_a_killed_rejoin_left_is_not_taken_for_the_new_source(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    (store / "source" / "spool").mkdir(parents=True)
    (store / "source" / "superseded.json").write_text("{}")
    promoted(store)
    assert not (store / "source" / "superseded.json").exists()
    assert served(store)[0] == 2
    (left,) = store.glob("source.old-*")
    assert (left / "superseded.json").exists()


def halted_in_its_copy(root: Path, *, is_done: bool) -> Path:
    """Return a store that another history halted before its first copy was consistent."""
    source, store = Source(root / "spool"), root / "store"
    source.create("v.img", 30000)
    source.write(1, 0, b"data" * 5000)
    source.roll()
    copies = list(source.sync(to=3))
    deliver(store, *(copies if is_done else copies[:1]))
    other = Source(root / "other")
    other.create("v.img", 1)
    deliver(store, other.roll())
    assert catch_up(store).halted.startswith("fork: ")
    return store


def test_a_store_that_halted_before_its_copy_was_consistent_is_taken_only_by_force(
    tmp_path: Path,
) -> None:
    store = halted_in_its_copy(tmp_path, is_done=True)
    with pytest.raises(StoreError, match="no consistent mirror: the copy needs files 2 to 3"):
        promoted(store)
    assert "by force" in promoted(store, force=True)["warnings"][0]
    assert mirror_of(store)["v.img"].startswith(b"data" * 5000)


def test_a_store_that_halted_in_its_first_copy_is_never_taken(tmp_path: Path) -> None:
    store = halted_in_its_copy(tmp_path, is_done=False)
    with pytest.raises(StoreError, match="only a part of its first copy"):
        promoted(store, force=True)


def test_a_copy_that_was_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    source, store = make_source(tmp_path / "spool"), tmp_path / "store"
    begin(store, source)
    right = mirror_of(store)
    copies = list(source.resync(do_much(source), to=4))
    deliver(store, *copies[:3])
    catch_up(store)
    assert list((store / "staging").iterdir())
    promoted(store)
    assert not list((store / "staging").iterdir())
    assert mirror_of(store) == right


def test_an_epoch_that_nobody_can_be_in_is_not_believed(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    told = store / "inbox" / "source.json"
    told.write_text(json.dumps({"epoch": (1 << 64) - 1, "time_ns": 1}))
    assert promoted(store)["epoch"] == 2
    assert served(store)[0] == 2


@pytest.mark.parametrize(("epoch", "goes_on"), [(98_999_998, True), (99_999_999, False)])
def test_a_source_that_has_used_up_the_epochs_leaves_none_for_the_next(
    tmp_path: Path, epoch: int, *, goes_on: bool
) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 30000)
    source.write(1, 0, b"data" * 5000)
    source.roll()
    begin(store, source)
    source.branch()
    source.epoch = epoch
    source.write(1, 0, b"more")
    deliver(store, source.roll())
    catch_up(store)
    (store / "inbox" / "source.json").write_text(json.dumps({"epoch": epoch + 5, "time_ns": 1}))
    if goes_on:
        assert promoted(store)["epoch"] == epoch + 1
        assert served(store)[0] == epoch + 1
        return
    with pytest.raises(StoreError, match="no names are left"):
        promoted(store)
    assert catch_up(store).store.state.phase is Phase.CONSISTENT
    assert mirror_of(store) == source.snapshot()


@pytest.mark.parametrize("far", ["epoch", "number"])
def test_a_copy_from_a_position_that_no_name_can_say_is_set_aside(tmp_path: Path, far: str) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 30000)
    source.roll()
    setattr(source, far, 10**12)
    deliver(store, *source.sync())
    assert catch_up(store).store.state.phase is Phase.EMPTY
    reasons = [one.read_text() for one in (store / "quarantine").glob("*.reason")]
    assert reasons
    assert all("no file's name could" in one for one in reasons)


def test_a_pipe_in_place_of_what_the_source_said_holds_nobody_up(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    os.mkfifo(store / "inbox" / "source.json")
    assert promoted(store)["epoch"] == 2
