"""The growing journal, its spool and its recovery, without an engine around them."""

import errno
import logging
from dataclasses import replace
from itertools import pairwise

import pytest

from aimfuse.errors import CorruptRecord, ForeignFile
from aimfuse.journal.header import Parent
from aimfuse.journal.journal import Head, Journal
from aimfuse.journal.reader import read_sealed
from aimfuse.journal.records import RecordType
from aimfuse.journal.recovery import recover
from aimfuse.journal.spool import (
    FREE_FILES_MAX,
    free_files,
    open_names,
    release,
    sealed_names,
)
from aimfuse.units import Epoch, FileNumber
from tests.disks.cuts import Choose, keep_all, keep_none, mixtures
from tests.disks.faults import Crash, Fault
from tests.disks.simdisk import SimDisk
from tests.journal.samples import GROUP, SPOOL, TABLE, payload_of, spool_disk

FILE_BYTES = 64 * 1024
START = Head()


def new_journal(disk: SimDisk, head: Head = START, epoch: int = 1) -> Journal:
    parent = Parent() if epoch == 1 else head.as_parent()
    journal = Journal(disk, SPOOL, GROUP, head, parent, Epoch(epoch), FILE_BYTES)
    journal.adopt(journal.make_ready())
    journal.roll(TABLE)
    return journal


def append(journal: Journal, count: int = 1, length: int = 100) -> None:
    for _ in range(count):
        seq = journal.last_seq + 1
        journal.append(RecordType.WRITE, 1, 0, length, payload_of(seq, length))


def commit(journal: Journal) -> None:
    step = journal.begin_commit()
    assert step is not None
    journal.sync(step)
    journal.finish_commit(step)


def roll(journal: Journal) -> None:
    journal.adopt(journal.make_ready())
    assert journal.roll(TABLE)


def seal(journal: Journal) -> Head:
    head = journal.seal_next()
    journal.finish_seal(head)
    return head


def seqs_in(disk: SimDisk) -> list[int]:
    files = [read_sealed(disk, SPOOL / name.sealed) for name in sealed_names(disk, SPOOL)]
    return [record.seq for file in files for record in file.records()]


# Growing.


def test_without_a_ready_file_it_does_not_roll() -> None:
    journal = new_journal(spool_disk())
    append(journal)
    active = journal.active
    assert not journal.roll(TABLE)
    assert journal.active is active


def test_each_file_begins_with_the_table_and_follows_the_one_before() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    for _ in range(3):
        append(journal, 2)
        roll(journal)
        seal(journal)
    files = [read_sealed(disk, SPOOL / name.sealed) for name in sealed_names(disk, SPOOL)]
    assert [file.identity.number for file in files] == [1, 2, 3]
    assert seqs_in(disk) == [1, 2, 3, 4, 5, 6]
    for before, after in pairwise(files):
        assert after.seal.prev_digest == before.seal.digest
    assert all(file.payload(file.iocbs[0]) == TABLE for file in files)


def test_a_full_file_says_so_before_anything_is_appended() -> None:
    journal = new_journal(spool_disk())
    while journal.fits(1, 5000):
        append(journal, 1, 5000)
    roll(journal)
    head = seal(journal)
    assert head.seq >= 10
    assert journal.fits(1, 5000)


def test_a_failed_append_uses_no_number() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    append(journal)
    disk.inject(Fault(errno.ENOSPC, "journal:append"))
    with pytest.raises(OSError, match="No space"):
        append(journal)
    assert journal.last_seq == 1
    append(journal)
    assert journal.last_seq == 2


def test_a_commit_reaches_over_rolled_files_and_costs_nothing_without_news() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    assert journal.begin_commit() is None
    append(journal, 2)
    roll(journal)
    append(journal)
    commit(journal)
    assert journal.durable_seq == 3
    assert journal.begin_commit() is None
    recovered = recover(disk.power_cut(keep_none), SPOOL, GROUP, START)
    assert recovered.head.seq == 3


