"""All short sequences of operations, each cut in many ways; then long random ones, cut anywhere.

All of up to three operations, and of those of four one in seven, or all with
AIMFUSE_SWEEP=long (two minutes).

The sequences have no fixed plan, so they meet what a script's author did not think of: a
checkpoint before anything was applied, a seal without a commit, two rolls in a row.
"""

from collections.abc import Iterator
from itertools import islice, pairwise, product

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.crash.lives import V
from tests.crash.rig import Op, Rig
from tests.dice import LONG
from tests.disks.cuts import keep_all, keep_none, keep_random, mixtures
from tests.disks.faults import Crash

ONE_IN = 1 if LONG else 7

IMAGE_OPS: list[Op] = [
    ("write", V, 0, 5000),
    ("write", V, 4000, 7000),
    ("zero", V, 4096, 4096),
    ("truncate", V, 4500),
    ("truncate", V, 13_000),
    ("fsync",),
    ("commit",),
    ("apply",),
    ("roll",),
    ("seal",),
    ("checkpoint",),
    ("release",),
]
DIRECTORY_OPS: list[Op] = [
    ("create", "b"),
    ("write", "b", 0, 300),
    ("rename", "b", "a"),
    ("rename", "a", "b"),
    ("unlink", "a"),
    ("truncate", "a", 0),
    ("fsync",),
    ("apply",),
    ("cycle",),
]


def sequences(ops: list[Op], length: int) -> Iterator[tuple[Op, ...]]:
    """Yield every sequence that begins with a change and repeats no step."""
    for sequence in product(ops, repeat=length):
        starts = sequence[0][0] in {"write", "zero", "truncate", "create", "rename", "unlink"}
        if starts and all(a != b for a, b in pairwise(sequence)):
            yield sequence


def explore(
    ops: list[Op], length: int, *, directory: bool, every_up_to: int, one_in: int = 1
) -> int:
    """Run the sequences on a rig that already has a life behind it; return how many."""
    count = 0
    start = Rig.create(directory=directory)
    start.do(("write", "a" if directory else V, 9000, 500))
    start.do(("cycle",))
    base = start.disk.kill()
    for sequence in islice(sequences(ops, length), 0, None, one_in):
        rig = start.survivor(base.kill())
        for op in sequence:
            rig.do(op)
        for name, choose in mixtures(
            rig.disk.units(), every_up_to=every_up_to, random_count=1, seed=count
        ):
            try:
                rig.survivor(rig.disk.power_cut(choose))
            except Exception as exc:
                exc.add_note(f"{sequence}, {name}")
                raise
        rig.survivor(rig.disk.kill())
        count += 1
    return count


@pytest.mark.parametrize("directory", [False, True], ids=["image", "directory"])
def test_no_two_operations_in_any_order_break_a_promise(directory: bool) -> None:
    ops = DIRECTORY_OPS if directory else IMAGE_OPS
    assert explore(ops, 2, directory=directory, every_up_to=32) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("directory", [False, True], ids=["image", "directory"])
def test_no_three_operations_in_any_order_break_a_promise(directory: bool) -> None:
    ops = DIRECTORY_OPS if directory else IMAGE_OPS
    assert explore(ops, 3, directory=directory, every_up_to=8) >= 300


@pytest.mark.slow
@pytest.mark.parametrize("directory", [False, True], ids=["image", "directory"])
def test_no_four_operations_in_any_order_break_a_promise(directory: bool) -> None:
    ops = DIRECTORY_OPS if directory else IMAGE_OPS
    count = explore(ops, 4, directory=directory, every_up_to=8, one_in=ONE_IN)
    assert count >= 2000 / ONE_IN


class Lives(RuleBasedStateMachine):
    """Any operations in any order, with crashes between and in the middle of them."""

    directory = False

    @initialize()
    def begin(self) -> None:
        self.rig = Rig.create(directory=self.directory)

    @property
    def names(self) -> list[str]:
        return ["a", "b", "c"] if self.directory else [V]

    def do(self, op: Op) -> None:
        """Carry out an operation, and recover if the program died in it."""
        try:
            self.rig.do(op)
        except Crash:
            self.rig.recover(self.how(self.rig))

    how = staticmethod(lambda rig: rig.disk.power_cut())

    @rule(pick=st.integers(0, 2), offset=st.integers(0, 30_000), length=st.integers(1, 9000))
    def write(self, pick: int, offset: int, length: int) -> None:
        self.do(("write", self.names[pick % len(self.names)], offset, length))

    @rule(pick=st.integers(0, 2), page=st.integers(0, 5), pages=st.integers(1, 3))
    def zero(self, pick: int, page: int, pages: int) -> None:
        self.do(("zero", self.names[pick % len(self.names)], page * 4096, pages * 4096))

    @rule(pick=st.integers(0, 2), size=st.integers(0, 40_000))
    def truncate(self, pick: int, size: int) -> None:
        self.do(("truncate", self.names[pick % len(self.names)], size))

    @rule(pick=st.integers(0, 2))
    def holey(self, pick: int) -> None:
        self.do(("holey", self.names[pick % len(self.names)]))

    @precondition(lambda self: self.directory)
    @rule(old=st.sampled_from("abc"), new=st.sampled_from("abc"))
    def rename(self, old: str, new: str) -> None:
        self.do(("create", old))
        self.do(("rename", old, new))

    @precondition(lambda self: self.directory)
    @rule(name=st.sampled_from("abc"))
    def unlink(self, name: str) -> None:
        self.do(("unlink", name))

    @rule(name=st.sampled_from(["fsync", "commit", "apply", "roll", "seal", "checkpoint"]))
    def pump(self, name: str) -> None:
        self.do((name,))

    @rule(name=st.sampled_from(["release", "cycle", "reopen"]))
    def keep_house(self, name: str) -> None:
        self.do((name,))

    @rule(steps=st.integers(0, 12), seed=st.integers(0, 2**32), after_bytes=st.integers(0, 5000))
    def die_soon(self, steps: int, seed: int, after_bytes: int) -> None:
        """Let the program die in one of the next steps, wherever that is."""
        disk = self.rig.disk
        disk.stop_at(len(disk.labels) + steps, after_bytes=after_bytes)
        choose = {0: keep_none, 1: keep_all}.get(seed % 8, keep_random(seed))
        killed = seed % 8 == 2
        self.how = staticmethod(
            lambda rig: rig.disk.kill() if killed else rig.disk.power_cut(choose)
        )

    @rule(seed=st.integers(0, 2**32))
    def cut_now(self, seed: int) -> None:
        self.rig.recover(self.rig.disk.power_cut(keep_random(seed)))

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.survivor(self.rig.disk.power_cut())


class DirectoryLives(Lives):
    """The same for a directory of images."""

    directory = True


MANY_STEPS = settings(stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow])
TestImageLives = Lives.TestCase
TestImageLives.settings = MANY_STEPS
TestDirectoryLives = DirectoryLives.TestCase
TestDirectoryLives.settings = MANY_STEPS
