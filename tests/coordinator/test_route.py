"""A destination with a rule: its mirror is at every file what its volumes are there."""

# ruff: noqa: ARG001 - a test asks for the simulated clock by naming it

import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.route import Base, Route, Rule
from aimfuse.coordinator.run import run_ship
from aimfuse.disk import Disk
from aimfuse.errors import StoreError
from tests.coordinator.fakes import Link, tools_for, unreliable
from tests.coordinator.samples import SampleSource, make_dice
from tests.coordinator.shipping import shipping, status, until
from tests.replay.histories import Driver, files
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import catch_up, exhaust, opened

RULE = Rule(("*",), ("b", "x*", "out"))


class Half:
    """A source, the route of a destination that gets some of it, and its store."""

    def __init__(self, scratch: Path) -> None:
        self.source = Source(scratch / "spool")
        self.store = scratch / "store"
        self.born: dict[int, str] = {}
        self.rule = RULE
        self.copies = scratch / "copies"
        self.backlog = Backlog(Disk(), self.source.spool)
        self.route: Route | None = None

    def first_copy(self) -> None:
        """Copy the volumes of the rule from the last sealed position on."""
        source = self.source
        self._note_births()
        kept = {one: held for one, held in source.volumes.items() if self.rule.takes(held.name)}
        base = Base(source.number, source.epoch, source.digest, frozenset(kept))
        everything, table = source.volumes, source.table
        source.volumes = kept
        source._new_file()  # noqa: SLF001 - a table of the kept ones, as the coordinator writes
        deliver(self.store, *source.sync())
        catch_up(self.store)
        source.volumes, source.table = everything, table
        self.route = self.go_on(base)

    def go_on(self, base: Base) -> Route:
        route = Route(Disk(), self.backlog, self.copies, self.rule, base)
        route.sweep()
        return route

    def roll(self) -> int:
        self.source.roll()
        self.backlog.load()
        return self.source.number

    def expected(self) -> dict[str, bytes]:
        """Return the volumes that were born under a name of the rule."""
        self._note_births()
        return {
            held.name: bytes(held.data)
            for one, held in self.source.volumes.items()
            if self.rule.takes(self.born[one])
        }

    def _note_births(self) -> None:
        for record in self.source.pending:
            if record.kind.name == "CREATE":
                self.born[record.volume] = record.payload.decode()
        for one, held in self.source.volumes.items():
            self.born.setdefault(one, held.name)


