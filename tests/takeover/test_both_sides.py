"""Both sides go on from the fork with things of all kinds; after the rejoin they are equal."""

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
from aimfuse.journal.contents import Contents, fold_into, read_contents
from aimfuse.journal.dirty import DirtyMap, read_map
from aimfuse.journal.slots import Slots
from aimfuse.journal.spool import release, sealed_names
from aimfuse.replay.point import Wanted
from aimfuse.replay.promote import Request as PromoteRequest
from aimfuse.replay.promote import promote
from aimfuse.replay.replayer import Replayer
from aimfuse.replay.state import Phase
from aimfuse.takeover.rejoin import Json, Request, describe, rejoin
from tests.coordinator.samples import make_dice
from tests.dice import LONG
from tests.replay.stores import until
from tests.takeover.old_source import LIMITS, OldSource, do_something, roll, state_of

pytestmark = pytest.mark.expects_warnings

SEEDS = range(25 if LONG else 1)
NEWEST = Wanted("now")


class NewSource:
    """A source in a store that was promoted, at its newest record or at an earlier one."""

    def __init__(self, store: Path, at: Wanted = NEWEST, *, force: bool = False) -> None:
        """Promote *store*, which nobody replays now."""
        self.store = store
        request = PromoteRequest(at, force=force)
        said = promote(Disk(), store, request, lambda _what, _done, _all: None)
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
        fold_some(self.home, "former", dice)

    async def mirror_to(self, store: Path) -> None:
        """Ship everything to *store*, which is replayed meanwhile."""
        url = f"dir://{store}"
        edit(self.home, lambda config: change_destination(config, "former", url=url))
        await shipped(self.home, store)

    async def begin_copy(self, store: Path) -> DirtyMap:
        """Let the copy to *store* begin, and nobody take it; return what it is to bring."""
        edit(self.home, lambda config: change_destination(config, "former", url=f"dir://{store}"))
        await Replayer(store).run_once()
        former = self.home / "destinations" / "former"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_ship, self.home)
            with trio.fail_after(60):
                while (sync := CursorFile(Disk(), former, "").read().sync) is None:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        return read_map(Disk(), former / f"todo-{sync.sync_id:016x}-{sync.round}.map")

    def contents(self) -> dict[str, bytes]:
        return contents(self.store / "mirror")


def fold_some(state_dir: Path, name: str, dice: random.Random) -> None:
    """Let some files go that the destination *name* has not got, as a full spool does."""
    spool, place = load(state_dir).spool, state_dir / "destinations" / name
    pin = CursorFile(Disk(), place, RESERVED).read().number
    names = [one for one in sealed_names(Disk(), spool) if one.number > pin]
    gone = names[: dice.randrange(len(names) + 1)]
    if gone:
        fold_files(Disk(), spool, place, pin, gone)
        release(Disk(), spool, gone[-1].number)


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


async def mirrored(old: OldSource, store: Path) -> None:
    """Give the old source its first mirror, at *store*."""
    url = f"dir://{store}"
    edit(old.config.state_dir, lambda config: add_destination(config, url))
    await shipped(old.config.state_dir, store)


async def fork(old: OldSource, store: Path, dice: random.Random) -> NewSource:
    """Mirror the old source to *store*, and promote that, perhaps at an earlier record."""
    await mirrored(old, store)
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
    if not Slots(Disk(), store / "state", "state").read():
        return False
    state = state_of(store)
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


def journal_of(spool: Path, fork: int) -> list[Contents]:
    names = [one for one in sealed_names(Disk(), spool) if one.number > fork]
    return [read_contents(Disk(), spool / one.sealed) for one in names]


