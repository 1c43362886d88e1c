"""A directory group with two destinations, one of each kind; anybody may die at any moment.

Models killed processes. The stores are looked at after their replayers have finished what they
had begun, as after any restart.
"""

import contextlib
import random
import time
from collections.abc import Callable

import psutil
import pytest

from aimfuse.config import DestinationConfig
from tests.dice import LONG
from tests.e2e.crash.machine import Far, Machine, kill
from tests.e2e.crash.names import DirectorySource, NameHistory, NameLoad, held
from tests.e2e.crash.served import Served

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(1800)]


class World:
    """A source, its two far sides, and how each of their processes is killed."""

    def __init__(self, machine: Machine, seed: int) -> None:
        """Start both far sides and initialise the source."""
        (machine.root / "near-by").mkdir()
        (machine.root / "far-away").mkdir()
        self.source = DirectorySource(machine, machine.root)
        self.plain = Far(machine, machine.root / "near-by")
        self.served = Served(machine, machine.root / "far-away")
        self.history = NameHistory(seed)
        for far in (self.plain, self.served):
            far.start()
        self.source.begin(DestinationConfig("p", self.plain.url), self.served.destination())

    def victims(self) -> dict[str, Callable[[], None]]:
        """Return who can be killed, and how."""
        return {
            "driver": self._kill_driver,
            "coordinator": self.source.kill_coordinator,
            "replayer": self.plain.kill,
            "server": self.served.kill,
            "the server's replayer": self._kill_its_replayer,
        }

    def _kill_driver(self) -> None:
        assert self.source.driver is not None
        kill(self.source.driver)

    def _kill_its_replayer(self) -> None:
        assert self.served.replayer is not None
        if self.served.replayer.poll() is None:
            for child in psutil.Process(self.served.replayer.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):  # It was just going.
                    child.kill()

    def check_mirror(self, far: Far) -> int:
        """Let a replayer finish what it had begun, and return how many calls the mirror holds."""
        far.finish()
        return self.history.prefix(held(far.store / "mirror"))


def test_names_and_bytes_are_right_in_two_mirrors_whoever_was_killed(
    machine: Machine, seed: int
) -> None:
    dice = random.Random(seed)
    world = World(machine, seed)
    source, history = world.source, world.history
    everybody = world.victims()
    source.must_mount()
    source.flush()  # The first copies are there: from now on there are two mirrors to check.
    for _ in range(30 if LONG else 1):
        assert held(source.mountpoint) == held(source.image)
        history.recovered(held(source.mountpoint))
        with NameLoad(source.mountpoint, history) as load:
            load.wait_for_trouble(dice.uniform(0.3, 1.2))
            for name in dice.sample(sorted(everybody), dice.randint(2, 4)):
                print("killing", name)
                everybody[name]()
                time.sleep(dice.choice((0.0, 0.0, 0.1)))
            load.wait_for_trouble(dice.uniform(0.0, 0.3))
        source.kill()
        for far in (world.plain, world.served):
            far.kill()
            print(world.check_mirror(far), "of", len(history.marks) - 1, "calls are mirrored")
            far.start()
        source.must_mount()
    history.recovered(held(source.mountpoint))
    source.flush()
    for far in (world.plain, world.served):
        assert held(far.store / "mirror") == held(source.mountpoint) == history.now
    source.unmount()
    assert held(source.image) == history.now
