"""SIGKILL of coordinator, replayer and server at labelled steps, and of everybody at any moment.

What runs when: always, a relay, in which each process dies at every label that it comes by, the
first time. With AIMFUSE_SWEEP=long also one life for each label and its first, second and
fourth time, with the mirror from nothing and to its end.
"""

import random
import time
from dataclasses import replace

import pytest

from aimfuse.config import DestinationConfig
from tests.dice import LONG
from tests.e2e.crash.machine import Cruelty, Far, Machine, Source, kill
from tests.e2e.crash.served import Served
from tests.e2e.crash.writes import BLOCK, History, Load

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(1800)]

BLOCKS = 64
ROLES = "ship,replay,serve"
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
    far.finish()  # And tidy up what it was just writing.
    assert not far.unfinished()
    print(cruelty, "not met" if machine.armed.exists() else "died")


COORDINATOR = {
    "ship:lock_pid", "retention:open", "sync:mkdir", "sync:rename", "cursor:rename",
    "cursor:sync", "status:rename", "sync:unlink", "deliver:source", "deliver:write",
    "deliver:sync", "deliver:rename", "deliver:sync-dir", "deliver-small:rename",
}  # fmt: skip
REPLAYER = {
    "store:mkdir", "work:sync", "work:rename", "work:sync_dir", "inbox:unlink", "apply:write",
    "apply:sync", "store-state:sync", "store-state:rename", "mirror:link", "mirror:rename",
    "ack:rename", "work:drop",
}  # fmt: skip
SERVER = {
    "serve:host-key:rename", "serve:mkdir", "serve:open", "serve:write", "serve:sync",
    "serve:rename",
}  # fmt: skip


def relay(machine: Machine, far: Far, seed: int, roles: str) -> dict[str, set[str]]:
    """Mirror a volume while all of *roles* die again and again; return where each has died."""
    cruelty = Cruelty(roles, do="relay", once=False)
    source = Source(machine, machine.root)
    history = History(BLOCKS, seed)
    source.initialise(BLOCKS * BLOCK)
    far.start(cruelty)
    where = far.destination() if isinstance(far, Served) else DestinationConfig("v", far.url)
    source.configure(lambda old: replace(old, destinations=(where,)))
    source.must_mount(cruelty)
    for _ in range(2):
        with Load(source.volume, history) as load:
            assert not load.wait_for_trouble(0.3), "the application noticed"
        source.flush()
    image = source.volume.read_bytes()
    assert far.mirror.read_bytes() == image
    assert history.recovered(image) == history.completed == len(history.writes)
    source.unmount()
    assert far.mirror.read_bytes() == source.image.read_bytes() == image
    far.kill()
    far.finish()  # And tidy up what it was just writing.
    assert not far.unfinished()
    met = {role: machine.met(role) for role in roles.split(",")}
    for role, labels in met.items():
        print(role, "died at", len(labels), "labels:", *sorted(labels))
    return met


def test_coordinator_and_replayer_die_once_at_every_step_and_it_costs_nothing_but_time(
    machine: Machine, seed: int
) -> None:
    met = relay(machine, Far(machine, machine.root), seed, "ship,replay")
    assert met["ship"] >= COORDINATOR, COORDINATOR - met["ship"]
    assert met["replay"] >= REPLAYER, REPLAYER - met["replay"]


def test_a_server_dies_once_at_every_step_and_it_costs_nothing_but_time(
    machine: Machine, seed: int
) -> None:
    """Each time its replayer dies with it, wherever that was."""
    met = relay(machine, Served(machine, machine.root), seed, ROLES if LONG else "serve")
    assert met["serve"] >= SERVER, SERVER - met["serve"]


if LONG:

    @pytest.mark.parametrize("role", ["ship", "replay"])
    def test_a_process_killed_at_any_step_costs_nothing_but_time(
        machine: Machine, seed: int, role: str
    ) -> None:
        dice = random.Random(seed)
        live(machine, "rehearsal", seed, Cruelty(role, NEVER))
        steps = machine.steps()
        assert len(steps) > 20, steps
        for label, nth in steps:
            live(machine, f"{label}-{nth}", dice.randrange(1000), Cruelty(role, label, nth))


def test_everybody_killed_at_any_moment_loses_nothing_that_was_synced(
    machine: Machine, seed: int
) -> None:
    dice = random.Random(seed)
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    history = History(BLOCKS, seed)
    source.initialise(BLOCKS * BLOCK, far.url)
    far.start()
    lives = 40 if LONG else 4
    for number in range(lives):
        source.must_mount()
        history.recovered(source.volume.read_bytes())
        if number == lives // 2:
            source.flush()  # Before this the first copy may be on its way, from now on it is there.
        with Load(source.volume, history) as load:
            load.wait_for_trouble(dice.uniform(0.05, 1.0))
            for victim in dice.sample(("driver", "coordinator", "replayer"), dice.randint(1, 3)):
                _kill(source, far, victim)
                time.sleep(dice.choice((0.0, 0.0, 0.1)))
            load.wait_for_trouble(dice.uniform(0.0, 0.3))
        source.kill()
        far.kill()
        far.finish()  # Killed in the middle of a file it leaves that half applied.
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
    else:
        source.kill_coordinator()
