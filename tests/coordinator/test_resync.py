"""A mirror behind what left the spool comes back by a copy, with a real store at the other end."""

import json
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import trio

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.parts import Tools
from aimfuse.coordinator.request import Range, Request, write_request
from aimfuse.coordinator.run import connect_as_configured, run_ship
from aimfuse.journal.names import SyncName, parse
from aimfuse.journal.reader import read_sealed
from aimfuse.journal.records import RecordType
from aimfuse.replay.replayer import Replayer
from aimfuse.transport import Transport
from aimfuse.units import SECOND_NS
from tests.coordinator.samples import BLOCK, SampleSource, make_dice
from tests.coordinator.shipping import status, until
from tests.dice import LONG

BLOCKS = 512
pytestmark = pytest.mark.expects_warnings


class Sites:
    """A source and a far host; the line between them, and what crossed it."""

    def __init__(self, root: Path) -> None:
        self.far = root / "far"
        self.far.mkdir()
        self.store = self.far / "s"
        self.source = SampleSource(root, DestinationConfig("far", str(self.store)), blocks=BLOCKS)
        self.sent: dict[str, int] = {}
        self.zeros = 0
        self.may_copy = trio.Event()
        self.may_copy.set()
        self.may_follow = trio.Event()
        self.may_follow.set()
        self.open_s = 0.0
        self.tools = Tools(self._connect, sync_file_bytes=1 << 20, dice=make_dice(1))

    def _connect(self, config: DestinationConfig) -> Transport:
        return cast("Transport", Counting(connect_as_configured(config), self))

    @property
    def mirror(self) -> Path:
        return self.store / "mirror" / "v.img"

    def is_identical(self) -> bool:
        return self.mirror.exists() and self.mirror.read_bytes() == self.source.contents()

    async def drain(self) -> None:
        """Ship until everything has arrived and is applied."""
        with trio.fail_after(60):
            await run_ship(self.source.state_dir, until_empty=True, tools=self.tools)
            while not self.is_identical():  # noqa: ASYNC110 - files send no events
                await trio.sleep(0.02)

    @asynccontextmanager
    async def replaying(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Replayer(self.far).run)
            yield
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def shipping(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await run_ship(self.source.state_dir, tools=self.tools)

            nursery.start_soon(run)
            yield
            nursery.cancel_scope.cancel()

    def copied_bytes(self) -> int:
        """Return the size of the SYNC files that were sent since the last call."""
        total = sum(size for name, size in self.sent.items() if isinstance(parse(name), SyncName))
        self.sent.clear()
        return total


class Counting:
    """A transport that notes what it carries."""

    def __init__(self, inner: object, sites: Sites) -> None:
        self._inner = inner
        self._sites = sites

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def open(self) -> None:
        await trio.sleep(self._sites.open_s)
        await self._inner.open()  # type: ignore[attr-defined]

    async def put(self, source: Path, name: str, **more: object) -> None:
        self._sites.sent[name] = source.stat().st_size
        if isinstance(parse(name), SyncName):
            await self._sites.may_copy.wait()
            aim = read_sealed(self._sites.source.disk, source)
            self._sites.zeros += sum(one.type is RecordType.ZERO for one in aim.records())
        else:
            await self._sites.may_follow.wait()
        await self._inner.put(source, name, **more)  # type: ignore[attr-defined]


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    made = Sites(tmp_path)
    made.source.fill(*range(0, BLOCKS, 2))
    return made


def ack_of(sites: Sites) -> dict[str, object]:
    """Return what the store says."""
    return cast("dict[str, object]", json.loads((sites.store / "ack.json").read_text()))


def scribble(source: SampleSource, dice: random.Random, files: int) -> set[int]:
    """Write journal files and return the blocks that they changed."""
    blocks = [dice.randrange(BLOCKS) for _ in range(files)]
    for block in blocks:
        source.write(block, dice.randrange(1, 255))
    source.checkpoint()
    return set(blocks)


async def test_only_what_left_the_spool_is_copied(sites: Sites) -> None:
    async with sites.replaying():
        await sites.drain()
        sites.copied_bytes()
        gone = scribble(sites.source, make_dice(2), 20)
        sites.source.fold("far")
        scribble(sites.source, make_dice(3), 3)  # These are still there.
        await sites.drain()
        assert len(gone) * BLOCK <= sites.copied_bytes() <= len(gone) * (BLOCK + 256) + 8 * BLOCK
        await until(lambda: sites.source.cursor("far")["state"] == "shipping", 30)
        assert sites.source.cursor("far")["pin"] == sites.source.head.number
        scribble(sites.source, make_dice(4), 3)
        await sites.drain()
        assert not sites.copied_bytes()
    assert not list((sites.source.state_dir / "destinations" / "far").glob("todo-*"))
    assert not list((sites.store / "staging").iterdir())


async def test_holes_are_copied_as_zeros(sites: Sites) -> None:
    async with sites.replaying():
        await sites.drain()
        sites.source.write(4, 0)
        sites.source.write(5, 1)
        sites.source.checkpoint()
        sites.source.fold("far")
        await sites.drain()
        assert sites.zeros == 1


async def test_a_copy_that_is_overtaken_sends_again_only_what_changed_again(sites: Sites) -> None:
    source, dice = sites.source, make_dice(5)
    async with sites.replaying():
        await sites.drain()
        source.write(500, 9, records=1)
        for block in range(400):
            source.write(block, 77)
        source.checkpoint()
        source.fold("far")
        sites.copied_bytes()
        async with sites.shipping():
            await until(lambda: source.cursor("far").get("sync"), 30)
            dirty = scribble(source, dice, 30)
            source.fold("far")
            await until(sites.is_identical, 60)
        sent = sites.copied_bytes()
        assert sent <= (401 + len(dirty)) * (BLOCK + 256) + 20 * BLOCK
    assert sites.is_identical()


async def test_the_first_copy_goes_on_when_it_is_overtaken(sites: Sites) -> None:
    source, dice = sites.source, make_dice(6)
    async with sites.replaying(), sites.shipping():
        for _ in range(3):
            await until(lambda: source.cursor("far").get("pin") is not None, 30)
            scribble(source, dice, 8)
            source.fold("far")
        await until(sites.is_identical, 60)


@pytest.mark.parametrize("seed", range(8 if LONG else 2))
async def test_killed_and_overtaken_at_random_both_ends_come_together(
    sites: Sites, seed: int
) -> None:
    """Each life of either end is cut off anywhere; the spool overflows in between."""
    source, dice = sites.source, make_dice(seed)
    sites.tools = replace(sites.tools, sync_file_bytes=1 << 16)
    for _life in range(12):
        with trio.move_on_after(dice.uniform(0.05, 0.5)):
            async with sites.replaying():
                with trio.move_on_after(dice.uniform(0.05, 0.6)):
                    await run_ship(source.state_dir, tools=sites.tools)
        scribble(source, dice, dice.randrange(20))
        if dice.random() < 0.6:
            source.fold("far", dice.randrange(source.head.number + 1))
        if dice.random() < 0.2:
            source.next_epoch()
    async with sites.replaying():
        await sites.drain()
    assert sites.is_identical()


async def test_a_spool_that_somebody_emptied_needs_no_new_store(sites: Sites) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
        inode = sites.mirror.stat().st_ino
        scribble(source, make_dice(7), 5)
        for path in source.spool.iterdir():
            path.unlink()
        await sites.drain()
        assert sites.mirror.stat().st_ino == inode, "the mirror was brought up, not made anew"


async def test_a_damaged_file_of_the_spool_is_copied_around(sites: Sites) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
        scribble(source, make_dice(8), 5)
        path = sorted(source.spool.iterdir())[-3]
        path.write_bytes(path.read_bytes()[:5000])
        await sites.drain()


@pytest.mark.parametrize("is_passed_on", [False, True])
async def test_a_missing_file_is_an_error_but_where_files_are_passed_on(
    sites: Sites, caplog: pytest.LogCaptureFixture, *, is_passed_on: bool
) -> None:
    source = sites.source
    source.is_passed_on = is_passed_on
    async with sites.replaying():
        await sites.drain()
        scribble(source, make_dice(15), 5)
        sorted(source.spool.iterdir())[-3].unlink()
        with caplog.at_level(logging.INFO, "aimfuse"):
            await sites.drain()
    said = {one.levelno for one in caplog.records if "missing from the spool" in one.message}
    assert logging.INFO in said
    assert (logging.ERROR in said) is not is_passed_on


async def test_a_range_that_went_bad_is_repaired(sites: Sites) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
        sites.copied_bytes()
    with sites.mirror.open("r+b") as mirror:
        mirror.seek(10 * BLOCK)
        mirror.write(b"rot" * BLOCK)
    directory = source.state_dir / "destinations" / "far"
    write_request(source.disk, directory, Request(False, (Range("v.img", 10 * BLOCK, 3 * BLOCK),)))
    source.write(11, 3)
    source.checkpoint()
    async with sites.replaying():
        await sites.drain()
        assert 0 < sites.copied_bytes() < 10 * BLOCK
    assert not (directory / "request.json").exists()


async def test_everything_is_copied_on_request(sites: Sites) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
        scribble(source, make_dice(14), 1)
        await sites.drain()
        sites.copied_bytes()
        mirror_time_ns = ack_of(sites)["mirror_time_ns"]
        assert mirror_time_ns
    with sites.mirror.open("r+b") as mirror:
        mirror.write(b"rot" * 100 * BLOCK)
    directory = source.state_dir / "destinations" / "far"
    write_request(source.disk, directory, Request(True))
    sites.open_s = 0.5  # Until it is begun there is nothing to see of it but the request.
    async with sites.replaying():
        await sites.drain()
        assert sites.copied_bytes() > BLOCKS // 2 * BLOCK
        assert ack_of(sites)["mirror_time_ns"] == mirror_time_ns, (
            "no younger for having been copied"
        )


async def test_everything_is_copied_on_request_also_where_a_part_would_do(sites: Sites) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
        sites.copied_bytes()
    with sites.mirror.open("r+b") as mirror:
        mirror.write(b"rot" * 100 * BLOCK)
    scribble(source, make_dice(13), 3)
    source.fold("far")
    write_request(source.disk, source.state_dir / "destinations" / "far", Request(True))
    async with sites.replaying():
        await sites.drain()
    assert sites.is_identical()


async def test_a_part_is_copied_only_to_what_was_received_and_is_applied(sites: Sites) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
    account = source.state_dir / "destinations" / "far"
    scribble(source, make_dice(10), 6)
    for path in source.spool.iterdir():  # As a replayer leaves it that was stopped right then.
        (sites.store / "work" / path.name).write_bytes(path.read_bytes())
    ack = sites.store / "ack.json"
    said = json.loads(ack.read_text())
    said["received"]["number"] = source.head.number
    ack.write_text(json.dumps(said))
    write_request(source.disk, account, Request(False, (Range("v.img", 0, BLOCK),)))
    async with sites.shipping():
        await until(lambda: "waits" in str(status(source, "far").get("error")), 10)
        async with sites.replaying():
            await until(lambda: not (account / "request.json").exists(), 10)
            await until(lambda: source.cursor("far")["state"] == "shipping", 10)
    assert sites.is_identical()


@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_mirror_that_went_beyond_a_copy_gets_a_later_one_of_no_more_than_that(
    sites: Sites, *, is_whole: bool
) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
    account = source.state_dir / "destinations" / "far"
    sites.copied_bytes()
    sites.may_copy = trio.Event()
    with sites.mirror.open("r+b") as file:
        file.write(b"rot" * BLOCK)
    asked = () if is_whole else (Range("v.img", 0, 4 * BLOCK),)
    write_request(source.disk, account, Request(is_whole, asked))
    async with sites.shipping():
        await until(lambda: source.cursor("far").get("sync"), 30)
        for path in [source.spool / source.write(block, 7).sealed for block in (1, 2)]:
            (sites.store / "inbox" / path.name).write_bytes(path.read_bytes())  # Late arrivals.
        source.checkpoint()
        async with sites.replaying():
            await until(lambda: ack_of(sites)["applied"] == source.head.to_json(), 30)
            sites.may_copy.set()
            await until(lambda: source.cursor("far")["state"] == "shipping", 30)
    assert sites.is_identical()
    assert sites.copied_bytes() > 100 * BLOCK if is_whole else sites.copied_bytes() < 100 * BLOCK


async def test_status_says_why_and_how_far(sites: Sites) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
    scribble(source, make_dice(9), 10)
    source.fold("far")
    async with sites.shipping():
        await until(lambda: (status(source, "far").get("sync") or {}).get("step"), 30)
        sync = status(source, "far")["sync"]
    assert sync["staged"]
    assert sync["step"] == "copying"
    assert "left the full spool" in sync["why"]
    assert sync["total_bytes"] >= BLOCK
    assert status(source, "far")["applied"]["number"] < source.head.number, "where the mirror is"
    assert status(source, "far")["folded"]["dirty_bytes"] >= BLOCK


async def test_status_says_how_much_of_the_journal_behind_a_copy_is_left(sites: Sites) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
        scribble(source, make_dice(16), 5)
        source.fold("far")
        names = [source.write(block, 9) for block in (1, 2, 3)]
        sites.may_follow = trio.Event()
        async with sites.shipping():
            await until(lambda: (status(source, "far")["sync"] or {}).get("step") == "journal", 30)
            sizes = [(source.spool / name.sealed).stat().st_size for name in names]
            journal = {"done_bytes": 0, "total_bytes": sum(sizes)}
            assert status(source, "far")["sync"]["journal"] == journal
            sites.may_follow.set()
            await until(sites.is_identical, 30)


async def test_before_the_end_of_the_first_copy_no_mirror_is_behind(sites: Sites) -> None:
    source = sites.source
    source.write(1, 7)
    source.checkpoint()
    sites.may_copy = trio.Event()
    async with sites.replaying(), sites.shipping():
        await until(lambda: status(source, "far").get("sync"), 30)
        told = status(source, "far")
    assert source.head.number > 0
    assert told["applied"]["number"] == 0
    assert told["lag"]["seconds"] is None


async def test_a_mirror_that_was_copied_knows_how_old_it_is(sites: Sites) -> None:
    source = sites.source
    sites.tools = replace(sites.tools, wall_ns=source.wall)
    async with sites.replaying():
        await sites.drain()
        scribble(source, make_dice(13), 3)
        source.fold("far")
        await sites.drain()
        assert ack_of(sites)["mirror_time_ns"] == source.wall.now_ns
    source.wall.now_ns += 60 * SECOND_NS  # Nobody replays any more.
    scribble(source, make_dice(14), 3)
    source.wall.now_ns += 30 * SECOND_NS
    async with sites.shipping():
        await until(lambda: status(source, "far")["lag"]["seconds"] == 30, 30)
        source.fold("far")
        await until(lambda: status(source, "far")["lag"]["seconds"] == 90, 30)


async def test_a_file_of_a_copy_is_shown_on_its_way_and_received_when_it_is_there(
    sites: Sites,
) -> None:
    source = sites.source
    async with sites.replaying():
        await sites.drain()
    scribble(source, make_dice(12), 10)
    source.fold("far")
    sites.may_copy = trio.Event()
    async with sites.replaying(), sites.shipping():
        await until(lambda: status(source, "far").get("in_flight"), 30)
        told = status(source, "far")
        assert isinstance(parse(told["in_flight"][0]["name"]), SyncName)
        assert told["received"]["number"] < source.head.number
        sites.may_copy.set()
        await until(lambda: status(source, "far").get("state") == "idle", 30)
        assert status(source, "far")["received"]["number"] == source.head.number
        assert not status(source, "far")["in_flight"]
