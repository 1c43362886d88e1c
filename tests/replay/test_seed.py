"""A store is carried to another place: whole, checked, and however often it is interrupted."""

import errno
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError, BusyError, StoreError, UsageError
from aimfuse.replay.seed import PART, SEED, finish_seed, import_seed, reopen_seed
from aimfuse.replay.store import Store
from tests.disks.faults import Crash
from tests.replay.faults import Steps, dying, failing
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import begun, catch_up


def quiet(_line: str) -> None:
    """Say nothing."""


@pytest.fixture
def source(tmp_path: Path) -> Source:
    made = Source(tmp_path / "spool")
    made.create("v.img", 5000)
    made.write(1, 4000, b"\xee" * 700)
    second = made.create("second", 9000 + (1 << 20))
    made.write(second, 1 << 20, b"two" * 100)
    made.roll()
    return made


@pytest.fixture
def seed(tmp_path: Path, source: Source) -> Path:
    made = begun(tmp_path / "seed", source)
    finish_seed(Disk(), made, 1, quiet)
    return made


def take(seed: Path, store: Path, disk: Disk | None = None) -> None:
    import_seed(disk or Disk(), seed, store, quiet)


def test_what_was_carried_takes_the_next_file(seed: Path, tmp_path: Path, source: Source) -> None:
    store = tmp_path / "store"
    take(seed, store)
    assert not (store / PART).exists()
    assert mirror_of(store) == source.snapshot()
    holes = (store / "volumes" / "00000002").stat()
    assert holes.st_blocks * 512 <= 1 << 19
    source.write(1, 0, b"next")
    deliver(store, source.roll())
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_an_import_that_dies_at_any_step_is_finished_by_the_next(
    seed: Path, tmp_path: Path, source: Source
) -> None:
    counter = Steps()
    take(seed, tmp_path / "rehearsal", counter)
    assert len(counter.labels) > 20
    for at in range(len(counter.labels)):
        store = tmp_path / f"killed-{at}"
        with pytest.raises(Crash):
            take(seed, store, dying(at))
        take(seed, store)
        assert mirror_of(store) == source.snapshot(), counter.labels[at]
        assert not (store / PART).exists()
        store = tmp_path / f"full-{at}"
        try:
            take(seed, store, failing(at, errno.ENOSPC))
        except (OSError, AimfuseError):
            take(seed, store)
        assert mirror_of(store) == source.snapshot(), counter.labels[at]


def test_a_volume_that_changed_on_the_way_is_refused(seed: Path, tmp_path: Path) -> None:
    with (seed / "volumes" / "00000002").open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    with pytest.raises(StoreError, match="second is not what was exported"):
        take(seed, tmp_path / "store")
    assert not list((tmp_path / "store" / "mirror").iterdir())


def test_a_seed_that_went_on_is_refused_until_it_is_finished_again(
    seed: Path, tmp_path: Path, source: Source
) -> None:
    source.write(1, 0, b"more")
    deliver(seed, source.roll())
    catch_up(seed)
    with pytest.raises(StoreError, match="changed after it was exported"):
        take(seed, tmp_path / "store")
    with pytest.raises(StoreError, match="ends at file 2, the source counts on 3"):
        finish_seed(Disk(), seed, 3, quiet)
    finish_seed(Disk(), seed, 2, quiet)
    take(seed, tmp_path / "store")
    assert mirror_of(tmp_path / "store") == source.snapshot()


def test_an_unfinished_seed_and_a_damaged_one_say_what_to_do(seed: Path, tmp_path: Path) -> None:
    (seed / SEED).write_text('{"state": 1}')
    with pytest.raises(StoreError, match="damaged"):
        take(seed, tmp_path / "store")
    reopen_seed(Disk(), seed)
    with pytest.raises(UsageError, match="no finished seed"):
        take(seed, tmp_path / "store")


def test_a_store_is_made_where_there_is_a_place_for_it(seed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not there"):
        import_seed(Disk(), seed, tmp_path / "no" / "store", print)


def test_a_store_in_use_is_not_overwritten(seed: Path, tmp_path: Path, source: Source) -> None:
    store = begun(tmp_path / "store", source)
    source.write(1, 0, b"newer")
    deliver(store, source.roll())
    catch_up(store)
    with pytest.raises(StoreError, match="is a store already"):
        take(seed, store)
    assert mirror_of(store) == source.snapshot()


@pytest.mark.parametrize("which", ["seed", "store"])
def test_what_somebody_replays_is_left_alone(seed: Path, tmp_path: Path, which: str) -> None:
    (tmp_path / "store").mkdir()
    other = Store(Disk(), tmp_path / which)
    other.lock()
    try:
        with pytest.raises(BusyError):
            take(seed, tmp_path / "store")
    finally:
        other.close()
