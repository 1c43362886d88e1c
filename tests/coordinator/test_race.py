"""A copy that cannot end while so much is written says so, and one that can does not."""

from dataclasses import replace
from pathlib import Path

import trio
from trio.testing import MockClock

from aimfuse.config import DestinationConfig, load
from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.copy_report import progress
from aimfuse.coordinator.cursor import SyncState
from aimfuse.coordinator.ending import Ending
from aimfuse.coordinator.parts import Parts
from aimfuse.coordinator.place import Place
from aimfuse.coordinator.place_report import PlaceReport
from aimfuse.coordinator.race import Race
from aimfuse.coordinator.source import Source
from aimfuse.disk import Disk
from aimfuse.journal.journal import Head
from aimfuse.units import MIB, FileNumber
from tests.coordinator.fakes import Link, tools_for
from tests.coordinator.samples import SampleSource, make_dice

FIRST_ROUND = SyncState(7, Head(), (), 1, staged=True)
LATER_ROUND = replace(FIRST_ROUND, round=2)


def watched(written_mib_s: int, carried_mib_s: int, for_s: int = 60) -> Race:
    race = Race()
    for at in range(for_s):
        race.note(float(at), at * written_mib_s * MIB, at * carried_mib_s * MIB)
    return race


def test_a_copy_that_is_overtaken_by_writes_faster_than_the_link_says_so_with_a_way_out() -> None:
    said = watched(5, 3).verdict(LATER_ROUND)
    assert said is not None
    assert "cannot catch up: writes 5.0 MiB/s, link 3.0 MiB/s" in str(said)
    assert "2 times" in str(said)
    assert 'when_full = "block"' in said.hint


async def test_the_status_tells_of_it_unless_writers_wait_or_nothing_is_to_be_sent(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    way = DestinationConfig("a", "/a")
    source = SampleSource(tmp_path, way)
    config, disk = load(source.state_dir), source.disk
    backlog = Backlog(disk, source.spool)
    tools = tools_for(source, make_dice(1), a=Link())
    ending = Ending(disk, source.state_dir, source.image)
    parts = Parts(config, tools, backlog, Source(disk, source.state_dir), ending)
    place = Place(parts, way)
    place.cursor = replace(place.cursor, pin=0, sync=LATER_ROUND)
    report = PlaceReport(place)
    for _ in range(20):
        source.write(1, 1)
        backlog.look()
        place.note_progress(100)
        report.status()
        await trio.sleep(1)
    assert autojump_clock.current_time() >= 20
    for state, when_full, is_told in (
        ("syncing", None, True), ("syncing", "block", False), ("paused", None, False),
    ):  # fmt: skip
        place.configure(replace(way, when_full=when_full))
        place.enter(state)
        assert ("cannot catch up" in str(report.status()["error"])) is is_told


def test_a_copy_in_a_later_round_says_why_it_is() -> None:
    backlog = Backlog(Disk(), Path("nowhere"))
    asked = replace(FIRST_ROUND, why="asked for", head=Head(number=FileNumber(9)))
    for sync, why in (
        (asked, "asked for"),
        (replace(asked, round=1), "asked for; files through 9 have left the spool since it began"),
        (replace(asked, round=1, why=""), "files through 9 have left the spool since it began"),
    ):
        told = progress(sync, None, [], backlog, 0.0)
        assert told is not None
        assert told["why"] == why


def test_a_copy_that_may_end_is_no_trouble() -> None:
    assert watched(5, 3).verdict(None) is None
    assert watched(5, 3).verdict(FIRST_ROUND) is None, "the spool may hold what it takes"
    assert watched(3, 5).verdict(LATER_ROUND) is None, "this time it gets through"
    assert watched(5, 0).verdict(LATER_ROUND) is None, "that nothing arrives is another trouble"
    assert watched(5, 3, for_s=5).verdict(LATER_ROUND) is None, "that was a guess"
