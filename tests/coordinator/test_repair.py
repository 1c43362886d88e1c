"""What a mirror says differs is mended unasked, where the settings say so, and once."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from aimfuse.config import DestinationConfig, load
from aimfuse.coordinator.acks import parse_ack
from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.ending import Ending
from aimfuse.coordinator.parts import Parts
from aimfuse.coordinator.place import Place
from aimfuse.coordinator.repair import AGAIN_S_MIN, REWRITTEN_BYTES_MAX, Repairs
from aimfuse.coordinator.request import Range, read_request
from aimfuse.coordinator.source import Source
from aimfuse.driver import control
from tests.coordinator.fakes import Link, tools_for
from tests.coordinator.samples import SampleSource, make_dice

WAY = DestinationConfig("a", "/a")
ROLLED = 7


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    source = SampleSource(tmp_path, WAY)
    config, disk = load(source.state_dir), source.disk
    config = replace(config, journal=replace(config.journal, scrub_repair=True))
    tools = tools_for(source, make_dice(1), a=Link())
    ending = Ending(disk, source.state_dir, source.image)
    backlog = Backlog(disk, source.spool)
    made = Place(Parts(config, tools, backlog, Source(disk, source.state_dir), ending), WAY)
    made.open()
    made.cursor = replace(made.cursor, pin=0)
    made.ack = ack_of(3, 4096)
    return made


def ack_of(number: int, *lengths: int, phase: str = "consistent") -> Any:  # noqa: ANN401
    """Return what a mirror at file *number* says that differs in ranges of these *lengths*."""
    found = [
        {"volume": 1, "name": "v.img", "offset": at << 40, "length": length}
        for at, length in enumerate(lengths)
    ]
    head = {"epoch": 1, "number": number, "seq": 9, "digest": "ab" * 32, "time_ns": 1}
    said = {
        "version": 1, "group": "00" * 16, "generation": 1, "phase": phase, "applied": head,
        "verified": {"mismatches": found},
    }  # fmt: skip
    return parse_ack(json.dumps(said).encode())


class Served:
    """A driver that answers, and notes what it was asked to write again."""

    def __init__(self, place: Place) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self._listener = control.listen(place.parts.config.state_dir)

    async def run(self) -> None:
        async def verify(request: control.Request) -> dict[str, Any]:
            said = request.said
            assert said["rewrite"] is True
            self.asked.append((said["volume"], said["offset"], said["end"]))
            return {"ok": True}

        async def roll(_request: control.Request) -> dict[str, Any]:
            return {"ok": True, "number": ROLLED}

        async with self._listener:
            await control.serve(self._listener, {"verify": verify, "roll": roll})


@pytest.mark.expects_warnings
async def test_the_driver_writes_it_again_and_the_mirror_is_heard_before_it_does_so_again(
    place: Place,
) -> None:
    served, repairs = Served(place), Repairs(place)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        place.ack = ack_of(3, 4096, 100)
        for _ in range(3):
            await repairs.look()
        assert served.asked == [("v.img", 0, 4096), ("v.img", 1 << 40, (1 << 40) + 100)]
        place.ack = ack_of(ROLLED, 100)
        await repairs.look()
        assert served.asked[2:] == [("v.img", 0, 100)]
        nursery.cancel_scope.cancel()


@pytest.mark.expects_warnings
async def test_what_differs_again_and_again_is_mended_ever_more_rarely(
    place: Place, autojump_clock: MockClock
) -> None:
    served, repairs, times = Served(place), Repairs(place), list[float]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        place.ack = ack_of(ROLLED, 4096)
        while len(times) < 5:
            await repairs.look()
            if len(served.asked) > len(times):
                times.append(autojump_clock.current_time())
            await trio.sleep(1)
        waits = [after - before for before, after in pairwise(times)]
        assert waits == pytest.approx([1, AGAIN_S_MIN, 2 * AGAIN_S_MIN, 4 * AGAIN_S_MIN], abs=2)
        nursery.cancel_scope.cancel()


async def test_nothing_is_asked_for_unless_it_is_wanted_and_can_be(place: Place) -> None:
    served, repairs = Served(place), Repairs(place)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        for ack in (None, ack_of(3), ack_of(3, 4096, phase="catching_up")):
            place.ack = ack
            await repairs.look()
        place.ack = ack_of(3, 4096)
        config = place.parts.config
        place.parts.config = replace(config, journal=replace(config.journal, scrub_repair=False))
        await repairs.look()
        assert served.asked == []
        nursery.cancel_scope.cancel()


async def test_an_image_that_is_not_mounted_is_waited_for(place: Place) -> None:
    repairs = Repairs(place)
    await repairs.look()
    await repairs.look()
    assert not place.is_copy_wanted()


@pytest.mark.expects_warnings
async def test_of_very_much_a_copy_is_asked_for(place: Place) -> None:
    place.ack = ack_of(3, REWRITTEN_BYTES_MAX, 1)
    await Repairs(place).look()
    request = read_request(place.parts.disk, place.directory)
    assert request is not None
    assert not request.is_whole
    assert request.ranges == (
        Range("v.img", 0, REWRITTEN_BYTES_MAX), Range("v.img", 1 << 40, 1),
    )  # fmt: skip
