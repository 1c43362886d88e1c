"""Stop a group's whole life before each of its disk steps, then cut the power in many ways.

Method: run a script once per step, with a disk that dies there; of what the disk may then hold
try nothing, everything, each unlost thing alone, each lost thing alone, and random mixtures,
and recover from each. `rig` checks the promises after every recovery.
"""

from collections.abc import Callable

import pytest

from aimfuse.errors import AimfuseError
from tests.crash.lives import AFTERLIFE, IMAGE_LIFE, SCRIPTS, every_crash, live
from tests.crash.rig import Rig
from tests.disks.cuts import keep_all, keep_none, keep_random, mixtures
from tests.disks.faults import Crash
from tests.disks.simdisk import SimDisk

GROUPS = sorted(SCRIPTS)


def cut_in_many_ways(rig: Rig, number: int, *, every_up_to: int = 16) -> None:
    units = rig.disk.units()
    for name, choose in mixtures(units, every_up_to=every_up_to, random_count=2, seed=number):
        try:
            rig.survivor(rig.disk.power_cut(choose))
        except Exception as exc:
            exc.add_note(f"step {number}, after {rig.disk.labels[-3:]}, {name}")
            raise


@pytest.mark.parametrize("group", GROUPS)
def test_a_power_cut_at_any_step_breaks_no_promise(group: str) -> None:
    for number, rig in enumerate(every_crash(group)):
        cut_in_many_ways(rig, number)


def test_torn_pages_break_no_promise_either() -> None:
    def tear(disk: SimDisk) -> None:
        disk.torn_pages = True

    for number, rig in enumerate(every_crash("image", prepare=tear)):
        for seed in range(4):
            rig.survivor(rig.disk.power_cut(keep_random(4 * number + seed)))


@pytest.mark.parametrize("group", GROUPS)
def test_a_kill_at_any_step_breaks_no_promise_nor_does_a_power_cut_later(group: str) -> None:
    for number, rig in enumerate(every_crash(group)):
        after = rig.survivor(rig.disk.kill())
        after.survivor(after.disk.power_cut(keep_random(number)))
        live(after, AFTERLIFE)
        after.recover(after.disk.power_cut(keep_random(number)))


@pytest.mark.parametrize("group", GROUPS)
def test_recovering_twice_is_recovering_once(group: str) -> None:
    for number, rig in enumerate(every_crash(group)):
        once = rig.survivor(rig.disk.power_cut(keep_random(number)))
        head, contents = once.engine.checkpoint.head, once.model.now
        for again in (once.disk.kill(), once.disk.power_cut(keep_none)):
            twice = once.survivor(again)
            assert twice.engine.checkpoint.head == head
            assert twice.model.now == contents


def recover_until(rig: Rig, disk: SimDisk, stop: int) -> SimDisk | None:
    """Let recovery die at a step; return the disk it leaves, None if it came to its end."""
    disk.stop_at(stop)
    try:
        rig.survivor(disk)
    except Crash:
        return disk
    return None


@pytest.mark.parametrize("group", GROUPS)
def test_a_recovery_that_dies_at_any_step_and_the_next_one_too_break_no_promise(
    group: str,
) -> None:
    tried = 0
    for number, rig in enumerate(every_crash(group)):
        if number % 24:  # Each recovery has many steps; other offsets come with other scripts.
            continue
        left = rig.disk.power_cut(keep_random(number))
        stop = 0
        while died := recover_until(rig, left.kill(), stop):
            for choose in (keep_none, keep_all, keep_random(stop)):
                second = died.power_cut(choose)
                rig.survivor(second.kill())
                again = recover_until(rig, second.kill(), (stop * 7 + number) % 20)
                if again:
                    rig.survivor(again.power_cut(keep_random(number)))
                    rig.survivor(again.kill())
            rig.survivor(died.kill())
            stop += 1
            tried += 1
    assert tried > 30


# The explorer has to convict what is wrong. Each of these is a protocol that people use.


def cut_everywhere(prepare: Callable[[SimDisk], None]) -> None:
    for number, rig in enumerate(every_crash("image", prepare=prepare)):
        rig.disk.on_write = None  # By what recovery finds, not by the watch on the image.
        cut_in_many_ways(rig, number, every_up_to=8)


NAIVE = {
    "an fsync that does not sync the journal": {"journal:sync"},
    "new journal files without a sync of their directory": {"journal:create_sync_dir"},
    "a header that is not synced before the file gets its name": {"journal:identity_sync"},
    "a seal that is not synced before the file is shown": {"journal:seal_sync", "journal:sync"},
    "a checkpoint without a sync of the image": {"image:sync"},
    "a checkpoint that is not synced before files are released": {"checkpoint:sync"},
}


@pytest.mark.parametrize("labels", NAIVE.values(), ids=NAIVE.keys())
def test_the_explorer_convicts(labels: set[str]) -> None:
    def ignore(disk: SimDisk) -> None:
        disk.ignored_syncs = frozenset(labels)

    with pytest.raises((AssertionError, AimfuseError)):
        cut_everywhere(ignore)


def test_the_watch_on_the_image_convicts_an_engine_that_applies_before_the_journal_is_durable() -> (
    None
):
    rig = Rig.create()
    live(rig, IMAGE_LIFE[:2])
    rig.engine.journal.durable_seq = rig.engine.journal.last_seq
    with pytest.raises(AssertionError, match="S4"):
        rig.do(("apply",))
