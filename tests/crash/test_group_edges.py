"""Crashes where a group begins, ends cleanly, is taken anew, or finds its journal damaged."""

from pathlib import Path

import pytest

from aimfuse.driver.engine import Engine
from aimfuse.driver.group import close_group, drain, init_group, open_group
from aimfuse.errors import AimfuseError, CorruptRecord, ImageMismatch, JournalError, StateLost
from aimfuse.journal.reader import AimFile, check_sealed
from aimfuse.journal.records import RecordType
from tests.crash.lives import IMAGE_LIFE, V, live
from tests.crash.rig import FIRST_BYTES, IMAGE, LIMITS, SPOOL, STATE, Op, Rig, sealed_names
from tests.disks.cuts import keep_none, keep_random, mixtures
from tests.disks.faults import Crash
from tests.disks.simdisk import SimDisk
from tests.disks.simpath import SimPath
from tests.journal.samples import flipped

# The beginning.


def image_only() -> Rig:
    disk = SimDisk(Path(IMAGE.parent))
    disk.plant(Path(IMAGE), FIRST_BYTES)
    return Rig(disk)


def open_on(rig: Rig, disk: SimDisk, *, resync: bool = False) -> Engine:
    SimPath.use(disk)
    return open_group(disk, rig.paths, LIMITS, resync=resync)


def test_an_init_that_died_at_any_step_can_be_repeated_or_is_complete() -> None:
    step = 0
    while True:
        rig = image_only()
        rig.disk.stop_at(step)
        SimPath.use(rig.disk)
        try:
            init_group(rig.disk, rig.paths)
        except Crash:
            finished = False
        else:
            finished = True
        for name, choose in mixtures(rig.disk.units()):
            cut = rig.disk.power_cut(choose)
            try:
                engine = open_on(rig, cut)
            except AimfuseError:
                assert not finished, name
                init_group(cut, rig.paths)
                engine = open_on(rig, cut)
            volume = engine.volumes.named(V)
            assert volume is not None
            assert engine.read(volume, 0, len(FIRST_BYTES)) == FIRST_BYTES
        if finished:
            return
        step += 1


# The clean end.


def ended_rig() -> Rig:
    rig = Rig.create()
    live(rig, IMAGE_LIFE[:16])
    return rig


def test_a_power_cut_right_after_a_clean_end_does_not_make_the_image_look_changed() -> None:
    rig = ended_rig()
    rig.disk.lazy_times = True
    close_group(rig.disk, rig.engine)
    for name, choose in mixtures(rig.disk.units()):
        try:
            rig.survivor(rig.disk.power_cut(choose))
        except ImageMismatch as exc:
            exc.add_note(name)
            raise


def test_a_crash_at_any_step_of_a_clean_end_breaks_no_promise() -> None:
    step = 0
    while True:
        rig = ended_rig()
        rig.do(("write", V, 77, 700))
        rig.disk.stop_at(len(rig.disk.labels) + step)
        if live(rig, [("reopen",)]):
            return
        for _, choose in mixtures(rig.disk.units(), every_up_to=32, seed=step):
            rig.survivor(rig.disk.power_cut(choose))
        rig.survivor(rig.disk.kill())
        step += 1


# Taking a changed image as it is.


def changed_behind_our_back() -> Rig:
    rig = ended_rig()
    close_group(rig.disk, rig.engine)
    rig.disk = rig.disk.kill()
    rig.disk.plant(Path(IMAGE), b"changed" * 1000)
    return rig


def files_in(disk: SimDisk) -> list[AimFile]:
    paths = [SPOOL / name.sealed for name in sealed_names(disk)]
    return [check_sealed(path, disk.contents(path)) for path in paths]


def seal_all(disk: SimDisk, engine: Engine) -> list[AimFile]:
    """Have everything accepted sealed; return all files of the spool."""
    volume = next(iter(engine.volumes))
    engine.flush(volume)
    drain(engine)
    engine.retire()
    while engine.journal.closing:
        engine.finish_seal(engine.journal.seal_next())
    return files_in(disk)


def has_gap(files: list[AimFile]) -> bool:
    return any(record.type is RecordType.GAP for file in files for record in file.records())


