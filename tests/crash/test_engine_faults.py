"""Fail the n-th disk call of a group's life, n = 1, 2, …: no acknowledged byte may be lost.

After the failure the life goes on as far as the engine lets it. Then the power is cut, or the
program is killed, which leaves a page cache that shows what the disk never got.
"""

import errno
from collections.abc import Iterator

import pytest

from aimfuse.errors import HaltedError
from tests.crash.lives import IMAGE_LIFE, SCRIPTS, V, new_rig
from tests.crash.rig import Op, Rig
from tests.disks.cuts import keep_all, keep_none, keep_random
from tests.disks.faults import Fault

GROUPS = sorted(SCRIPTS)


def every_failure(group: str, number: int, short_bytes: int = 0) -> Iterator[tuple[str, Rig]]:
    """Yield the label of each call and a rig whose life went on after that call failed."""
    step = 0
    while True:
        rig = new_rig(group)
        at = len(rig.disk.labels) + step
        rig.disk.inject(Fault(number, at=at, short_bytes=short_bytes))
        for op in SCRIPTS[group]:
            worked = rig.try_(op)
            if op == ("reopen",) and not worked:
                break
        if at >= len(rig.disk.labels):
            return
        yield rig.disk.labels[at], rig
        step += 1


def check_what_is_left(rig: Rig, label: str, number: int) -> None:
    try:
        for choose in (keep_none, keep_all, keep_random(number)):
            rig.survivor(rig.disk.power_cut(choose))
        killed = rig.survivor(rig.disk.kill())
        killed.survivor(killed.disk.power_cut(keep_none))
    except Exception as exc:
        exc.add_note(f"call {number} ({label}) had failed; halted: {rig.engine.halted}")
        raise


@pytest.mark.parametrize("group", GROUPS)
def test_whichever_call_fails_nothing_acknowledged_is_lost(group: str) -> None:
    for number, (label, rig) in enumerate(every_failure(group, errno.EIO, short_bytes=50)):
        check_what_is_left(rig, label, number)


@pytest.mark.parametrize("group", GROUPS)
def test_whichever_call_finds_the_disk_full_nothing_acknowledged_is_lost(group: str) -> None:
    for number, (label, rig) in enumerate(every_failure(group, errno.ENOSPC, short_bytes=3)):
        check_what_is_left(rig, label, number)


@pytest.mark.parametrize("short_bytes", [0, 64, 3000, 4095])
def test_a_failed_append_uses_no_number_and_shows_nothing(short_bytes: int) -> None:
    rig = Rig.create()
    rig.do(("write", V, 0, 4096))
    before = rig.engine.journal.last_seq
    rig.disk.inject(Fault(errno.ENOSPC, "journal:append", short_bytes=short_bytes))
    assert not rig.try_(("write", V, 100, 4096))
    assert rig.engine.journal.last_seq == before
    volume = rig.engine.volumes.named(V)
    assert volume is not None
    assert rig.engine.read(volume, 0, volume.size_bytes) == rig.model.now[V]
    rig.do(("write", V, 50, 500))
    rig.do(("fsync",))
    rig.survivor(rig.disk.power_cut())


def test_of_a_write_in_pieces_a_failure_leaves_whole_pieces_in_order() -> None:
    for skip in range(3):
        rig = Rig.create()
        rig.disk.inject(Fault(errno.ENOSPC, "journal:append", skip=skip))
        assert not rig.try_(("holey", V))
        assert rig.engine.journal.last_seq == skip
        volume = rig.engine.volumes.named(V)
        assert volume is not None
        assert rig.engine.read(volume, 0, volume.size_bytes) == rig.model.now[V]
        rig.do(("fsync",))
        rig.survivor(rig.disk.power_cut())


HALTING = ["journal:sync", "journal:seal_sync", "image:sync", "checkpoint:sync", "image:write"]


@pytest.mark.parametrize("label", HALTING)
def test_after_a_failed_sync_a_halted_engine_acknowledges_nothing_and_still_reads(
    label: str,
) -> None:
    rig = Rig.create()
    rig.disk.inject(Fault(errno.EIO, label))
    for op in IMAGE_LIFE:
        if not rig.try_(op):
            break
    assert rig.engine.halted
    acked = rig.model.acked
    volume = rig.engine.volumes.named(V)
    assert volume is not None
    with pytest.raises(HaltedError):
        rig.engine.write(volume, 0, b"x")
    with pytest.raises(HaltedError):
        rig.engine.flush(volume)
    assert rig.engine.begin_commit() is None
    more: list[Op] = [("write", V, 0, 10), ("fsync",), ("cycle",)]
    for op in more:
        rig.try_(op)
    assert rig.model.acked == acked
    assert rig.engine.read(volume, 0, volume.size_bytes) == rig.model.now[V]


def test_a_volume_that_grew_by_a_part_of_a_write_has_that_size_everywhere() -> None:
    for skip in range(3):
        rig = Rig.create(directory=True)
        rig.do(("create", "grows"))
        rig.disk.inject(Fault(errno.ENOSPC, "journal:append", skip=skip))
        assert not rig.try_(("holey", "grows"))
        volume = rig.engine.volumes.named("grows")
        assert volume is not None
        assert volume.size_bytes == 4096 * skip == len(rig.model.now["grows"])
        rig.do(("fsync",))
        rig.do(("cycle",))
        rig.survivor(rig.disk.power_cut())


def test_a_volume_whose_replacement_is_not_durable_is_kept_until_it_is() -> None:
    rig = Rig.create(directory=True)
    rig.do(("create", "b"))
    rig.do(("write", "b", 0, 4096))
    rig.do(("fsync",))
    rig.do(("roll",))
    rig.do(("seal",))
    replaced = rig.engine.volumes.named("b")
    assert replaced is not None
    replaced.opens += 1
    rig.do(("rename", "a", "b"))
    rig.do(("apply",))
    rig.engine.close_handle(replaced)
    rig.do(("checkpoint",))
    for choose in (keep_none, keep_all):
        rig.survivor(rig.disk.power_cut(choose))
    rig.do(("cycle",))
    assert not rig.engine.images.is_open(replaced.volume)
    rig.survivor(rig.disk.power_cut(keep_none))
