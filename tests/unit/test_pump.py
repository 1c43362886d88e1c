"""What the pump's tasks do once there is nothing left to do."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import CheckpointFile
from aimfuse.driver.engine import Engine
from aimfuse.driver.group import GroupLimits, GroupPaths, close_group, init_group, open_group
from aimfuse.driver.keeper import SpoolKeeper, SpoolLimits
from aimfuse.driver.ladder import Load, Policy
from aimfuse.driver.pins import Pins
from aimfuse.driver.pump import Pump, PumpLimits
from aimfuse.errors import BusyError
from aimfuse.journal.slots import Slots
from aimfuse.units import MIB

STEPS_MAX = 1000


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    image = tmp_path / "v.img"
    image.write_bytes(bytes(MIB))
    paths = GroupPaths(image, tmp_path / "state", tmp_path / "state" / "spool")
    init_group(Disk(), paths)
    made = open_group(Disk(), paths, GroupLimits(MIB, 8 * MIB))
    yield made
    close_group(Disk(), made)


class SmallDisk(Disk):
    """A disk with room for a few more writes, by what it says."""

    said_bytes = 7 * MIB

    def free_bytes(self, path: Path) -> int:
        del path
        return self.said_bytes


def pump_of(engine: Engine, state: Path, disk: Disk | None = None) -> Pump:
    disk = disk or Disk()
    limits = SpoolLimits(64 * MIB, 0, MIB)
    keeper = SpoolKeeper(disk, engine, state / "spool", limits, Pins(disk, state))
    return Pump(engine, keeper, PumpLimits(0.01, 1.0, 5.0))


def test_on_a_short_disk_nothing_is_kept_to_be_used_again(engine: Engine, tmp_path: Path) -> None:
    """Such files are not counted as free: a writer would wait for the space that they hold."""
    keeper = pump_of(engine, tmp_path / "state").keeper
    kept = tmp_path / "state" / "spool" / "free-00000001-000000000001"
    kept.write_bytes(b"old")
    keeper.release(Load())
    assert kept.exists()
    assert engine.journal.ready is None
    keeper.release(Load(is_disk_short=True))
    assert not kept.exists()
    have_ready(engine)
    assert engine.journal.ready is not None


def have_ready(engine: Engine) -> None:
    """Do what the pump's task would do, had it the time."""
    if engine.journal.ready is None:
        engine.journal.adopt(engine.journal.make_ready())