def test_records_accepted_during_a_commit_are_not_called_durable_by_it() -> None:
    journal = new_journal(spool_disk())
    append(journal, 2)
    step = journal.begin_commit()
    assert step is not None
    append(journal)
    journal.sync(step)
    journal.finish_commit(step)
    assert journal.durable_seq == 2


def test_a_commit_whose_mark_finds_no_room_still_makes_its_records_durable() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    append(journal)
    disk.inject(Fault(errno.ENOSPC, "journal:append", short_bytes=20))
    commit(journal)
    assert recover(disk.power_cut(keep_none), SPOOL, GROUP, START).head.seq == 1


def test_files_without_records_do_not_stay() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    journal.adopt(journal.make_ready())
    assert journal.retire() is None
    journal.close()
    assert disk.listdir(SPOOL) == []
    assert disk.open_paths == []


# The spool.


def test_a_sealed_file_keeps_its_name_over_a_power_cut() -> None:
    """A checkpoint may pass it from now on: by its open name recovery would drop it."""
    disk = spool_disk()
    journal = new_journal(disk)
    append(journal)
    roll(journal)
    head = seal(journal)
    for name, choose in mixtures(disk.units()):
        cut = disk.power_cut(choose)
        recovered = recover(cut, SPOOL, GROUP, head)
        assert recovered.head == head
        assert [n.number for n in sealed_names(cut, SPOOL)] == [1], name


def test_what_a_killed_recovery_had_sealed_keeps_its_name_over_a_power_cut() -> None:
    disk = spool_disk()
    append(new_journal(disk), 2)
    rehearsal, first = disk.kill(), disk.kill()
    recover(rehearsal, SPOOL, GROUP, START)
    first.stop_at(rehearsal.labels.index("recovery:sync_dir"))
    with pytest.raises(Crash, match="recovery:sync_dir"):
        recover(first, SPOOL, GROUP, START)
    second = first.kill()
    head = recover(second, SPOOL, GROUP, START).head
    assert head.seq == 2
    third = second.power_cut(keep_none)
    assert [name.number for name in sealed_names(third, SPOOL)] == [1]


def test_released_files_are_recycled_up_to_a_limit_and_the_others_go() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    for _ in range(FREE_FILES_MAX + 3):
        append(journal)
        roll(journal)
        seal(journal)
    assert release(disk, SPOOL, FileNumber(FREE_FILES_MAX + 2)) == FREE_FILES_MAX + 2
    assert len(free_files(disk, SPOOL)) == FREE_FILES_MAX
    assert [name.number for name in sealed_names(disk, SPOOL)] == [FREE_FILES_MAX + 3]
    assert release(disk, SPOOL, FileNumber(FREE_FILES_MAX + 2)) == 0
    cut = disk.power_cut(keep_none)
    assert cut.listdir(SPOOL) == disk.listdir(SPOOL)
    journal.look_for_free_files()
    journal.adopt(journal.make_ready())
    assert len(free_files(disk, SPOOL)) == FREE_FILES_MAX - 1


def test_foreign_names_in_the_spool_are_left_alone() -> None:
    disk = spool_disk()
    for name in ("README", "x.aim", "00000001-000000000001.aim.part", "lost+found"):
        disk.plant(SPOOL / name, b"")
    assert sealed_names(disk, SPOOL) == []
    assert open_names(disk, SPOOL) == []
    recover(disk, SPOOL, GROUP, START)
    assert len(disk.listdir(SPOOL)) == 4


# Recovery.


def test_a_torn_tail_is_dropped_and_what_is_good_gets_sealed() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    append(journal, 2)
    commit(journal)
    append(journal, 3, length=3000)
    for name, choose in mixtures(disk.units(), every_up_to=256):
        cut = disk.power_cut(choose)
        recovered = recover(cut, SPOOL, GROUP, START)
        assert 2 <= recovered.head.seq <= 5, name
        assert seqs_in(cut) == list(range(1, recovered.head.seq + 1)), name
        assert open_names(cut, SPOOL) == [], name


