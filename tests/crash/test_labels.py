"""A label is taken once its bookmark is in the journal for good, and never without it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.driver.labels import Label, Labels
from aimfuse.errors import LabelTaken
from aimfuse.journal.reader import check_sealed
from aimfuse.journal.records import RecordType
from tests.crash.rig import SPOOL, Rig, sealed_names
from tests.disks.cuts import mixtures
from tests.disks.faults import Crash
from tests.disks.simdisk import SimDisk

LIFE = ("first", "second", "third", "fourth")


def mark(rig: Rig, label: str) -> None:
    """Set a bookmark as a mount does."""
    seq = rig.engine.bookmark(label)
    rig.model.history[seq] = rig.model.now
    rig.do_commit()
    rig.engine.labels.save(rig.engine.journal.epoch, seq)


def live(rig: Rig, marked: Callable[[str], None]) -> None:
    for number, label in enumerate(LIFE):
        mark(rig, label)
        marked(label)
        rig.do(("write", "v.img", 100 * number, 50))
        if number % 2:
            for step in ("commit", "apply", "roll", "seal", "checkpoint"):
                rig.do((step,))


def in_the_journal(disk: SimDisk) -> set[str]:
    found = set()
    for name in sealed_names(disk):
        path = SPOOL / name.sealed
        file = check_sealed(path, disk.contents(Path(path)))
        found |= {
            bytes(file.payload(iocb)).decode()
            for iocb in file.records()
            if iocb.type is RecordType.BOOKMARK
        }
    return found


def is_taken(rig: Rig, label: str) -> bool:
    try:
        rig.engine.labels.check(label)
    except LabelTaken:
        return True
    return False


def test_after_a_crash_at_any_step_the_labels_are_those_of_the_journal() -> None:
    step, is_finished = 0, False
    while not is_finished:
        rig = Rig.create()
        rig.disk.stop_at(len(rig.disk.labels) + step)
        told: list[str] = []
        try:
            live(rig, told.append)
            is_finished = True
        except Crash:
            pass
        for _name, choose in mixtures(rig.disk.units()):
            survivor = rig.survivor(rig.disk.power_cut(choose))
            taken = {label for label in LIFE if is_taken(survivor, label)}
            assert taken == in_the_journal(survivor.disk)
            assert taken >= set(told)
        step += 1
    assert step > 30


def test_a_label_stays_taken_when_its_file_has_left_the_spool() -> None:
    rig = Rig.create()
    mark(rig, "kept")
    for _time in range(3):
        rig.do(("write", "v.img", 0, 50))
        rig.do_cycle()
    rig.do_reopen()
    assert "kept" not in in_the_journal(rig.disk)
    with pytest.raises(LabelTaken, match="already, at 1:1"):
        rig.engine.bookmark("kept")


def test_a_bookmark_that_is_refused_leaves_no_record() -> None:
    rig = Rig.create()
    mark(rig, "once")
    before = rig.engine.journal.last_seq
    with pytest.raises(LabelTaken):
        rig.engine.bookmark("once")
    assert rig.engine.journal.last_seq == before


@pytest.mark.expects_warnings
def test_a_damaged_line_costs_its_own_label_and_a_cut_one_is_written_over(tmp_path: Path) -> None:
    labels = Labels(Disk(), tmp_path)
    for seq, text in enumerate(LIFE, 1):
        labels.note(Label(text, 1, seq))
        labels.save(1, seq)
    path = tmp_path / "labels"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"second", b"secomd")
    path.write_bytes(b"".join(lines)[:-10])
    again = Labels(Disk(), tmp_path)
    for text in ("second", "fourth"):
        again.check(text)
    again.note(Label("fifth", 1, 5))
    again.save(1, 5)
    for text in ("first", "third", "fifth"):
        with pytest.raises(LabelTaken):
            Labels(Disk(), tmp_path).check(text)
