"""Hashing a volume while it is written to: what a record says held at its very position."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from aimfuse.disk import Disk
from aimfuse.driver.engine import Engine
from aimfuse.driver.group import GroupLimits, GroupPaths, close_group, init_group, open_group
from aimfuse.driver.keeper import SpoolKeeper, SpoolLimits
from aimfuse.driver.pins import Pins
from aimfuse.driver.pump import Pump, PumpLimits
from aimfuse.driver.verifier import Verifier
from aimfuse.driver.volumes import Volume
from aimfuse.journal.reader import read_sealed
from aimfuse.journal.records import RecordType
from aimfuse.journal.spool import sealed_names
from aimfuse.journal.verify import GRAIN_BYTES, decode_hashes, hash_of
from aimfuse.units import GIB, MIB, TIB
from tests.dice import LONG

SIZE = 8 * MIB
LIMITS = GroupLimits(16 * MIB, 32 * MIB, SIZE)


def opened(image: Path, state: Path, limits: GroupLimits = LIMITS) -> Engine:
    return open_group(Disk(), GroupPaths(image, state, state / "spool"), limits)


def begun(image: Path, state: Path, limits: GroupLimits = LIMITS) -> Engine:
    init_group(Disk(), GroupPaths(image, state, state / "spool"))
    return opened(image, state, limits)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    image = tmp_path / "v.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
        file.seek(3 * MIB)
        file.write(os.urandom(MIB + 100))
    return begun(image, tmp_path / "state")


def pump_of(engine: Engine, state: Path) -> Pump:
    limits = SpoolLimits(512 * MIB, 0, 16 * MIB)
    keeper = SpoolKeeper(Disk(), engine, state / "spool", limits, Pins(Disk(), state))
    return Pump(engine, keeper, PumpLimits(0.01, 1.0, 3600.0))


def check(spool: Path, before: bytes) -> int:
    """Play the journal on *before*; return how many bytes its VERIFY records are of."""
    state, compared = bytearray(before), 0
    for name in sealed_names(Disk(), spool):
        aim = read_sealed(Disk(), spool / name.sealed)
        for iocb in aim.records():
            at, length = iocb.offset, iocb.length
            if iocb.type is RecordType.WRITE:
                state[at : at + iocb.payload_bytes] = aim.payload(iocb)
            elif iocb.type is RecordType.ZERO:
                state[at : at + length] = bytes(length)
            elif iocb.type is RecordType.TRUNCATE:
                del state[length:]
                state.extend(bytes(length - len(state)))
            elif iocb.type is RecordType.VERIFY:
                for one in decode_hashes(bytes(aim.payload(iocb))):
                    held = bytes(state[one.offset : one.end])
                    assert len(held) == one.length
                    assert hash_of(held) == one.digest, (iocb.seq, one.offset)
                    compared += one.length
    return compared


async def write_at_random(engine: Engine, pump: Pump, volume: Volume, dice: random.Random) -> None:
    while True:
        length = dice.choice([512, 4096, 70_000, 300_000])
        at = dice.randrange(0, SIZE - length)
        kind = dice.random()
        if kind < 0.03:
            await pump.admission.accept(0, lambda: engine.truncate(volume, at))  # noqa: B023
            await pump.admission.accept(0, lambda: engine.truncate(volume, SIZE))
        elif kind < 0.2:
            await pump.admission.accept(0, lambda: engine.zero(volume, at, length))  # noqa: B023
        else:
            data = dice.randbytes(length)
            await pump.admission.accept(length, lambda: engine.write(volume, at, data))  # noqa: B023
        pump.commit_soon()
        await trio.sleep(dice.choice([0, 0, 0.001]))


async def verify_all(verifier: Verifier, volume: Volume) -> None:
    at = 0
    while at < volume.size_bytes:
        at = max(at + 1, (await verifier.piece(volume, at, SIZE)).end)


async def live(engine: Engine, state: Path, dice: random.Random) -> None:
    """Write at random and verify all of it meanwhile."""
    pump = pump_of(engine, state)
    verifier, volume = Verifier(engine, pump), next(iter(engine.volumes))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        nursery.start_soon(write_at_random, engine, pump, volume, dice)
        for _ in range(dice.randrange(1, 4)):
            await verify_all(verifier, volume)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(200 if LONG else 4))
async def test_what_a_record_says_held_there_whoever_wrote_meanwhile_and_over_a_crash(
    engine: Engine, tmp_path: Path, seed: int
) -> None:
    before = (tmp_path / "v.img").read_bytes()
    dice, state, crashed = random.Random(seed), tmp_path / "state", tmp_path / "crashed"
    await live(engine, state, dice)
    subprocess.run(["cp", "-a", state, crashed], check=True)
    shutil.copy(tmp_path / "v.img", tmp_path / "crashed.img")
    close_group(Disk(), engine)
    assert check(state / "spool", before) >= SIZE // 2

    again = opened(tmp_path / "crashed.img", crashed)
    await live(again, crashed, dice)
    close_group(Disk(), again)
    assert again.journal.epoch > engine.journal.epoch
    assert check(crashed / "spool", before) >= SIZE // 2


async def test_a_volume_that_is_removed_or_cut_meanwhile_is_done_with(tmp_path: Path) -> None:
    image = tmp_path / "images"
    image.mkdir()
    (image / "one").write_bytes(os.urandom(3 * MIB))
    engine = begun(image, tmp_path / "state", GroupLimits(MIB, 32 * MIB))
    volume = next(iter(engine.volumes))
    stretch = engine.begin_stretch(volume, 0, 3 * MIB)
    engine.truncate(volume, 100)
    stretch.hash()
    assert stretch.sound() == []
    assert stretch.touched() == [(0, 100)]
    engine.remove(volume)
    assert stretch.sound() == []
    assert stretch.touched() == []
    engine.end_stretch(stretch)
    close_group(Disk(), engine)
    assert not (image / "one").exists()


async def test_a_hole_of_any_size_costs_some_ranges_and_no_reading(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    with image.open("wb") as file:
        file.truncate(TIB)
        file.seek(TIB // 2)
        file.write(b"x")
    engine = begun(image, tmp_path / "state", GroupLimits(MIB, 32 * MIB))
    pump = pump_of(engine, tmp_path / "state")
    verifier, volume = Verifier(engine, pump), next(iter(engine.volumes))
    at = read_bytes = 0
    while at < TIB:
        piece = await verifier.piece(volume, at, TIB)
        at, read_bytes = piece.end, read_bytes + piece.read_bytes
    assert read_bytes <= 2 * GRAIN_BYTES
    assert engine.journal.last_seq <= TIB // (16 * GIB)
    close_group(Disk(), engine)
