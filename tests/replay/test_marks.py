"""The index of bookmarks says what the files of the history say, whatever happened to it."""

from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.driver.labels import Labels
from aimfuse.errors import LabelTaken
from aimfuse.journal.reader import read_sealed
from aimfuse.replay.marks import MARKS, Marks, find_marks, labels_of_store, read_index
from aimfuse.replay.past import describe, find_bookmarks, look_at
from tests.disks.faults import Crash
from tests.replay.crashes import copy_store
from tests.replay.faults import dying
from tests.replay.source import Source, deliver, marked
from tests.replay.stores import catch_up, exhaust, opened


def labels_of(store: Path) -> list[str]:
    """Return what is found, having held the index against the files themselves."""
    past = look_at(Disk(), store)
    assert past.reach is not None
    assert past.state.head is not None
    found = find_bookmarks(Disk(), past)
    path = store / MARKS
    kept = path.read_bytes()
    path.unlink()
    read = find_marks(Disk(), store, past.reach.sets, past.reach.base, past.state.head.number)
    path.write_bytes(kept)
    assert sorted(found, key=lambda one: one.seq) == sorted(read, key=lambda one: one.seq)
    return [one.label for one in found]


def test_bookmarks_are_listed_in_order_with_their_places(store: Path, source: Source) -> None:
    deliver(store, marked(source, "one", "two"), source.roll(), marked(source, "three"))
    catch_up(store)
    assert labels_of(store) == ["one", "two", "three"]
    shown = describe(Disk(), store)["bookmarks"]
    assert [(one["label"], one["position"], one["file"]) for one in shown] == [
        ("one", "1:4", 2), ("two", "1:6", 2), ("three", "1:9", 4),
    ]  # fmt: skip


def test_history_answers_without_listing_or_opening_the_files(
    store: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(store, *(marked(source, f"at {number}") for number in range(20)))
    catch_up(store)
    listed = describe(Disk(), store)
    monkeypatch.setattr("aimfuse.replay.past.look_at", pytest.fail)
    monkeypatch.setattr("aimfuse.replay.marks.scan_file", pytest.fail)
    glanced = describe(Disk(), store)
    assert glanced == listed
    assert len(glanced["bookmarks"]) == glanced["files"] == 20


def test_a_glance_says_the_same_as_a_list_after_pruning(
    store: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(store, *(marked(source, f"at {number}") for number in range(6)))
    catch_up(store)
    (store / "store.toml").write_text("keep_size = 20000\n")
    deliver(store, marked(source, "last"))
    catch_up(store)
    glanced = describe(Disk(), store)
    monkeypatch.setattr("aimfuse.replay.past._glanced", lambda *_args: None)
    listed = describe(Disk(), store)
    assert glanced == listed
    assert 0 < len(glanced["bookmarks"]) < 7
    assert glanced["gaps"] == [
        {"behind": 8 - glanced["files"], "why": "what was older has been pruned"}
    ]


@pytest.mark.parametrize("harm", ["missing", "cut", "flipped", "no first line"])
def test_a_missing_or_damaged_index_is_made_again(store: Path, source: Source, harm: str) -> None:
    deliver(store, marked(source, "one"), marked(source, "two"))
    catch_up(store)
    path = store / MARKS
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "flipped":
        path.write_bytes(data.replace(b"one", b"ome"))
    elif harm == "cut":
        path.write_bytes(data[:-5])
    else:
        path.write_bytes(data[data.index(b"\n") + 1 :])
    deliver(store, marked(source, "three"))
    catch_up(store)
    index = read_index(Disk(), store)
    assert index is not None
    assert [one.label for one in index.marks] == ["one", "two", "three"]
    assert labels_of(store) == ["one", "two", "three"]


def test_while_the_index_is_made_again_the_files_are_read(
    store: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimfuse.replay.marks.SCAN_FILES", 1)
    deliver(store, marked(source, "one"), marked(source, "two"), marked(source, "three"))
    catch_up(store)
    (store / MARKS).unlink()
    with opened(store) as session:
        session.round()
        deliver(store, marked(source, "four"))
        session.round()
        past = look_at(Disk(), store)
        found = [one.label for one in find_bookmarks(Disk(), past)]
        assert found == ["one", "two", "three", "four"][: len(found)]
        exhaust(session)
    assert labels_of(store) == ["one", "two", "three", "four"]


def test_a_crash_at_any_step_leaves_an_index_that_is_right(
    tmp_path: Path, store: Path, source: Source
) -> None:
    deliver(store, marked(source, "one"))
    catch_up(store)
    deliver(store, marked(source, "two", "three"))
    step = 0
    while True:
        copy = tmp_path / f"copy-{step}"
        copy_store(store, copy)
        disk = dying(step)
        try:
            catch_up(copy, disk)
            break
        except Crash:
            pass
        catch_up(copy)
        assert labels_of(copy) == ["one", "two", "three"]
        step += 1
    assert step > 20


def test_a_branch_that_the_mirror_has_left_is_left_by_the_index(
    store: Path, source: Source
) -> None:
    deliver(store, marked(source, "one"), marked(source, "left"))
    catch_up(store)
    with opened(store) as session:
        exhaust(session)
        marks = Marks(session.store, ())
        source.branch()
        source.number -= 1
        source.write(1, 0, b"another")
        path = source.roll()
        marks.note(read_sealed(Disk(), path))
        assert [one.label for one in marks.known] == ["one"]
        index = read_index(Disk(), store)
        assert index is not None
        assert [one.label for one in index.marks] == ["one"]


def test_the_index_forgets_the_oldest_and_they_are_found_in_the_files(
    store: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimfuse.replay.marks.MARKS_MAX", 2)
    deliver(store, *(marked(source, f"{number}") for number in range(7)))
    catch_up(store)
    index = read_index(Disk(), store)
    assert index is not None
    assert len(index.marks) <= 4
    assert labels_of(store) == [f"{number}" for number in range(7)]


def test_a_source_that_goes_on_from_a_store_knows_its_labels(
    tmp_path: Path, store: Path, source: Source
) -> None:
    deliver(store, marked(source, "one", "two"))
    catch_up(store)
    (tmp_path / "labels").write_bytes(labels_of_store(Disk(), store, source.number, 0))
    with pytest.raises(LabelTaken, match="'two' already, at 1:6"):
        Labels(Disk(), tmp_path).check("two")
