"""The scrub goes round at the pace that was asked for, over restarts, and does no harm."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.driver import scrub as scrubbing
from aimfuse.driver import stretch
from aimfuse.driver.engine import Engine
from aimfuse.driver.group import GroupLimits, GroupPaths, close_group, init_group, open_group
from aimfuse.driver.keeper import SpoolKeeper, SpoolLimits
from aimfuse.driver.pins import Pins
from aimfuse.driver.pump import Pump, PumpLimits
from aimfuse.driver.scrub import Scrub
from aimfuse.driver.verifier import Verifier
from aimfuse.units import MIB, SECOND_NS

DAY_S = 86400
PERIOD_S = 30.0 * DAY_S
DATA_BYTES = 12 * MIB


class Clock:
    """Shows Unix ns, and moves only when it is told to."""

    now_ns = 1_800_000_000 * SECOND_NS

    def __call__(self) -> int:
        return self.now_ns

    def pass_days(self, days: float) -> None:
        self.now_ns += int(days * DAY_S * SECOND_NS)


class RottenDisk(Disk):
    """Cannot read the image between two places."""

    rotten = range(0)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if offset in self.rotten:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(fd, length, offset)


@pytest.fixture
def disk() -> RottenDisk:
    return RottenDisk()


@pytest.fixture
def engine(tmp_path: Path, disk: RottenDisk) -> Iterator[Engine]:
    image = tmp_path / "v.img"
    with image.open("wb") as file:
        file.truncate(1 << 40)
        for at in (0, 1 << 30, 1 << 39):
            file.seek(at)
            file.write(os.urandom(DATA_BYTES // 3))
    paths = GroupPaths(image, tmp_path / "state", tmp_path / "state" / "spool")
    init_group(disk, paths)
    made = open_group(disk, paths, GroupLimits(MIB, 8 * MIB))
    yield made
    close_group(disk, made)


@pytest.fixture(autouse=True)
def small_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "BURST_BYTES", MIB)
    monkeypatch.setattr(stretch, "READ_BYTES_MAX", MIB)
    monkeypatch.setattr(scrubbing, "REST", 0.0)
    monkeypatch.setattr(scrubbing, "HURRY", 1e12)  # The test's clock is faster than the real one.


def scrub_of(engine: Engine, state: Path, clock: Clock) -> Scrub:
    limits = SpoolLimits(64 * MIB, 0, MIB)
    keeper = SpoolKeeper(Disk(), engine, state / "spool", limits, Pins(Disk(), state))
    pump = Pump(engine, keeper, PumpLimits(0.01, 1.0, 5.0))
    return Scrub(Disk(), state, engine, Verifier(engine, pump), PERIOD_S, clock)


async def work_off(scrub: Scrub) -> int:
    """Do all the bursts that are due; return how many bytes they hashed."""
    before, rounds = scrub.status()["done_bytes"], scrub.status()["rounds"]
    while scrub.is_due() and scrub.status()["rounds"] == rounds:
        await scrub.burst()
    return int(scrub.status()["done_bytes"] - before)


async def test_a_round_takes_the_time_that_was_asked_for(engine: Engine, tmp_path: Path) -> None:
    clock = Clock()
    scrub = scrub_of(engine, tmp_path / "state", clock)
    assert not scrub.is_due()
    for day in range(1, 30):
        clock.pass_days(1)
        await work_off(scrub)
        even = DATA_BYTES * day / 30
        assert abs(scrub.status()["done_bytes"] - even) <= 2 * MIB
    clock.pass_days(1.01)
    await work_off(scrub)
    assert scrub.status()["rounds"] == 1


async def test_the_place_is_kept_over_restarts(engine: Engine, tmp_path: Path) -> None:
    clock, state = Clock(), tmp_path / "state"
    scrub = scrub_of(engine, state, clock)
    assert not scrub.is_due()
    clock.pass_days(12)
    assert await work_off(scrub) > 0
    before = scrub.status()
    again = scrub_of(engine, state, clock)
    assert again.status() == before
    assert not again.is_due()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"volume": "x"}', b'{"other": 1}'])
async def test_a_place_that_cannot_be_read_begins_a_round(
    engine: Engine, tmp_path: Path, content: bytes
) -> None:
    state = tmp_path / "state"
    (state / "scrub.json").write_bytes(content)
    assert scrub_of(engine, state, Clock()).status()["done_bytes"] == 0


async def test_a_scrub_that_is_off_or_whose_clock_went_back_does_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    clock = Clock()
    scrub = scrub_of(engine, tmp_path / "state", clock)
    assert not scrub.is_due()
    clock.pass_days(20)
    assert scrub.is_due()
    scrub.period_s = 0
    assert not scrub.is_due()
    scrub.period_s = PERIOD_S
    clock.pass_days(-300)
    assert not scrub.is_due()
    clock.pass_days(29)
    assert scrub.is_due()


@pytest.mark.expects_warnings
async def test_what_the_image_cannot_be_read_of_is_named_until_it_can(
    engine: Engine, tmp_path: Path, disk: RottenDisk
) -> None:
    clock = Clock()
    scrub = scrub_of(engine, tmp_path / "state", clock)
    scrub.is_due()
    disk.rotten = range(MIB, 2 * MIB)
    clock.pass_days(31)
    await work_off(scrub)
    named = scrub.status()["unreadable"]
    assert {one["volume"] for one in named} == {"v.img"}
    assert sum(one["length"] for one in named) == MIB
    disk.rotten = range(0)
    clock.pass_days(31)
    await work_off(scrub)
    assert scrub.status()["unreadable"] == []
    assert json.loads((tmp_path / "state" / "scrub.json").read_bytes())["rounds"] == 2
