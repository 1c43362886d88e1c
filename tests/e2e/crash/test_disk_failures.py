"""Calls that fail in a real driver: EIO, no space, short writes, at the n-th of a label."""

import errno
import random

import pytest

from tests.dice import LONG
from tests.e2e.crash.machine import PATIENCE_S, Cruelty, Far, Machine, Source, eventually
from tests.e2e.crash.names import held
from tests.e2e.crash.scene import PAGE, SPOOL_BYTES, Scene
from tests.e2e.crash.writes import BLOCK, History, Load

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(1800)]

BLOCKS = 64
HALTING = [
    ("journal:sync", "eio"), ("journal:sync", "enospc"), ("journal:seal_sync", "eio"),
    ("image:sync", "eio"), ("image:write", "eio"), ("journal:publish", "eio"),
    ("journal:identity_sync", "eio"), ("checkpoint:sync", "eio"),
]  # fmt: skip
COPYING = ("staging:link", "switch:look", "switch:sync", "switch:size_sync")
"""A few of them: each failure in a row doubles the pause."""

WAITING = [
    ("journal:append", "short"), ("journal:iocbs", "short"), ("image:write", "enospc"),
    ("journal:create", "enospc"), ("journal:identity", "short"), ("journal:cut", "enospc"),
]  # fmt: skip


def begin(machine: Machine, seed: int) -> tuple[Source, Far, History]:
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    source.initialise(BLOCKS * BLOCK, far.url)
    far.start()
    return source, far, History(BLOCKS, seed)


def end_well(source: Source, far: Far, history: History) -> None:
    source.must_mount()
    history.recovered(source.volume.read_bytes())
    source.flush()
    source.unmount()
    assert far.mirror.read_bytes() == source.image.read_bytes()


def test_an_io_error_halts_the_volume_and_the_next_mount_has_all_that_was_promised(
    machine: Machine, seed: int
) -> None:
    dice = random.Random(seed)
    source, far, history = begin(machine, seed)
    for label, what in HALTING if LONG else [HALTING[0], *dice.sample(HALTING[1:], 3)]:
        nth = dice.choice((1, 2, 3, 5))
        print(label, what, nth)
        if not source.mount(Cruelty("mount", label, nth, do=what)):
            assert "aimfuse:" in machine.log("mount")
            continue
        history.recovered(source.volume.read_bytes())
        with Load(source.volume, history) as load:
            load.wait_for_trouble(PATIENCE_S)
            status = source.status()
        errors = {exc.errno for exc in (load.error, load.sync_error) if exc}
        assert status["state"] == "halted", (status["state"], status["reason"])
        assert status["reason"], "no reason given"
        assert errors == {errno.EIO}
        assert source.volume.read_bytes()  # What was accepted can still be read.
        source.try_to_unmount()
        assert source.exit_code() == 13, machine.log("mount")
    end_well(source, far, history)


def test_a_disk_that_is_full_for_a_moment_costs_time_only(machine: Machine, seed: int) -> None:
    dice = random.Random(seed)
    source, far, history = begin(machine, seed)
    for label, what in WAITING if LONG else dice.sample(WAITING, 2):
        nth = dice.choice((1, 2, 3, 5))
        print(label, what, nth)
        mounted = source.mount(Cruelty("mount", label, nth, do=what, times=2, once=False))
        if not mounted:
            continue
        history.recovered(source.volume.read_bytes())
        with Load(source.volume, history) as load:
            assert not load.wait_for_trouble(3.0), (load.error, load.sync_error)
        eventually(lambda: source.status()["state"] == "active", "there is room again")
        source.unmount()
        assert history.recovered(source.image.read_bytes()) == history.completed
    end_well(source, far, history)


def test_a_store_that_finds_its_disk_full_in_a_copy_and_its_switch_goes_on(
    machine: Machine, seed: int
) -> None:
    scene = Scene(machine, machine.root / "scene", random.Random(seed))
    scene.leave()
    scene.write(2 * SPOOL_BYTES // PAGE)
    old = held(scene.place / "away" / "v" / "mirror")
    scene.come_back(Cruelty("replay", ",".join(COPYING), do="enospc", once=False))
    mirror = scene.far.store / "mirror"
    eventually(lambda: ("switch:look", 1) in machine.steps(), "it looks for room")
    with scene.far.stopped():
        if ("switch:open", 1) not in machine.steps():  # It has not gone on since.
            assert held(mirror) == old
    scene.wait_mirrored()
    scene.end()
    assert {(label, 2) for label in COPYING} <= set(machine.steps()), "each was tried again"
    assert "No space left" in machine.log("replay")
    assert "Traceback" not in machine.log("replay")
