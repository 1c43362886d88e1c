"""SIGKILL of coordinator and replayer at labelled steps, and of everybody at any moment."""

import os
import random
import time

import pytest

from tests.e2e.crash.machine import Cruelty, Far, Machine, Source, kill
from tests.e2e.crash.writes import BLOCK, History, Load

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(1800)]

BLOCKS = 64
LONG = os.environ.get("AIMFUSE_SWEEP") == "long"
NEVER = "no such label"


def live(machine: Machine, name: str, seed: int, cruelty: Cruelty) -> None:
    """Mirror a new volume from nothing while one process is treated with *cruelty*."""
    place = machine.root / name
    place.mkdir()
    source, far = Source(machine, place), Far(machine, place)
    history = History(BLOCKS, seed)
    source.initialise(BLOCKS * BLOCK, far.url)
    far.start(cruelty if cruelty.role == "replay" else None)
    assert source.mount(cruelty if cruelty.role == "ship" else None)
    with far.kept_running():
        for _ in range(3):
            with Load(source.volume, history) as load:
                assert not load.wait_for_trouble(0.2), "the application noticed"
        source.flush()
    image = source.volume.read_bytes()
    assert far.mirror.read_bytes() == image
    assert history.recovered(image) == history.completed == len(history.writes)
    source.unmount()
    assert far.mirror.read_bytes() == source.image.read_bytes() == image
    far.kill()
    assert not list(far.store.rglob("*.part"))
    print(cruelty, "not met" if machine.armed.exists() else "died")


@pytest.mark.parametrize("role", ["ship", "replay"])
def test_a_process_killed_at_any_step_costs_nothing_but_time(
    machine: Machine, seed: int, role: str
) -> None:
    dice = random.Random(seed)
    live(machine, "rehearsal", seed, Cruelty(role, NEVER))
    steps = machine.steps()
    assert len(steps) > 20, steps
    for label, nth in steps if LONG else dice.sample(steps, 1):
        live(machine, f"{label}-{nth}", dice.randrange(1000), Cruelty(role, label, nth))


def test_everybody_killed_at_any_moment_loses_nothing_that_was_synced(
    machine: Machine, seed: int
) -> None:
    dice = random.Random(seed)
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    history = History(BLOCKS, seed)
    source.initialise(BLOCKS * BLOCK, far.url)
    far.start()
    for _ in range(40 if LONG else 4):
        source.must_mount()
        history.recovered(source.volume.read_bytes())
        with Load(source.volume, history) as load:
            load.wait_for_trouble(dice.uniform(0.05, 1.0))
            for victim in dice.sample(("driver", "coordinator", "replayer"), dice.randint(1, 3)):
                _kill(source, far, victim)
                time.sleep(dice.choice((0.0, 0.0, 0.1)))
            load.wait_for_trouble(dice.uniform(0.0, 0.3))
        source.kill()
        far.kill()
        assert history.prefix(source_or_mirror(source, far)) >= 0
        far.start()
    source.must_mount()
    history.recovered(source.volume.read_bytes())
    source.flush()
    assert far.mirror.read_bytes() == source.volume.read_bytes()
    source.unmount()


def source_or_mirror(source: Source, far: Far) -> bytes:
    """Return the mirror's bytes; before its first copy is there, an image of nothing."""
    if far.mirror.exists() and far.ack()["phase"] == "consistent":
        return far.mirror.read_bytes()
    return bytes(source.image.stat().st_size)


def _kill(source: Source, far: Far, victim: str) -> None:
    if victim == "driver" and source.driver is not None:
        kill(source.driver)
    elif victim == "replayer":
        far.kill()
    elif pid := source.coordinator_pid():
        os.kill(pid, 9)
