"""A store was promoted: this source's history has ended, for every destination and durably."""

# ruff: noqa: ARG001 - a test asks for the simulated clock by naming it

from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import MockClock

from aimfuse.config import DestinationConfig
from aimfuse.config.keys import RESERVED
from aimfuse.coordinator.acks import parse_ack
from aimfuse.coordinator.cursor import Cursor, CursorFile
from aimfuse.coordinator.decide import Promoted
from aimfuse.coordinator.ending import Ending
from aimfuse.coordinator.run import run_ship
from aimfuse.disk import Disk
from aimfuse.errors import SupersededError, Unavailable
from aimfuse.journal.journal import Head
from aimfuse.journal.slots import Slots
from aimfuse.journal.superseded import (
    NAME,
    Promotion,
    Step,
    Superseded,
    read_superseded,
    write_superseded,
)
from aimfuse.units import Epoch, FileNumber, Seq
from tests.coordinator.fakes import FakeStore, Link, tools_for
from tests.coordinator.samples import GROUP, SampleSource, make_dice
from tests.coordinator.shipping import A, B, shipping, status, until


class PromotedStore(FakeStore):
    """A store that goes on by itself from the next look on."""

    promoted: dict[str, object] | None = None

    def promote(self) -> None:
        fork = {
            "epoch": self.epoch, "number": self.number, "seq": self.seq,
            "digest": self.digest.hex(), "time_ns": 5,
        }  # fmt: skip
        self.promoted = {"epoch": self.epoch + 1, "fork": fork, "at_ns": 7}
        self.phase = "promoted"

    def _report(self) -> dict[str, object]:
        return {**super()._report(), "promoted": self.promoted}


def deliveries(link: Link) -> int:
    return sum(not name.endswith(".json") for name in link.store.deliveries)


@pytest.mark.expects_warnings("a promotion is one")
async def test_a_promoted_store_ends_shipping_to_every_destination_for_good(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, a, b = SampleSource(tmp_path, A, B), Link(), Link()
    store = a.store = PromotedStore()
    source.write(0, 1)
    source.checkpoint()
    tools = tools_for(source, make_dice(3), a=a, b=b)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    store.promote()
    async with shipping(source, tools):
        await until(lambda: status(source, "b").get("state") == "superseded")
        await until(lambda: status(source, "a").get("state") == "superseded")
        sent = deliveries(a), deliveries(b)
        source.write(1, 2)
    note = read_superseded(Disk(), source.state_dir)
    assert note is not None
    assert (note.destination, note.url, note.step) == ("a", "sftp://a/s", Step.SUPERSEDED)
    assert note.promotion is not None
    assert note.promotion.fork.digest == store.digest
    with pytest.raises(SupersededError, match="was promoted"):
        await run_ship(source.state_dir, until_empty=True, tools=tools)
    assert (deliveries(a), deliveries(b)) == sent
    assert "aimfuse rejoin" in str(status(source, "b")["hint"])


@pytest.mark.expects_warnings("a promotion is one")
async def test_a_switch_over_that_is_asked_for_goes_on_shipping(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, a = SampleSource(tmp_path, A), Link()
    store = a.store = PromotedStore()
    source.write(0, 1)
    source.checkpoint()
    asked = Superseded("a", A.url, None, Step.SWITCHING)
    write_superseded(Disk(), source.state_dir, asked)
    tools = tools_for(source, make_dice(4), a=a)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    store.promote()
    async with shipping(source, tools):
        await until(lambda: status(source).get("state") == "superseded")
    note = read_superseded(Disk(), source.state_dir)
    assert note is not None
    assert note.step is Step.SUPERSEDED


@pytest.mark.parametrize(("epoch", "is_older"), [(3, True), (6, True), (7, False)])
def test_a_store_that_was_promoted_before_its_source_was_is_no_successor(
    tmp_path: Path, epoch: int, *, is_older: bool
) -> None:
    said = Promoted(Promotion(epoch, Head()))
    home = tmp_path / "store" / "source"
    home.mkdir(parents=True)
    assert not Ending(Disk(), home, home).is_older(said)
    Slots(Disk(), home.parent / "state", "state").write({"promoted": {"epoch": 6}})
    assert Ending(Disk(), home, home).is_older(said) is is_older
    assert not Ending(Disk(), tmp_path, tmp_path).is_older(said)


async def test_a_note_that_is_damaged_stops_a_coordinator(tmp_path: Path) -> None:
    source = SampleSource(tmp_path, A)
    (source.state_dir / NAME).write_text("{")
    with pytest.raises(Exception, match="damaged"):
        await run_ship(source.state_dir)


async def test_a_reserved_destination_is_left_alone_and_keeps_its_files(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    later = DestinationConfig("former", RESERVED)
    source, a = SampleSource(tmp_path, A, later), Link()
    source.write(0, 1)
    place = source.state_dir / "destinations" / "former"
    place.mkdir(parents=True)
    fork = source.head
    cursor = Cursor(
        RESERVED, GROUP, fork.number, fork.epoch, fork.number, fork.digest, fork.number
    )  # fmt: skip
    CursorFile(Disk(), place, RESERVED).write(cursor)
    kept = source.write(1, 2)
    source.checkpoint()
    tools = tools_for(source, make_dice(5), a=a)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    assert (source.spool / kept.sealed).exists()
    async with shipping(source, tools):
        await until(lambda: status(source, "former").get("state") == "reserved")
    assert status(source, "former")["pinned"]["files"] == 1


@pytest.mark.parametrize(
    "promoted",
    [
        3,
        {},
        {"epoch": -1, "fork": {}},
        {"epoch": 2, "fork": {"epoch": 1, "number": 1, "seq": 1, "digest": "00"}},
    ],
)
def test_a_promotion_that_is_none_is_a_damaged_report(promoted: object) -> None:
    said = (
        '{"version": 1, "group": null, "generation": 1, "phase": "promoted", "promoted": '
        + str(promoted).replace("'", '"')
        + "}"
    )
    with pytest.raises(Unavailable, match="damaged"):
        parse_ack(said.encode())


def test_a_note_is_read_as_it_was_written(tmp_path: Path) -> None:
    fork = Head(Epoch(3), FileNumber(4), Seq(5), bytes(32))
    note = Superseded("b", "dir:///b", Promotion(4, fork, 9), Step.REJOINED, "/srv/store")
    for one in (note, replace(note, promotion=None)):
        write_superseded(Disk(), tmp_path, one)
        assert read_superseded(Disk(), tmp_path) == one
