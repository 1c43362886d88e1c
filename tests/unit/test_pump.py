"""What the pump's tasks do once there is nothing left to do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from aimfuse.disk import Disk
from aimfuse.driver.engine import Engine
from aimfuse.driver.group import GroupLimits, GroupPaths, close_group, init_group, open_group
from aimfuse.driver.keeper import SpoolKeeper, SpoolLimits
from aimfuse.driver.pins import Pins
from aimfuse.driver.pump import Pump, PumpLimits
from aimfuse.errors import BusyError
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


def pump_of(engine: Engine, state: Path) -> Pump:
    limits = SpoolLimits(64 * MIB, 0, MIB)
    keeper = SpoolKeeper(Disk(), engine, state / "spool", limits, Pins(Disk(), state, list))
    return Pump(engine, keeper, PumpLimits(0.01, 1.0, 5.0, "block"))


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


async def test_once_it_has_ended_nobody_changes_the_engine(engine: Engine, tmp_path: Path) -> None:
    pump = pump_of(engine, tmp_path / "state")
    seq = engine.bookmark("accepted, not yet durable")
    pump.end()
    with pytest.raises(BusyError, match="unmounted"):
        await pump.accept(4, lambda: engine.bookmark("late"))
    with pytest.raises(BusyError, match="unmounted"):
        await pump.durable(seq)
    with pytest.raises(BusyError, match="unmounted"):
        await pump.rolled()
    assert engine.journal.last_seq == seq
    assert engine.journal.durable_seq < seq