def test_a_changed_image_is_refused_until_it_is_taken_as_it_is() -> None:
    rig = changed_behind_our_back()
    with pytest.raises(ImageMismatch, match=r"v\.img"):
        open_on(rig, rig.disk)
    engine = open_on(rig, rig.disk, resync=True)
    volume = engine.volumes.named(V)
    assert volume is not None
    assert engine.read(volume, 0, volume.size_bytes) == b"changed" * 1000
    assert has_gap(seal_all(rig.disk, engine))


def test_a_crash_while_an_image_is_taken_as_it_is_never_hides_that_history_is_broken() -> None:
    """Afterwards it is refused still, or the journal says that there is a gap."""
    step = 0
    while True:
        rig = changed_behind_our_back()
        rig.disk.stop_at(step)
        try:
            open_on(rig, rig.disk, resync=True)
        except Crash:
            finished = False
        else:
            finished = True
        for choose in (keep_none, *(keep_random(seed) for seed in range(6))):
            cut = rig.disk.power_cut(choose)
            try:
                engine = open_on(rig, cut)
            except ImageMismatch:
                continue
            assert has_gap(seal_all(cut, engine)), f"cut at step {step}: {rig.disk.labels[-2:]}"
        if finished:
            return
        step += 1


# Damage.

SEALED_LIFE: list[Op] = [
    ("write", V, 0, 3000),
    ("roll",),
    ("seal",),
    ("write", V, 0, 4000),
    ("roll",),
    ("seal",),
    ("write", V, 100, 4000),
    ("fsync",),
    ("write", V, 200, 4000),
    ("fsync",),
    ("write", V, 300, 100),
]


def test_every_flipped_bit_behind_the_checkpoint_is_refused_and_nothing_is_dropped() -> None:
    rig = Rig.create()
    live(rig, SEALED_LIFE)
    whole = rig.disk.power_cut(keep_none)
    rig.survivor(whole.kill())
    first, second = (SPOOL / name.sealed for name in sealed_names(whole))
    for path in (first, second):
        data = whole.contents(Path(path))
        for bit in range(0, 8 * len(data), 1013):
            disk = whole.kill()
            disk.plant(Path(path), flipped(data, bit))
            names = disk.listdir(Path(SPOOL))
            with pytest.raises(JournalError, match=path.name):
                open_on(rig, disk)
            assert disk.listdir(Path(SPOOL)) == names
            assert disk.contents(Path(IMAGE)) == FIRST_BYTES


def test_a_missing_file_behind_the_checkpoint_is_refused() -> None:
    rig = Rig.create()
    live(rig, SEALED_LIFE)
    disk = rig.disk.power_cut(keep_none)
    disk.unlink("x", SPOOL / sealed_names(disk)[0].sealed)
    with pytest.raises(CorruptRecord, match="missing"):
        open_on(rig, disk)


def test_damage_in_front_of_a_commit_is_no_torn_tail() -> None:
    """Two fsyncs came after the first record of the open file; a third might have failed."""
    rig = Rig.create()
    live(rig, SEALED_LIFE)
    whole = rig.disk.kill()
    (name,) = [n for n in whole.listdir(Path(SPOOL)) if n.endswith("000003.open")]
    data = whole.contents(Path(SPOOL / name))
    assert rig.model.acked > 3
    payload_at = data.index(rig.model.now[V][150:200])
    refused = whole.kill()
    refused.plant(Path(SPOOL / name), flipped(data, 8 * payload_at))
    with pytest.raises(CorruptRecord, match="had been durable"):
        open_on(rig, refused)
    assert name in refused.listdir(Path(SPOOL))
    torn = whole.kill()
    torn.plant(Path(SPOOL / name), data[:-10])
    rig.survivor(torn)


def test_without_its_spool_a_group_refuses_to_start() -> None:
    rig = Rig.create()
    disk = rig.disk.power_cut(keep_none)
    disk.rename("x", SPOOL, STATE / "elsewhere")
    with pytest.raises(StateLost, match="spool"):
        open_on(rig, disk)


@pytest.mark.parametrize("slot", ["checkpoint.0", "checkpoint.1"])
def test_one_unreadable_slot_loses_nothing(slot: str) -> None:
    for length in range(1, len(IMAGE_LIFE) + 1):
        rig = Rig.create()
        live(rig, IMAGE_LIFE[:length])
        disk = rig.disk.kill()
        disk.plant(Path(STATE / slot), b"")
        rig.survivor(disk)