class Steps(trio.abc.Instrument):
    """Counts how often any task was given the processor."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.count += 1


@pytest.mark.expects_warnings
async def test_a_volume_that_halts_with_uncommitted_data_comes_to_rest(
    engine: Engine, tmp_path: Path
) -> None:
    pump = pump_of(engine, tmp_path / "state")
    steps = Steps()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        await trio.sleep(0.05)
        volume = next(iter(engine.volumes))
        engine.write(volume, 0, b"x" * 4096)
        pump.commit_soon()
        engine.halt("made up")
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(0.3)
        trio.lowlevel.remove_instrument(steps)
        nursery.cancel_scope.cancel()
    assert steps.count < STEPS_MAX


class FullDisk(Disk):
    """A disk without room for a checkpoint for a while; all else works."""

    refusals = 1

    def step(self, label: str) -> None:
        if label == "checkpoint:write" and self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.expects_warnings
async def test_a_checkpoint_without_room_is_waited_for_and_halts_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    pump = pump_of(engine, tmp_path / "state")
    engine._checkpoints = CheckpointFile(disk := FullDisk(), tmp_path / "state")  # noqa: SLF001
    engine._checkpoints.read()  # noqa: SLF001
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        engine.write(next(iter(engine.volumes)), 0, b"x" * 4096)
        nursery.start_soon(pump.checkpointed)
        with trio.fail_after(60):
            while disk.refusals == FullDisk.refusals or pump.admission.full is None:  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert not pump.admission.fits(4096), "what has no room is said to who writes"
            await pump.checkpointed()
            await pump.admission.room(4096)
        assert engine.halted is None
        assert engine.checkpoint.head.seq == 1
        nursery.cancel_scope.cancel()


async def test_once_it_has_ended_nobody_changes_the_engine(engine: Engine, tmp_path: Path) -> None:
    pump = pump_of(engine, tmp_path / "state")
    seq = engine.bookmark("accepted, not yet durable")
    pump.end()
    with pytest.raises(BusyError, match="unmounted"):
        await pump.admission.accept(4, lambda: engine.bookmark("late"))
    with pytest.raises(BusyError, match="unmounted"):
        await pump.durable(seq)
    with pytest.raises(BusyError, match="unmounted"):
        await pump.rolled()
    assert engine.journal.last_seq == seq
    assert engine.journal.durable_seq < seq


@pytest.mark.parametrize(("policies", "is_waited_for"), [
    ({"a": Policy("fold")}, True), ({"a": Policy("fold", is_awaited=False)}, False), ({}, False),
])  # fmt: skip
async def test_the_end_waits_for_no_destination_that_gets_nothing(
    engine: Engine, tmp_path: Path, policies: dict[str, Policy], *, is_waited_for: bool
) -> None:
    """One that is paused, kept for a mirror that joins later, or removed."""
    pump = pump_of(engine, tmp_path / "state")
    account = tmp_path / "state" / "destinations" / "a"
    account.mkdir()
    Slots(Disk(), account / "cursor", "cursor").write({"state": "shipping", "pin": 0})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        engine.bookmark("something")
        pump.commit_soon()
        await pump.rolled()
        nursery.cancel_scope.cancel()
    pump.keeper.policies = policies
    assert await pump.all_confirmed(0.0) is not is_waited_for


async def test_writes_that_come_faster_than_the_spool_is_looked_at_find_it_full_all_the_same(
    engine: Engine, tmp_path: Path
) -> None:
    pump = pump_of(engine, tmp_path / "state", SmallDisk())
    volume = next(iter(engine.volumes))
    written = 0
    have_ready(engine)
    while pump.admission.fits(4096):  # Nothing is made durable or sealed, and no second passes.
        engine.write(volume, 0, b"x" * 4096)
        written += 4096
        have_ready(engine)
        assert written < 7 * MIB, "more was accepted than can be made durable"
    assert "reserved" in str(pump.admission.full)
    assert written > 2 * MIB


async def test_an_image_with_holes_beside_its_spool_needs_the_room_once_more(
    engine: Engine, tmp_path: Path
) -> None:
    os.truncate(tmp_path / "v.img", 0)
    os.truncate(tmp_path / "v.img", MIB)
    pump = pump_of(engine, tmp_path / "state", SmallDisk())
    volume = next(iter(engine.volumes))
    written = 0
    have_ready(engine)
    while pump.admission.fits(4096):
        engine.write(volume, 0, b"x" * 4096)
        written += 4096
        have_ready(engine)
    assert written <= 3 * MIB // 2, "journal and image have to share what is not reserved"
    assert written > MIB
    assert "image" in str(pump.admission.full)


@pytest.mark.expects_warnings
async def test_what_is_full_has_room_for_the_largest_request_before_it_goes_on(
    engine: Engine, tmp_path: Path
) -> None:
    disk = SmallDisk()
    pump = pump_of(engine, tmp_path / "state", disk)
    have_ready(engine)
    async with trio.open_nursery() as nursery:
        disk.said_bytes = 4 * MIB + 100 * 1024
        assert pump.admission.fits(4096), "there is room for a small one"
        assert not pump.admission.fits(MIB), "but none for a large one"
        nursery.start_soon(pump.run)
        await trio.sleep(0.5)
        assert not pump.admission.fits(4096), "or small ones would keep the large one out for ever"
        disk.said_bytes = 10 * MIB
        with trio.fail_after(60):
            await pump.admission.room(MIB)
        nursery.cancel_scope.cancel()