@pytest.mark.parametrize("names", [(), ("a", "b", "c")], ids=["image", "directory"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_of_a_store_that_went_back_behind_the_spool_only_what_was_touched_is_copied(
    tmp_path: Path, names: tuple[str, ...], seed: int
) -> None:
    """What it went back over, what it wrote since, what the old source wrote behind both."""
    dice = make_dice(seed)
    old, store = OldSource(tmp_path / "old", names), tmp_path / "new"
    old.live(dice, 8)
    await mirrored(old, store)
    earliest = checkpoint_of(old.config.state_dir).head
    for _ in range(3):
        old.live(dice, 4)
    await shipped(old.config.state_dir, store)
    newest = checkpoint_of(old.config.state_dir).head
    position = int(newest.epoch), dice.randrange(int(earliest.seq), int(newest.seq) + 1)
    at = NEWEST if dice.random() < 0.2 else Wanted("an earlier record", position=position)
    new = NewSource(store, at)
    await Replayer(store).run_once()
    went = state_of(store).promoted
    assert went is not None
    touched = journal_of(old.paths.spool, went.fork.number)
    release(Disk(), old.paths.spool, newest.number)
    old.live(dice, dice.randrange(1, 8))
    touched += journal_of(old.paths.spool, newest.number)
    new.live(dice, dice.randrange(8))
    touched += journal_of(load(new.home).spool, went.fork.number)
    if dice.random() < 0.5:
        new.fold(dice)
    if dice.random() < 0.5:
        (name,) = (one.name for one in load(old.config.state_dir).destinations)
        fold_some(old.config.state_dir, name, dice)
    at_end = old.contents()

    done = await join(old.config.state_dir, Request(f"dir://{store}"))
    assert not done["is_whole"], done["why_whole"]
    at_most, mirror = DirtyMap(), Path(done["store"])
    fold_into(at_most, touched)
    for entry in state_of(mirror).volumes:
        if not (mirror / "volumes" / f"{entry.volume:08d}").stat().st_size:  # Removed here.
            at_most.add(entry.volume, 0, entry.size_bytes)
    named_bytes = at_most.dirty_bytes()
    at_most.add_all(await new.begin_copy(mirror))
    assert at_most.dirty_bytes() == named_bytes
    await new.mirror_to(mirror)
    assert contents(mirror / "mirror") == new.contents()
    assert contents(Path(done["branch"]) / "volumes") == at_end


@pytest.mark.parametrize("seed", [None, 3656715941], ids=["drawn", "grown-since-the-fork"])
async def test_where_the_new_source_is_a_mirror_taken_by_force_everything_is_copied(
    tmp_path: Path, seed: int | None
) -> None:
    """It is nobody's state: where it differs from the fork neither side knows."""
    dice = make_dice(seed)
    old, store = OldSource(tmp_path / "old"), tmp_path / "new"
    old.live(dice, 8)
    await mirrored(old, store)
    doubted = replace(state_of(store), phase=Phase.CATCHING_UP, doubt="copied in use")
    slots = Slots(Disk(), store / "state", "state")
    slots.write({**(slots.read() or {}), **doubted.to_json()})
    with (store / "volumes" / "00000001").open("r+b") as file:
        file.write(b"of another time")
    new = NewSource(store, force=True)
    await Replayer(store).run_once()
    old.write(3)
    new.live(dice, 4)
    new.fold(dice)
    planned = await join(old.config.state_dir, Request(f"dir://{store}", dry_run=True))
    done = await join(old.config.state_dir, Request(f"dir://{store}"))
    for said in (planned, done):
        assert said["is_whole"]
        assert "by force: copied in use" in said["why_whole"]
        assert said["differing_bytes"] == sum(map(len, old.contents().values()))
        assert any("Everything will be copied" in line for line in describe(said))
    await new.mirror_to(Path(done["store"]))
    assert contents(Path(done["store"]) / "mirror") == new.contents()


async def test_shipping_until_empty_does_not_end_before_a_rejoined_mirror_has_its_copy(
    tmp_path: Path,
) -> None:
    """Also where the new source has written nothing that it could ship."""
    dice = make_dice()
    old, store = OldSource(tmp_path / "old"), tmp_path / "new"
    old.live(dice, 8)
    await mirrored(old, store)
    new = NewSource(store)
    await Replayer(store).run_once()
    old.write(3, byte=9)
    done = await join(old.config.state_dir, Request(f"dir://{store}"))
    mirror = Path(done["store"])
    edit(new.home, lambda config: change_destination(config, "former", url=f"dir://{mirror}"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(mirror).run)
        with trio.fail_after(60):
            await run_ship(new.home, until_empty=True)
            while not _is_there(mirror, new.home):  # noqa: ASYNC110 - another's files
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert contents(mirror / "mirror") == new.contents()


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
    replayer = Replayer(first.store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replayer.run)
        await until(lambda: replayer.sessions)  # One that begins later may be refused.
        done = await join(first.home, Request(f"dir://{second.store}"))
        nursery.cancel_scope.cancel()
    assert Path(done["store"]) == first.store
    assert bool(list(first.store.glob("branches/rewound-*"))) is first.is_rewound
    assert not first.home.exists()
    await second.mirror_to(first.store)
    assert contents(first.store / "mirror") == second.contents()
    if done["branch"]:
        assert contents(Path(done["branch"]) / "volumes") == at_end
