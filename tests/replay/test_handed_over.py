"""A source asks its mirror to go on in its place: at one position, and nowhere else."""

import json
from pathlib import Path

import pytest

from aimfuse.config.pauses import Pause, save_pauses
from aimfuse.disk import Disk
from aimfuse.replay.state import Json, Phase
from tests.replay.source import GROUP, Source, deliver, inbox_of, mirror_of
from tests.replay.stores import catch_up, report

pytestmark = pytest.mark.expects_warnings


def ask(store: Path, source: Source, **changes: object) -> Path:
    """Put a request for the source's newest position into the inbox."""
    position = {
        "epoch": source.epoch, "number": source.number, "seq": source.seq,
        "digest": source.digest.hex(), "time_ns": 0,
    }  # fmt: skip
    content = {"version": 1, "group": GROUP.hex(), "position": position, "asked_ns": 1} | changes
    path = inbox_of(store) / "switchover.json"
    path.write_text(json.dumps(content))
    return path


def promoted(store: Path) -> Json | None:
    said: Json | None = report(catch_up(store))["promoted"]
    return said


def test_a_mirror_that_stands_there_goes_on_as_the_source(source: Source, store: Path) -> None:
    source.write(1, 0, b"the last word")
    deliver(store, source.roll())
    request = ask(store, source)
    said = promoted(store)
    assert said is not None
    assert said["epoch"] == source.epoch + 1
    assert (said["fork"]["number"], said["fork"]["seq"]) == (source.number, source.seq)
    assert said["fork"]["digest"] == source.digest.hex()
    assert not request.exists()
    assert mirror_of(store) == source.snapshot()
    assert (store / "source" / "group.toml").exists()
    ask(store, source)
    assert promoted(store) == said


def test_a_mirror_that_is_not_there_yet_waits_and_says_so(source: Source, store: Path) -> None:
    source.write(1, 0, b"not here yet")
    late = source.roll()
    request = ask(store, source)
    session = catch_up(store)
    assert report(session)["promoted"] is None
    assert "the switch-over waits" in report(session)["error"]
    assert request.exists()
    deliver(store, late)
    assert promoted(store) is not None


def test_an_operator_who_allows_no_handing_over_is_obeyed_and_the_source_is_told(
    source: Source, store: Path
) -> None:
    (store / "store.toml").write_text("switchover = false\n")
    request = ask(store, source)
    session = catch_up(store)
    assert report(session)["promoted"] is None
    assert "allows no switch-over" in report(session)["error"]
    assert not request.exists()


def test_what_is_held_back_is_applied_when_the_source_hands_over(
    source: Source, store: Path
) -> None:
    save_pauses(store, {"apply": Pause(1)}, Disk())
    source.write(1, 0, b"held back")
    deliver(store, source.roll())
    catch_up(store)
    assert mirror_of(store) != source.snapshot()
    ask(store, source)
    assert promoted(store) is not None
    assert mirror_of(store) == source.snapshot()


def test_it_is_not_done_while_more_waits_behind_the_position(source: Source, store: Path) -> None:
    request = ask(store, source)
    source.write(1, 0, b"between")
    source.roll()
    source.write(1, 0, b"behind")
    deliver(store, source.roll())
    assert promoted(store) is None
    assert request.exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"group": "00" * 16}, "not of this store"),
        ({"version": 2}, "version 2"),
        ({"position": None}, "no switch-over request"),
        ({"position": {"epoch": 1, "number": 0, "seq": 0, "digest": "00" * 32}}, "applied already"),
        ({"position": {"epoch": 1, "number": 1, "seq": 2, "digest": "00" * 32}}, "another one"),
    ],
)
def test_what_can_never_be_is_set_aside(
    source: Source, store: Path, changes: Json, why: str
) -> None:
    del source
    request = ask(store, Source(store / "none"), **changes)
    session = catch_up(store)
    assert session.store.state.phase is Phase.CONSISTENT
    assert not request.exists()
    (reason,) = (store / "quarantine").glob("switchover*.reason")
    assert why in reason.read_text()


def test_an_old_or_linked_note_decides_nothing(source: Source, store: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    ask(store, source).rename(elsewhere)
    (store / "inbox" / "switchover.json").symlink_to(elsewhere)
    assert promoted(store) is None
