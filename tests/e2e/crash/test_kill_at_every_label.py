"""SIGKILL of the driver at labelled disk operations, life after life of one volume."""

import random
import signal
from dataclasses import dataclass

import pytest

from tests.dice import LONG
from tests.e2e.crash.fold import Fold
from tests.e2e.crash.machine import Cruelty, Far, Machine, Source, eventually
from tests.e2e.crash.writes import BLOCK, History, Load

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(1800)]

BLOCKS = 64
AT_THE_END = ("journal:unused",)
"""Labels of a clean end only, which takes long while the far side is frozen."""


@dataclass
class Life:
    """A volume over all its lives, with everything that is known about it from outside."""

    machine: Machine
    source: Source
    far: Far
    history: History
    fold: Fold

    def check_image(self) -> None:
        """Hold the recovered image, and what the mount shows, against the outside knowledge."""
        image = self.source.image.read_bytes()
        self.history.recovered(image)
        self.fold.follow(self.source.spool)
        assert bytes(self.fold.image) == image, "the image is not the fold of the journal"
        try:
            assert self.source.volume.read_bytes() == image
        except OSError:  # Its hour came while we looked.
            assert self.source.driver is not None
            assert self.source.driver.wait() == -signal.SIGKILL


def begin(machine: Machine, seed: int) -> Life:
    """Start a mirrored volume, and freeze the far side: from here on no journal file goes."""
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    source.initialise(BLOCKS * BLOCK, far.url)
    far.start()
    source.must_mount()
    history = History(BLOCKS, seed)
    with Load(source.volume, history) as load:
        load.wait_for_trouble(0.3)
    source.flush()
    source.unmount()
    eventually(lambda: far.mirror.read_bytes() == source.image.read_bytes(), "it is mirrored")
    mirror = far.mirror.read_bytes()
    number = far.ack()["applied"]["number"]
    history.recovered(mirror)
    return Life(machine, source, far, history, Fold(mirror, number))


def live_until_killed(life: Life, cruelty: Cruelty, wait_s: float) -> bool:
    """Mount, check, write, and end cleanly until the driver dies of it; tell whether it did."""
    source = life.source
    if source.mount(cruelty):
        life.check_image()
        with Load(source.volume, life.history) as load:
            died = load.wait_for_trouble(wait_s)
        if not died and cruelty.at in AT_THE_END:
            source.try_to_unmount()
    source.kill()
    return not life.machine.armed.exists()


def end_well(life: Life) -> None:
    """Recover a last time, let the mirror follow, and compare."""
    life.source.must_mount()
    life.check_image()
    life.source.flush()
    mirror, image = life.far.mirror.read_bytes(), life.source.image.read_bytes()
    assert mirror == image
    life.source.unmount()


def rehearse(life: Life) -> list[tuple[str, int]]:
    """Return the steps of a recovery, a loaded life and a clean end."""
    life.source.must_mount()
    with Load(life.source.volume, life.history) as load:
        load.wait_for_trouble(0.5)
    life.source.kill()
    assert not live_until_killed(life, Cruelty("mount", AT_THE_END[0], 99), 0.5)
    return life.machine.steps()


def test_what_was_synced_outlives_a_driver_killed_at_any_step(machine: Machine, seed: int) -> None:
    life = begin(machine, seed)
    dice = random.Random(seed)
    with life.far.stopped():
        steps = rehearse(life)
        labels = {label for label, _ in steps}
        assert {"journal:sync", "image:write", "journal:publish", "checkpoint:sync"} <= labels
        unmet = []
        chosen = steps if LONG else dice.sample(steps, 4)
        for label, nth in chosen:
            if not live_until_killed(life, Cruelty("mount", label, nth), 0.7):
                unmet.append(f"{label}:{nth}")
        print(f"{len(chosen)} steps, not reached: {unmet}")
    end_well(life)
