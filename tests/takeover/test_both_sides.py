"""Both sides go on from the fork with things of all kinds; after the rejoin they are equal."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from aimfuse.config import JournalConfig, load
from aimfuse.config.edit import change_destination, edit
from aimfuse.coordinator.run import run_ship
from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import CheckpointFile
from aimfuse.driver.folding import fold_files
from aimfuse.driver.group import GroupPaths, close_group, open_group
from aimfuse.journal.slots import Slots
from aimfuse.journal.spool import release, sealed_names
from aimfuse.replay.replayer import Replayer
from aimfuse.replay.state import Head, Phase, StoreState
from aimfuse.takeover.rejoin import Json, Request, rejoin
from tests.coordinator.samples import make_dice
from tests.e2e.promoted import promote
from tests.takeover.old_source import LIMITS, OldSource, do_something, roll

pytestmark = pytest.mark.expects_warnings

LONG = os.environ.get("AIMFUSE_SWEEP") == "long"
SEEDS = range(25 if LONG else 3)


class NewSource:
    """A source in a store that was promoted."""

    def __init__(self, store: Path, *, is_directory: bool) -> None:
        """Promote *store*, which nobody replays now."""
        self.store = store
        self.home = promote(store)
        if is_directory:
            edit(self.home, lambda config: replace(config, image=store / "mirror"))
        journal = replace(JournalConfig(), file_bytes=64 * 1024)
        edit(self.home, lambda config: replace(config, journal=journal))

    @classmethod
    def behind(cls, old: OldSource, store: Path) -> "NewSource":
        """Return what goes on from the old source's fork, in a store made for it."""
        for name in ("mirror", "volumes", "inbox"):
            (store / name).mkdir(parents=True)
        for name, data in old.at_fork.items():
            (store / "mirror" / name).write_bytes(data)
        checkpoint = CheckpointFile(Disk(), old.config.state_dir).read()
        assert checkpoint is not None
        at = old.head
        state = StoreState(
            checkpoint.group,
            Head(at.epoch, at.number, at.seq, at.digest),
            tuple(checkpoint.entries()),
            Phase.CONSISTENT,
            volume_id_max=checkpoint.next_volume - 1,
            volume_ids_exact=True,
        )
        slots = Slots(Disk(), store / "state", "state")
        slots.write({**state.to_json(), "place": None, "open": False})
        return cls(store, is_directory=old.image.is_dir())

    def live(self, dice: random.Random, count: int) -> None:
        config = load(self.home)
        paths = GroupPaths(config.image, self.home, config.spool)
        engine = open_group(Disk(), paths, LIMITS)
        for _ in range(count):
            do_something(engine, dice, is_directory=config.image.is_dir())
            if dice.random() < 0.3:
                roll(engine)
        close_group(Disk(), engine)

    def fold(self, dice: random.Random, fork: int) -> None:
        """Let some files go that the mirror to be has not got, as a full spool does."""
        spool = load(self.home).spool
        names = [one for one in sealed_names(Disk(), spool) if one.number > fork]
        gone = names[: dice.randrange(len(names) + 1)]
        if gone:
            fold_files(Disk(), spool, self.home / "destinations" / "former", fork, gone)
            release(Disk(), spool, gone[-1].number)

    async def mirror_to(self, store: Path) -> None:
        """Ship everything to *store*, which is replayed meanwhile."""
        url = f"dir://{store}"
        edit(self.home, lambda config: change_destination(config, "former", url=url))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Replayer(store).run)
            with trio.fail_after(60):
                await run_ship(self.home, until_empty=True)
                while not _is_there(store, self.home):  # noqa: ASYNC110 - another's files
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()

    def contents(self) -> dict[str, bytes]:
        return contents(self.store / "mirror")


async def join(state_dir: Path, request: Request) -> Json:
    config = load(state_dir)
    return await trio.to_thread.run_sync(rejoin, Disk(), config, request, lambda _line: None)


def contents(directory: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in directory.iterdir()}


def _is_there(store: Path, home: Path) -> bool:
    data = Slots(Disk(), store / "state", "state").read()
    state = StoreState.from_json(data or {})
    newest = CheckpointFile(Disk(), home).read()
    assert newest is not None
    assert state.head is not None
    return state.phase is Phase.CONSISTENT and state.head.number >= newest.head.number


@pytest.mark.parametrize("names", [(), ("a", "b", "c")], ids=["image", "directory"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_both_sides_did_the_mirror_is_the_new_source_and_nothing_is_lost(
    tmp_path: Path, names: tuple[str, ...], seed: int
) -> None:
    dice = make_dice(seed)
    old = OldSource(tmp_path / "old", names)
    old.live(dice, 8)
    old.fork()
    new = NewSource.behind(old, tmp_path / "new")
    old.live(dice, dice.randrange(10))
    new.live(dice, dice.randrange(1, 10))
    if dice.random() < 0.5:
        new.fold(dice, int(old.head.number))
    request = Request(old.url)
    done = await join(old.config.state_dir, request)
    at_end = old.contents()
    store = Path(done["store"])
    await new.mirror_to(store)
    assert contents(store / "mirror") == new.contents()
    if done["branch"]:
        assert contents(Path(done["branch"]) / "volumes") == at_end
    else:
        assert at_end == old.at_fork


@pytest.mark.parametrize("names", [(), ("a", "b")], ids=["image", "directory"])
@pytest.mark.parametrize("seed", range(10 if LONG else 1))
async def test_a_promoted_store_rejoins_where_it_lies_beside_a_replayer_that_runs(
    tmp_path: Path, names: tuple[str, ...], seed: int
) -> None:
    dice = make_dice(seed)
    old = OldSource(tmp_path / "old", names)
    old.live(dice, 5)
    old.fork()
    first = NewSource.behind(old, tmp_path / "first")
    first.live(dice, 5)
    request = Request(old.url, store=tmp_path / "old" / "mirror")
    await join(old.config.state_dir, request)
    await first.mirror_to(tmp_path / "old" / "mirror")

    second = NewSource(tmp_path / "old" / "mirror", is_directory=bool(names))
    await Replayer(second.store).run_once()  # It says that it is promoted.
    first.live(dice, dice.randrange(6))
    second.live(dice, dice.randrange(1, 6))
    at_end = first.contents()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(first.store).run)
        await trio.sleep(0.2)
        request = Request(f"dir://{second.store}")
        done = await join(first.home, request)
        nursery.cancel_scope.cancel()
    assert Path(done["store"]) == first.store
    assert not first.home.exists()
    await second.mirror_to(first.store)
    assert contents(first.store / "mirror") == second.contents()
    if done["branch"]:
        assert contents(Path(done["branch"]) / "volumes") == at_end
