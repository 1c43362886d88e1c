"""A mirror is held to the VERIFY records of its journal: what differs is named, for good.

What differs stops nothing. What is compared is what the mirror holds at that very record, also
where a file is executed a second time.
"""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.journal.records import RecordType
from aimfuse.journal.verify import Hashed, encode_hashes
from aimfuse.replay.state import Phase
from aimfuse.replay.verified import Verified
from tests.dice import LONG
from tests.replay import recorder
from tests.replay.crashes import copy_store, run_into, steps_of
from tests.replay.faults import Steps, dying
from tests.replay.histories import Driver
from tests.replay.source import Record, Source, deliver, mirror_of
from tests.replay.stores import begin, begun, catch_up, made_source, opened, report

Named = list[tuple[int, int, int]]


def found_in(store: Path, disk: Disk | None = None) -> Named:
    """Replay what is there; return volume, offset and length of what differs."""
    said = report(catch_up(store, disk))["verified"]
    return [(one["volume"], one["offset"], one["length"]) for one in said["mismatches"]]


def known_of(store: Path) -> Verified:
    with opened(store) as session:
        session.round()
        return session.store.state.verified


def flip(store: Path, volume: int, at: int) -> None:
    """Change one bit of the mirror behind the replayer's back."""
    path = store / "volumes" / f"{volume:08d}"
    with path.open("r+b") as file:
        file.seek(at)
        (held,) = file.read(1)
        file.seek(at)
        file.write(bytes([held ^ 0x10]))


def busy(source: Source) -> None:
    """Change volume 1 around VERIFY records of it, in one file."""
    source.verify(1)
    source.write(1, 100, b"a" * 3000)
    source.verify(1)
    source.zero(1, 0, 4096)
    source.truncate(1, 2000)
    source.verify(1)
    source.truncate(1, 20_000)
    source.write(1, 9000, b"b" * 5000)
    source.verify(1)
    second = source.create("second", 6000)
    source.write(second, 1, b"c" * 4097)
    source.verify(second)
    source.write(second, 0, b"d" * 6000)
    source.unlink(second)


def test_a_sound_mirror_compares_at_every_record(source: Source, store: Path) -> None:
    busy(source)
    deliver(store, source.roll())
    assert found_in(store) == []
    assert mirror_of(store) == source.snapshot()
    known = known_of(store)
    assert (known.epoch, known.since) == (1, source.number)
    assert 0 < known.seq <= source.seq


@pytest.mark.parametrize("is_hole", [True, False], ids=["hole", "data"])
def test_a_flipped_bit_anywhere_is_named_by_its_range(tmp_path: Path, *, is_hole: bool) -> None:
    source = made_source(tmp_path / "spool")
    if not is_hole:
        source.write(1, 0, random.Random(1).randbytes(20_000))
    source.truncate(1, 20_000)
    source.roll()
    prepared = tmp_path / "prepared"
    begin(prepared, source)
    source.verify(1)
    file = source.roll()
    for at in (0, 1, 4095, 4096, 12_345, 16_384, 19_999):
        store = tmp_path / f"store-{at}"
        copy_store(prepared, store)
        flip(store, 1, at)
        deliver(store, file)
        assert found_in(store) == [(1, at - at % 4096, min(4096, 20_000 - at + at % 4096))]
        shutil.rmtree(store)


def test_a_mismatch_stops_nothing_and_is_remembered(source: Source, store: Path) -> None:
    flip(store, 1, 10)
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store) == [(1, 0, 4096)]
    source.write(1, 4500, b"later")
    deliver(store, source.roll())
    session = catch_up(store)
    assert session.store.state.phase is Phase.CONSISTENT
    assert [one["name"] for one in report(session)["verified"]["mismatches"]] == ["v.img"]
    assert known_of(store).mismatches[0].offset == 0


def test_a_range_that_compares_again_is_right_again(source: Source, store: Path) -> None:
    flip(store, 1, 10)
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store) == [(1, 0, 4096)]
    flip(store, 1, 10)
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store) == []


def test_of_two_records_of_a_range_in_one_file_the_later_one_counts(
    source: Source, store: Path
) -> None:
    flip(store, 1, 10)
    source.verify(1)
    source.write(1, 0, b"over it" * 2)
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store) == []


def test_what_was_written_again_is_right_and_what_the_mirror_held_can_be_had(
    source: Source, store: Path, tmp_path: Path
) -> None:
    right = bytes(source.volumes[1].data)
    flip(store, 1, 10)
    edited = mirror_of(store)["v.img"]
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store) == [(1, 0, 4096)]
    named = (1, source.seq)
    source.write(1, 0, right[:4096])
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store) == []
    assert mirror_of(store) == {"v.img": right}
    assert recorder.restored(store, recorder.at(named), tmp_path / "out") == {"v.img": edited}


def test_a_copy_of_the_range_makes_it_right_again(source: Source, store: Path) -> None:
    flip(store, 1, 10)
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store) == [(1, 0, 4096)]
    deliver(store, *source.resync([], source.number, whole=True))
    assert found_in(store) == []
    assert known_of(store).since == 0
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store) == []
    assert known_of(store).since == source.number


def test_a_mirror_that_was_cut_or_removed_in_part_is_noticed(source: Source, store: Path) -> None:
    source.write(1, 0, b"x" * 5000)
    deliver(store, source.roll())
    catch_up(store)
    os.truncate(store / "volumes" / "00000001", 4100)
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store) == [(1, 4096, 904)]


def test_a_removed_volume_takes_its_mismatches_along(source: Source, store: Path) -> None:
    second = source.create("second", 9000)
    deliver(store, source.roll())
    catch_up(store)
    flip(store, second, 8999)
    source.verify(second)
    deliver(store, source.roll())
    assert found_in(store) == [(second, 8192, 808)]
    source.truncate(second, 8200)
    deliver(store, source.roll())
    assert found_in(store) == [(second, 8192, 8)]
    source.unlink(second)
    deliver(store, source.roll())
    assert found_in(store) == []


