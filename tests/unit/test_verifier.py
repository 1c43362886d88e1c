"""Hashing a volume while it is written to: what a record says held at its very position."""

import os
import random
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
from aimfuse.driver.verifier import Verifier
from aimfuse.driver.volumes import Volume
from aimfuse.journal.reader import read_sealed
from aimfuse.journal.records import RecordType
from aimfuse.journal.spool import sealed_names
from aimfuse.journal.verify import decode_hashes, hash_of
from aimfuse.units import MIB

SIZE = 8 * MIB


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    image = tmp_path / "v.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
        file.seek(3 * MIB)
        file.write(os.urandom(MIB + 100))
    paths = GroupPaths(image, tmp_path / "state", tmp_path / "state" / "spool")
    init_group(Disk(), paths)
    made = open_group(Disk(), paths, GroupLimits(16 * MIB, 32 * MIB))
    yield made
    if made.journal.active is not None:
        close_group(Disk(), made)


def pump_of(engine: Engine, state: Path) -> Pump:
    limits = SpoolLimits(256 * MIB, 0, 16 * MIB)
    keeper = SpoolKeeper(Disk(), engine, state / "spool", limits, Pins(Disk(), state))
    return Pump(engine, keeper, PumpLimits(0.01, 1.0, 5.0))


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
        if dice.random() < 0.2:
            await pump.accept(0, lambda: engine.zero(volume, at, length))  # noqa: B023
        else:
            data = dice.randbytes(length)
            await pump.accept(length, lambda: engine.write(volume, at, data))  # noqa: B023
        pump.commit_soon()
        await trio.sleep(dice.choice([0, 0, 0.001]))


@pytest.mark.parametrize("seed", range(3))
async def test_what_a_record_says_held_at_its_position_whoever_wrote_meanwhile(
    engine: Engine, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    before = (tmp_path / "v.img").read_bytes()
    pump = pump_of(engine, tmp_path / "state")
    verifier = Verifier(engine, pump)
    volume = next(iter(engine.volumes))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        nursery.start_soon(write_at_random, engine, pump, volume, dice)
        for _ in range(3):
            at = 0
            while at < SIZE:
                piece = await verifier.piece(volume, at, SIZE)
                assert piece.end > at
                at = piece.end
        nursery.cancel_scope.cancel()
    close_group(Disk(), engine)
    assert check(tmp_path / "state" / "spool", before) >= 3 * SIZE