def test_a_later_file_does_not_count_when_the_one_before_is_torn() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    append(journal, 2, length=5000)
    roll(journal)
    append(journal, 2, length=50)
    second = journal.active
    assert second is not None
    second.sync()  # The kernel wrote the younger file back, and not the older one.
    cut = disk.power_cut(keep_none)
    recovered = recover(cut, SPOOL, GROUP, START)
    assert recovered.head.seq == 0
    assert cut.listdir(SPOOL) == []


def test_what_recovery_drops_is_told_with_file_and_size(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    disk = spool_disk()
    journal = new_journal(disk)
    append(journal, 2)
    commit(journal)
    roll(journal)
    append(journal, 1, length=5000)
    roll(journal)
    append(journal, 2, length=50)
    third = journal.active
    assert third is not None
    third.sync()  # The kernel wrote the youngest file back, and not the one before.
    recover(disk.power_cut(keep_none), SPOOL, GROUP, START)
    dropped, ended = caplog.messages
    assert dropped.startswith(f"{third.path}: ")
    assert "bytes behind record" in dropped
    assert ended == "the journal ends at record 1:2 in file 1; a new epoch begins behind it"


def test_a_journal_that_was_left_cleanly_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    disk = spool_disk()
    journal = new_journal(disk)
    append(journal, 2)
    roll(journal)
    seal(journal)
    recover(disk.power_cut(keep_none), SPOOL, GROUP, START)
    assert caplog.messages == []


@pytest.mark.parametrize("choose", [keep_none, keep_all])
def test_a_new_epoch_begins_where_the_last_one_ended(choose: Choose) -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    append(journal, 3)
    commit(journal)
    cut = disk.power_cut(choose)
    head = recover(cut, SPOOL, GROUP, START).head
    fresh = new_journal(cut, head, epoch=2)
    append(fresh, 2)
    commit(fresh)
    again = cut.power_cut(keep_none)
    recovered = recover(again, SPOOL, GROUP, START)
    assert (recovered.head.epoch, recovered.head.seq) == (2, 2)
    assert [(name.epoch, name.number) for name in recovered.files] == [(1, 1), (2, 2)]


def test_a_file_of_another_group_is_refused() -> None:
    disk = spool_disk()
    append(new_journal(disk))
    for group in (bytes(16), GROUP[::-1]):
        with pytest.raises(ForeignFile):
            recover(disk.kill(), SPOOL, group, START)


def test_a_sealed_file_that_does_not_attach_is_refused() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    append(journal)
    roll(journal)
    head = seal(journal)
    append(journal)
    roll(journal)
    seal(journal)
    for other in (
        replace(head, digest=bytes(32)),
        replace(head, epoch=Epoch(2)),
        replace(head, seq=head.seq + 1),  # type: ignore[arg-type]
    ):
        with pytest.raises(ForeignFile):
            recover(disk.kill(), SPOOL, GROUP, other)
    assert recover(disk.kill(), SPOOL, GROUP, head).head.number == 2


def test_a_missing_sealed_file_is_refused() -> None:
    disk = spool_disk()
    journal = new_journal(disk)
    for _ in range(2):
        append(journal)
        roll(journal)
        seal(journal)
    disk.unlink("x", SPOOL / sealed_names(disk, SPOOL)[0].sealed)
    with pytest.raises(CorruptRecord, match="missing"):
        recover(disk, SPOOL, GROUP, START)


def test_a_file_that_was_renamed_by_hand_is_refused() -> None:
    disk = spool_disk()
    append(new_journal(disk))
    (name,) = open_names(disk, SPOOL)
    disk.rename("x", SPOOL / name.open, SPOOL / replace(name, epoch=Epoch(7)).open)
    with pytest.raises(ForeignFile, match="name says"):
        recover(disk, SPOOL, GROUP, START)