def test_before_a_store_is_consistent_nothing_is_compared(tmp_path: Path) -> None:
    source, store = made_source(tmp_path / "spool"), tmp_path / "store"
    sync = [*source.sync(to=2)]
    source.verify(1)
    source.write(1, 0, b"x")
    second = source.roll()
    deliver(store, *sync)
    catch_up(store)
    flip(store, 1, 4999)
    deliver(store, second)
    assert found_in(store) == []
    assert known_of(store).since == 0


def test_hashes_of_another_kind_are_not_compared_and_refuse_nothing(
    source: Source, store: Path
) -> None:
    for payload in (b"", b"{}", b"[1]", b'{"ranges":[[0,1]]}', b'{"ranges":[[0,4,"ab"]]}',
                    b'{"ranges":[[0,-4,""]]}', b'{"ranges":[[9,4,""],[0,4,""]]}',
                    encode_hashes([Hashed(0, 1 << 40, bytes(32))])):  # fmt: skip
        source.pending.append(Record(RecordType.VERIFY, 1, 0, 0, payload))
    deliver(store, source.roll())
    session = catch_up(store)
    assert not session.halted
    assert session.store.state.verified == Verified()


def test_a_store_killed_at_any_step_never_finds_a_mismatch_that_is_none(tmp_path: Path) -> None:
    source, prepared = made_source(tmp_path / "spool"), tmp_path / "prepared"
    source.write(1, 0, b"before" * 800)
    source.roll()
    begin(prepared, source)
    busy(source)
    first = source.roll()
    busy_again = random.Random(5)
    for _ in range(6):
        source.write(1, busy_again.randrange(15_000), busy_again.randbytes(2000))
        source.verify(1)
    deliver(prepared, first, source.roll())
    for die_at, label in enumerate(steps_of(prepared, tmp_path)):
        store = tmp_path / f"killed-{die_at}"
        copy_store(prepared, store)
        run_into(dying(die_at), store)
        assert found_in(store) == [], label
        assert mirror_of(store) == source.snapshot(), label
        shutil.rmtree(store)


def test_after_a_crash_what_was_not_compared_is_not_said_to_have_been(tmp_path: Path) -> None:
    source, prepared = made_source(tmp_path / "spool"), tmp_path / "prepared"
    begin(prepared, source)
    source.verify(1)
    source.write(1, 0, b"behind it")
    deliver(prepared, source.roll())
    labels = steps_of(prepared, tmp_path)
    run_into(dying(labels.index("apply:size") if "apply:size" in labels else
                   labels.index("apply:sync")), prepared)  # fmt: skip
    catch_up(prepared)
    assert known_of(prepared).since == 0


class RottenDisk(Steps):
    """Cannot read a stretch of a volume's data any more."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if offset == 4096 and Path(f"/proc/self/fd/{fd}").readlink().name == "00000001":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(fd, length, offset)


def test_what_the_disk_cannot_read_any_more_differs(source: Source, store: Path) -> None:
    source.write(1, 0, b"x" * 5000)
    deliver(store, source.roll())
    catch_up(store)
    source.verify(1)
    deliver(store, source.roll())
    assert found_in(store, RottenDisk()) == [(1, 4096, 904)]


def test_many_mismatches_are_kept_as_few_ranges_that_hold_them_all(tmp_path: Path) -> None:
    source = made_source(tmp_path / "spool")
    source.write(1, 0, os.urandom(200 * 4096))
    source.roll()
    store = begun(tmp_path / "store", source)
    for at in range(0, 200, 2):
        flip(store, 1, at * 4096)
    source.verify(1)
    deliver(store, source.roll())
    found = found_in(store)
    assert len(found) == 64
    covered = {page for _v, at, n in found for page in range(at // 4096, (at + n) // 4096)}
    assert set(range(0, 200, 2)) <= covered


def scribbled(source: Source, dice: random.Random) -> Path:
    """Make a file of random changes, with VERIFY records between them."""
    driver = Driver(source)
    for _ in range(dice.randrange(12)):
        kind = dice.choice(["write", "write", "zero", "truncate", "create", "rename", "unlink"])
        driver.act((kind, dice.randrange(8), dice.randrange(20_000), dice.randrange(1, 9000)))
        if dice.random() < 0.6:
            driver.act(("verify", dice.randrange(8), 0, 0))
    return source.roll()


@pytest.mark.parametrize("seed", range(1000 if LONG else 12))
def test_at_random_no_crash_makes_a_mismatch_and_no_flipped_bit_goes_unnoticed(
    tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    source, store = made_source(tmp_path / "spool"), tmp_path / "store"
    source.write(1, 0, dice.randbytes(9000))
    source.roll()
    begin(store, source)
    for _ in range(3):
        deliver(store, *(scribbled(source, dice) for _file in range(2)))
        run_into(dying(dice.randrange(150)), store)
        assert found_in(store) == []
        assert mirror_of(store) == source.snapshot()
    volume = source.create("last", 0)
    source.write(volume, 5000, dice.randbytes(3000))
    source.truncate(volume, 40_000)
    deliver(store, source.roll())
    catch_up(store)
    volume = dice.choice([one for one, held in source.volumes.items() if held.data])
    at = dice.randrange(len(source.volumes[volume].data))
    flip(store, volume, at)
    for one in source.volumes:
        source.verify(one)
    deliver(store, source.roll())
    ((named, offset, length),) = found_in(store)
    assert named == volume
    assert offset <= at < offset + length <= offset + 4096
