"""Small state in two slots: old or new after any crash, and never mixed."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.disk import Disk
from aimfuse.errors import StateLost
from aimfuse.journal.slots import Slots
from tests.disks.cuts import mixtures
from tests.disks.faults import Crash, Fault
from tests.disks.simdisk import SimDisk

ROOT = Path("/state")
BASE = ROOT / "checkpoint"
SLOTS = (ROOT / "checkpoint.0", ROOT / "checkpoint.1")

LONG = "x" * 9000  # More than two pages, so that a slot can be torn between them.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def slots(disk: SimDisk) -> Slots:
    return Slots(disk, BASE, "s")


def disk_after(*numbers: int, pad: str = "") -> SimDisk:
    disk = SimDisk(ROOT)
    writer = slots(disk)
    for number in numbers:
        writer.write({"n": number, "pad": pad})
    return disk


def number_in(disk: SimDisk) -> int | None:
    state = slots(disk).read()
    return None if state is None else int(state["n"])


def test_before_the_first_write_there_is_none() -> None:
    disk = SimDisk(ROOT)
    assert not slots(disk).exists()
    assert slots(disk).read() is None


class OvertakenDisk(Disk):
    """A reader's disk on which a writer gets a turn before each of the reader's calls."""

    def __init__(self, *turns: Callable[[], object]) -> None:
        self._turns = list(turns)

    def open(self, label: str, path: Path, flags: int, mode: int = 0o600) -> int:
        self._next_turn()
        return super().open(label, path, flags, mode)

    def exists(self, path: Path) -> bool:
        self._next_turn()
        return super().exists(path)

    def _next_turn(self) -> None:
        if self._turns:
            self._turns.pop(0)()


def test_a_state_that_is_first_written_while_somebody_looks_is_not_lost(tmp_path: Path) -> None:
    writer = Slots(Disk(), tmp_path / "c", "w")
    disk = OvertakenDisk(int, int, lambda: writer.write({"n": 1}))
    assert Slots(disk, tmp_path / "c", "r").read() == {"n": 1}


def test_slots_that_were_half_written_one_after_the_other_are_not_lost(tmp_path: Path) -> None:
    writer = Slots(Disk(), tmp_path / "c", "w")
    writer.write({"n": 1})
    writer.write({"n": 2})
    zero, one = tmp_path / "c.0", tmp_path / "c.1"
    whole = zero.read_bytes()

    def next_write() -> None:
        zero.write_bytes(whole)
        one.write_bytes(one.read_bytes()[:30])

    disk = OvertakenDisk(lambda: zero.write_bytes(whole[:30]), next_write)
    assert Slots(disk, tmp_path / "c", "r").read() == {"n": 2}


def test_writes_alternate_between_the_two_files() -> None:
    disk = disk_after(1, 2, 3)
    assert disk.labels.count("s:sync_dir") == 2
    states = [json.loads(disk.contents(path)[24:]) for path in SLOTS]
    assert [state["n"] for state in states] == [2, 3]
    assert number_in(disk) == 3


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=4))
def test_what_was_written_last_is_read(states: list[dict[str, object]]) -> None:
    disk = SimDisk(ROOT)
    for state in states:
        fresh = slots(disk)
        fresh.read()
        fresh.write(state)
        assert slots(disk).read() == state


@pytest.mark.parametrize("torn_pages", [False, True])
@pytest.mark.parametrize("pad", ["", LONG])
@pytest.mark.parametrize("before", [0, 1, 2, 5])
def test_a_power_cut_at_any_step_leaves_the_old_state_or_the_new(
    before: int, pad: str, torn_pages: bool
) -> None:
    for stop in range(6):
        disk = disk_after(*range(1, before + 1), pad=pad).kill()
        disk.torn_pages = torn_pages
        writer = slots(disk)
        writer.read()
        disk.stop_at(stop + len(disk.labels))
        allowed = {before or None, before + 1}
        try:
            writer.write({"n": before + 1, "pad": pad})
            allowed = {before + 1}
        except Crash:
            pass
        for name, choose in mixtures(disk.units(), every_up_to=512):
            cut = disk.power_cut(choose)
            assert number_in(cut) in allowed, (name, disk.labels[-1])


def test_a_state_that_a_killed_program_left_in_the_cache_does_not_cost_the_durable_one() -> None:
    """Killed while writing 4, started again, power cut while writing the next one."""
    for stop, second in [(kill, cut) for kill in range(5) for cut in range(5)]:
        disk = disk_after(1, 2, 3, pad=LONG)
        disk.torn_pages = True
        write_until(disk, stop, 4)
        again = disk.kill()
        seen = number_in(again)
        assert seen in {3, 4}
        write_until(again, second, 5)
        for name, choose in mixtures(again.units(), random_count=20):
            found = number_in(again.power_cut(choose))
            assert found is not None, name
            assert found >= 3, f"{name}: {found} after {seen} had been read"


def write_until(disk: SimDisk, stop: int, number: int) -> None:
    writer = slots(disk)
    writer.read()
    disk.stop_at(len(disk.labels) + stop)
    try:
        writer.write({"n": number, "pad": LONG})
    except Crash:
        return


@pytest.mark.parametrize("damaged", [0, 1])
def test_cut_at_any_byte_the_other_slot_counts(damaged: int) -> None:
    whole = disk_after(1, 2)
    data = whole.contents(SLOTS[damaged])
    for keep in range(len(data)):
        disk = whole.kill()
        disk.plant(SLOTS[damaged], data[:keep])
        assert number_in(disk) == (2 if damaged else 1)


@pytest.mark.parametrize("damaged", [0, 1])
def test_every_flipped_bit_makes_the_other_slot_count(damaged: int) -> None:
    whole = disk_after(1, 2)
    data = whole.contents(SLOTS[damaged])
    for bit in range(8 * len(data)):
        disk = whole.kill()
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        disk.plant(SLOTS[damaged], bytes(bad))
        assert number_in(disk) == (2 if damaged else 1)


@pytest.mark.parametrize("spoil", [b"", bytes(100), b"AIM-SLOT" + bytes(16)])
def test_without_a_whole_slot_it_refuses(spoil: bytes) -> None:
    disk = disk_after(1, 2)
    for path in SLOTS:
        disk.plant(path, spoil)
    with pytest.raises(StateLost, match="checkpoint"):
        slots(disk).read()


def test_a_slot_that_cannot_be_read_is_no_reason_to_take_the_older_one() -> None:
    for label in ("s:read", "pread"):
        disk = disk_after(1, 2)
        disk.inject(Fault(errno.EIO, label))
        with pytest.raises(OSError, match="Input/output"):
            slots(disk).read()


@pytest.mark.parametrize("label", ["s:open", "s:write", "s:sync", "s:sync_dir"])
def test_after_a_failed_write_the_old_state_counts_until_a_write_succeeds(label: str) -> None:
    disk = disk_after(1).kill()
    writer = slots(disk)
    writer.read()
    disk.inject(Fault(errno.EIO, label, short_bytes=10))
    with pytest.raises(OSError, match="Input/output"):
        writer.write({"n": 2})
    assert number_in(disk.power_cut()) == 1
    writer.write({"n": 3})
    assert number_in(disk.power_cut()) == 3