@given(
    history=st.lists(files, max_size=5),
    epochs=st.sets(st.integers(0, 4)),
    restarts=st.sets(st.integers(0, 4)),
)
def test_whatever_happens_across_its_border_and_whenever_it_restarts(
    history: list[list[tuple[str, int, int, int]]], epochs: set[int], restarts: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        half = Half(Path(scratch))
        driver = Driver(half.source)
        for name in ("first", "out", "b"):
            half.source.write(half.source.create(name, 5000), 100, name.encode())
        half.expected()
        half.roll()
        half.first_copy()
        with opened(half.store) as session:
            for index, file in enumerate(history):
                if index in epochs:
                    half.source.branch()
                for action in file:
                    driver.act(action)
                expected = half.expected()
                number = half.roll()
                assert half.route is not None
                copy = trio.run(half.route.copy, number)
                if index in restarts:
                    before = copy.read_bytes()
                    half.route = half.go_on(half.route.base_at(number - 1))
                    copy = trio.run(half.route.copy, number)
                    assert copy.read_bytes() == before
                deliver(half.store, copy)
                exhaust(session)
                assert not session.halted, session.halted
                assert mirror_of(half.store) == expected
                assert not session.store.state.verified.mismatches


@pytest.fixture
def half(tmp_path: Path) -> Half:
    made = Half(tmp_path)
    for name in ("in", "out"):
        made.source.write(made.source.create(name), 0, name.encode() * 1000)
    made.expected()
    made.roll()
    made.first_copy()
    return made


async def test_nothing_of_an_excluded_volume_leaves(half: Half) -> None:
    half.source.write(2, 0, b"secret" * 100)
    half.source.write(1, 0, b"public")
    assert half.route
    data = (await half.route.copy(half.roll())).read_bytes()
    assert b"secret" not in data
    assert b"out" not in data
    assert b"public" in data


async def test_a_rename_across_the_border_changes_no_membership(half: Half) -> None:
    half.source.rename(1, "out-now")
    half.source.rename(2, "in")
    assert half.route
    deliver(half.store, await half.route.copy(half.roll()))
    catch_up(half.store)
    assert list(mirror_of(half.store)) == ["out-now"]


async def test_a_volume_that_an_excluded_one_replaces_is_removed(half: Half) -> None:
    half.source.rename(2, "in")
    half.source.write(2, 0, b"still excluded")
    assert half.route
    deliver(half.store, await half.route.copy(half.roll()))
    catch_up(half.store)
    assert mirror_of(half.store) == {}


async def test_a_copy_that_is_sent_again_is_the_same_and_copies_ahead_are_kept(half: Half) -> None:
    half.source.create("new", 10)
    first = half.roll()
    half.source.write(3, 0, b"new data")
    second = half.roll()
    assert half.route
    later = (await half.route.copy(second)).read_bytes()
    assert len(list(half.copies.iterdir())) == 2
    earlier = (await half.route.copy(first)).read_bytes()
    half.route.drop(first)
    assert (await half.route.copy(first)).read_bytes() == earlier
    half.route.drop(second)
    assert (await half.route.copy(second)).read_bytes() == later
    deliver(half.store, *half.copies.iterdir())
    catch_up(half.store)
    assert mirror_of(half.store)["new"] == b"new data\0\0"


async def test_what_the_cursor_has_passed_is_forgotten(half: Half) -> None:
    numbers = [half.roll() for _ in range(3)]
    assert half.route
    await half.route.follow(numbers[-1])
    assert half.route.through == numbers[-1]
    half.route.forget_through(numbers[1])
    assert half.route.digests(numbers[1]) is None
    assert half.route.digests(numbers[2])
    with pytest.raises(StoreError, match="cannot be made again"):
        await half.route.copy(numbers[0])


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        (Rule(("db-*",)), {"db-1", "db-2"}),
        (Rule((), ("*.tmp",)), {"db-1", "db-2", "home"}),
        (Rule(("db-*", "home"), ("db-2",)), {"db-1", "home"}),
        (Rule(("[!d]*",)), {"home", "x.tmp"}),
    ],
)
def test_a_rule_takes_what_its_patterns_say(rule: Rule, taken: set[str]) -> None:
    assert {one for one in ("db-1", "db-2", "home", "x.tmp") if rule.takes(one)} == taken


RULED = DestinationConfig("a", "sftp://a/s", volumes=("v.*",))


@pytest.mark.parametrize("seed", range(3))
async def test_over_a_bad_link_and_restarts_copies_arrive_like_files(
    autojump_clock: MockClock, tmp_path: Path, seed: int
) -> None:
    dice = make_dice(seed)
    source, link = SampleSource(tmp_path, RULED), Link()
    source.fill(2, 4)
    link.plan = unreliable(dice, 0.25)
    tools = tools_for(source, dice, a=link)
    for _ in range(4):
        async with shipping(source, tools):
            for step in range(8):
                if dice.random() < 0.2:
                    source.next_epoch()
                source.write(dice.randrange(16), 1 + step, records=dice.randrange(1, 4))
                await trio.sleep(dice.random() * 5)
        source.checkpoint()
    link.plan = lambda _call, _name: None
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    link.store.ack()
    assert bytes(link.store.mirror) == source.contents()
    assert source.cursor("a")["pin"] == source.head.number
    assert source.cursor("a")["members"] == [1]
    assert not list((source.state_dir / "destinations/a/routed").iterdir())


@pytest.mark.expects_warnings
async def test_another_rule_needs_another_first_copy_and_says_so(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, RULED), Link()
    async with shipping(source, tools_for(source, make_dice(1), a=link)):
        await until(lambda: link.store.phase == "consistent")
        source.configure(DestinationConfig("a", "sftp://a/s"))
        await until(lambda: status(source)["state"] == "halted")
        assert "begun with others" in status(source)["error"]
        assert "move the store away" in status(source)["hint"]
        source.configure(RULED)
        source.write(1, 1)
        await until(lambda: link.store.number == source.head.number)
        source.configure(DestinationConfig("a", "sftp://a/s"))
        await until(lambda: status(source)["state"] == "halted")
        link.store = type(link.store)()  # Moved away.
        await until(lambda: link.store.phase == "consistent")
    assert source.cursor("a")["rule"] is None
