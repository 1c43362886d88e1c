"""Handing over by plan, seen from this side: what is asked, when, and any crash in between."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.config import DestinationConfig, load
from aimfuse.config.edit import edit
from aimfuse.config.keys import RESERVED
from aimfuse.coordinator.cursor import Cursor, CursorFile
from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import Checkpoint, CheckpointFile
from aimfuse.errors import StoreError, SupersededError, UsageError
from aimfuse.journal.superseded import Step, Superseded, read_superseded, write_superseded
from aimfuse.takeover.rejoin import Json
from aimfuse.takeover.switchover import REQUEST, switchover
from tests.disks.faults import Crash
from tests.replay.faults import Steps
from tests.takeover.old_source import OldSource

POLL_S = 0.01


class Handing(OldSource):
    """A source with one destination that has everything, at a store that answers on demand."""

    def __init__(self, root: Path, **settings: object) -> None:
        """Have the cursor say that the store was last met at `known_at`, by default where it is."""
        super().__init__(root)
        known_at = str(settings.pop("known_at", self.url))
        url = str(settings.pop("url", self.url))
        one = DestinationConfig("far", url, **settings)  # type: ignore[arg-type]
        self.requests: list[Json] = []

        edit(self.config.state_dir, lambda config: replace(config, destinations=(one,)))
        self.write(1, 2)
        head = self.checkpoint().head
        place = self.config.state_dir / "destinations" / "far"
        place.mkdir(parents=True, exist_ok=True)
        CursorFile(Disk(), place, self.url).write(
            Cursor(
                known_at, self.checkpoint().group, head.number, head.epoch, head.number,
                head.digest, head.number,
            )
        )  # fmt: skip
        self.say()

    def checkpoint(self) -> Checkpoint:
        found = CheckpointFile(Disk(), self.config.state_dir).read()
        assert found is not None
        return found

    def say(self, **more: object) -> None:
        """Let the store report that it has everything, but for what *more* says."""
        report = {
            "version": 1, "generation": 1, "group": self.checkpoint().group.hex(),
            "phase": "consistent", "applied": self.checkpoint().head.to_json(), **more,
        }  # fmt: skip
        part = self.far / "ack.part"
        part.write_text(json.dumps(report))
        part.rename(self.far / "ack.json")

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Play the store's replayer: it goes on by itself once it is asked to."""
        end = threading.Event()

        def answer() -> None:
            path = self.far / "inbox" / REQUEST
            while not end.wait(POLL_S):
                if path.exists():
                    asked = json.loads(path.read_bytes())
                    self.requests.append(asked)
                    fork = asked["position"]
                    promoted = {"epoch": fork["epoch"] + 1, "fork": fork, "at_ns": 1}
                    self.say(phase="promoted", promoted=promoted)
                    path.unlink()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def run(source: Handing, disk: Disk | None = None) -> Json:
    config = load(source.config.state_dir)
    return switchover(disk or Disk(), config, "far", lambda _line: None)


def step(source: Handing) -> Step | None:
    note = read_superseded(Disk(), source.config.state_dir)
    return note.step if note else None


def test_the_store_is_asked_to_go_on_from_exactly_the_end_of_the_journal(tmp_path: Path) -> None:
    source = Handing(tmp_path)
    with source.answering():
        done = run(source)
    (asked,) = source.requests
    assert asked["position"] == source.checkpoint().head.to_json()
    assert asked["group"] == source.checkpoint().group.hex()
    head = source.checkpoint().head
    assert done["position"] == f"{head.epoch}:{head.seq}"
    assert step(source) is Step.SUPERSEDED
    assert run(source) == done


def test_a_journal_whose_end_is_open_is_closed_first(tmp_path: Path) -> None:
    source = Handing(tmp_path)
    with source.served(clean=False):
        pass
    with source.answering():
        run(source)
    assert source.checkpoint().clean


def test_what_a_store_holds_back_on_purpose_is_said_while_it_is_waited_for(
    tmp_path: Path,
) -> None:
    source = Handing(tmp_path)
    before = source.checkpoint().head.to_json()
    source.write(3)
    closed = {"receive": {"since_ns": 1, "reason": "a backup"}}
    source.say(applied=before, paused=closed)
    wanted = "far: held, 1 file to go, held back on purpose: receive is paused there (a backup)"
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        if line == wanted:  # Not while it still connects, which may be said, too.
            source.say()

    with source.answering():
        done = switchover(Disk(), load(source.config.state_dir), "far", hear)
    assert done["state"] == "promoted"
    assert wanted in said


def test_a_store_that_joined_since_is_met_before_it_counts_as_being_there(tmp_path: Path) -> None:
    """By its place alone it has everything; it may say otherwise."""
    source = Handing(tmp_path, known_at=RESERVED)
    place = source.config.state_dir / "destinations" / "far"
    with source.answering():
        assert run(source)["state"] == "promoted"
    assert CursorFile(Disk(), place, "").read().url == source.url


@pytest.mark.parametrize(
    "report",
    [
        {"phase": "catching_up"},
        {"phase": "consistent", "needs_sync": "files are missing"},
        {"applied": {"epoch": 1, "number": 0, "seq": 0, "digest": "00" * 32}},
        {"applied": {"epoch": 1, "number": 1, "seq": 2, "digest": "07" * 32}},
    ],
    ids=["catching up", "needs a copy", "behind", "another history"],
)
def test_a_store_that_lacks_anything_is_not_asked(tmp_path: Path, report: Json) -> None:
    source = Handing(tmp_path)
    source.say(**report)
    with pytest.raises(StoreError, match="lacks something"):
        run(source)
    assert not (source.far / "inbox" / REQUEST).exists()
    assert step(source) is None


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"paused": True}, "paused"),
        ({"url": RESERVED}, "joins later"),
        ({"volumes": ("v.img",)}, "some of the volumes"),
    ],
)
def test_a_destination_that_cannot_take_over_is_refused(
    tmp_path: Path, settings: dict[str, object], why: str
) -> None:
    source = Handing(tmp_path, **settings)
    with pytest.raises(UsageError, match=why):
        run(source)


def test_a_source_that_is_one_no_more_hands_nothing_over(tmp_path: Path) -> None:
    source = Handing(tmp_path)
    other = Superseded("elsewhere", "dir:///elsewhere", None)
    write_superseded(Disk(), source.config.state_dir, other)
    with pytest.raises(SupersededError, match="elsewhere"):
        run(source)


def test_a_store_that_somebody_promoted_at_an_earlier_point_is_told_apart(tmp_path: Path) -> None:
    source = Handing(tmp_path)
    fork = source.checkpoint().head.to_json() | {"number": 0, "digest": "00" * 32}
    source.say(phase="promoted", promoted={"epoch": 5, "fork": fork, "at_ns": 1})
    with pytest.raises(StoreError, match="somebody else promoted it"):
        run(source)
    assert step(source) is Step.SUPERSEDED


def test_a_switch_over_that_dies_at_every_label_ends_as_one_that_did_not(tmp_path: Path) -> None:
    source = Handing(tmp_path)
    with source.served(clean=False):
        pass
    met: set[str] = set()

    def before(_at: int, label: str) -> None:
        if label not in met:
            met.add(label)
            raise Crash(label)

    with source.answering():
        while True:
            try:
                done = run(source, Steps(before))
            except Crash:
                continue
            break
    assert {"superseded:create", "superseded:rename"} <= met
    assert done["state"] == "promoted"
    assert step(source) is Step.SUPERSEDED
    assert all(one["position"] == source.checkpoint().head.to_json() for one in source.requests)
