"""Both sides go on from the fork with things of all kinds; after the rejoin they are equal."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from aimfuse.config import JournalConfig, add_destination, load
from aimfuse.config.edit import change_destination, edit
from aimfuse.config.keys import RESERVED
from aimfuse.coordinator.cursor import CursorFile
from aimfuse.coordinator.run import run_ship
from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import Checkpoint, CheckpointFile
from aimfuse.driver.folding import fold_files
from aimfuse.driver.group import GroupPaths, close_group, open_group
from aimfuse.journal.slots import Slots
from aimfuse.journal.spool import release, sealed_names
from aimfuse.replay.point import Wanted
from aimfuse.replay.promote import Request as PromoteRequest
from aimfuse.replay.promote import promote
from aimfuse.replay.replayer import Replayer
from aimfuse.replay.state import Phase, StoreState
from aimfuse.takeover.rejoin import Json, Request, rejoin
from tests.coordinator.samples import make_dice
from tests.takeover.old_source import LIMITS, OldSource, do_something, roll

pytestmark = pytest.mark.expects_warnings

LONG = os.environ.get("AIMFUSE_SWEEP") == "long"
SEEDS = range(25 if LONG else 1)
NEWEST = Wanted("now")


class NewSource:
    """A source in a store that was promoted, at its newest record or at an earlier one."""

    def __init__(self, store: Path, at: Wanted = NEWEST) -> None:
        """Promote *store*, which nobody replays now."""
        self.store = store
        said = promote(Disk(), store, PromoteRequest(at), lambda _what, _done, _all: None)
        self.is_rewound = said["rewound"]["files"] > 0
        self.home = store / "source"
        journal = replace(JournalConfig(), file_bytes=64 * 1024)
        edit(self.home, lambda config: replace(config, journal=journal))

    def live(self, dice: random.Random, count: int) -> None:
        config = load(self.home)
        paths = GroupPaths(config.image, self.home, config.spool)
        engine = open_group(Disk(), paths, LIMITS)
        for _ in range(count):
            do_something(engine, dice, is_directory=config.image.is_dir())
            if dice.random() < 0.3:
                roll(engine)
        close_group(Disk(), engine)

    def fold(self, dice: random.Random) -> None:
        """Let some files go that the mirror to be has not got, as a full spool does."""
        spool, former = load(self.home).spool, self.home / "destinations" / "former"
        fork = CursorFile(Disk(), former, RESERVED).read().number
        names = [one for one in sealed_names(Disk(), spool) if one.number > fork]
        gone = names[: dice.randrange(len(names) + 1)]
        if gone:
            fold_files(Disk(), spool, former, fork, gone)
            release(Disk(), spool, gone[-1].number)

    async def mirror_to(self, store: Path) -> None:
        """Ship everything to *store*, which is replayed meanwhile."""
        url = f"dir://{store}"
        edit(self.home, lambda config: change_destination(config, "former", url=url))
        await shipped(self.home, store)

    def contents(self) -> dict[str, bytes]:
        return contents(self.store / "mirror")


async def join(state_dir: Path, request: Request) -> Json:
    config = load(state_dir)
    return await trio.to_thread.run_sync(rejoin, Disk(), config, request, lambda _line: None)


def contents(directory: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in directory.iterdir()}


async def shipped(state_dir: Path, store: Path) -> None:
    """Ship until *store*, which is replayed meanwhile, is at the end of the journal."""
    async with trio.open_nursery() as nursery:
        (store / "inbox").mkdir(parents=True, exist_ok=True)
        nursery.start_soon(Replayer(store).run)
        nursery.start_soon(run_ship, state_dir)  # Not until it is empty: that goes by the cursor.
        with trio.fail_after(60):
            while not _is_there(store, state_dir):  # noqa: ASYNC110 - another's files
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()


async def fork(old: OldSource, store: Path, dice: random.Random) -> NewSource:
    """Mirror the old source to *store*, and promote that, perhaps at an earlier record."""
    url = f"dir://{store}"
    edit(old.config.state_dir, lambda config: add_destination(config, url))
    await shipped(old.config.state_dir, store)
    old.live(dice, 6)
    await shipped(old.config.state_dir, store)
    newest, at = checkpoint_of(old.config.state_dir).head, NEWEST
    if dice.random() < 0.4:
        position = int(newest.epoch), max(1, int(newest.seq) - dice.randrange(5))
        at = Wanted("an earlier record", position=position)
    new = NewSource(store, at)
    await Replayer(store).run_once()  # It says that it is promoted.
    return new


def checkpoint_of(state_dir: Path) -> Checkpoint:
    found = CheckpointFile(Disk(), state_dir).read()
    assert found is not None
    return found


def _is_there(store: Path, home: Path) -> bool:
    if not (data := Slots(Disk(), store / "state", "state").read()):
        return False
    state = StoreState.from_json(data)
    newest = checkpoint_of(home).head.number
    is_there = state.head is not None and state.head.number >= newest
    return state.phase is Phase.CONSISTENT and is_there


@pytest.mark.parametrize("names", [(), ("a", "b", "c")], ids=["image", "directory"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_both_sides_did_the_mirror_is_the_new_source_and_nothing_is_lost(
    tmp_path: Path, names: tuple[str, ...], seed: int
) -> None:
    dice = make_dice(seed)
    old = OldSource(tmp_path / "old", names)
    old.live(dice, 8)
    new = await fork(old, tmp_path / "new", dice)
    old.live(dice, dice.randrange(10))
    new.live(dice, dice.randrange(10))
    if dice.random() < 0.5:
        new.fold(dice)
    done = await join(old.config.state_dir, Request(f"dir://{new.store}"))
    at_end = old.contents()
    store = Path(done["store"])
    await new.mirror_to(store)
    assert contents(store / "mirror") == new.contents()
    if done["branch"]:
        assert contents(Path(done["branch"]) / "volumes") == at_end


@pytest.mark.parametrize("names", [(), ("a", "b")] if LONG else [("a", "b")])
@pytest.mark.parametrize("seed", range(10 if LONG else 1))
async def test_a_promoted_store_rejoins_where_it_lies_beside_a_replayer_that_runs(
    tmp_path: Path, names: tuple[str, ...], seed: int
) -> None:
    dice = make_dice(seed)
    old = OldSource(tmp_path / "old", names)
    old.live(dice, 5)
    first = await fork(old, tmp_path / "first", dice)
    first.live(dice, 5)
    mirror = tmp_path / "old" / "mirror"
    await join(old.config.state_dir, Request(f"dir://{first.store}", store=mirror))
    await first.mirror_to(mirror)

    second = NewSource(mirror)
    await Replayer(mirror).run_once()
    first.live(dice, dice.randrange(6))
    second.live(dice, dice.randrange(1, 6))
    at_end = first.contents()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(first.store).run)
        await trio.sleep(0.2)
        done = await join(first.home, Request(f"dir://{second.store}"))
        nursery.cancel_scope.cancel()
    assert Path(done["store"]) == first.store
    assert bool(list(first.store.glob("branches/rewound-*"))) is first.is_rewound
    assert not first.home.exists()
    await second.mirror_to(first.store)
    assert contents(first.store / "mirror") == second.contents()
    if done["branch"]:
        assert contents(Path(done["branch"]) / "volumes") == at_end
