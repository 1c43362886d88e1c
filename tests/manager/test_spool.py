"""A spool seen from outside: right with and without sums that others have made."""

from pathlib import Path

import pytest

from aimfuse.journal.names import JournalName
from aimfuse.manager.spool import KnownSum, list_spool
from aimfuse.units import Epoch, FileNumber


def put(spool: Path, number: int, size: int, epoch: int = 1) -> None:
    name = JournalName(Epoch(epoch), FileNumber(number)).sealed
    (spool / name).write_bytes(bytes(size))


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    for number in range(3, 8):
        put(tmp_path, number, number, epoch=1 if number < 6 else 2)
    for other in ("free-00000001-000000000001", "junk.aim", "00000002-000000000008.open"):
        (tmp_path / other).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, (5, 25)), (2, (5, 25)), (3, (4, 22)), (5, (2, 13)), (6, (1, 7)), (7, (0, 0)), (9, (0, 0))],
)
def test_what_lies_behind_a_file_is_counted(
    spool: Path, number: int, expected: tuple[int, int]
) -> None:
    assert list_spool(spool).behind(number) == expected


def test_newest_and_oldest_go_by_the_number_across_epochs(spool: Path) -> None:
    found = list_spool(spool)
    assert (found.oldest, found.newest) == (
        JournalName(Epoch(1), FileNumber(3)),
        JournalName(Epoch(2), FileNumber(7)),
    )
    assert (found.files, found.bytes, found.is_open) == (5, 25, True)


def test_a_sum_over_the_same_files_is_taken_as_it_is(spool: Path) -> None:
    assert list_spool(spool, [KnownSum(3, 7, 5, 77)]).bytes == 77
    assert list_spool(spool, [KnownSum(3, 7, 5, 77)]).behind(0) == (5, 77)


@pytest.mark.parametrize("known", [(3, 6, 4, 77), (2, 7, 6, 77), (3, 7, 4, 77), (0, 0, 0, 0)])
def test_a_sum_over_other_files_is_not(spool: Path, known: tuple[int, int, int, int]) -> None:
    assert list_spool(spool, [KnownSum(*known)]).bytes == 25


def test_a_spool_that_is_not_there_is_empty(tmp_path: Path) -> None:
    found = list_spool(tmp_path / "no")
    assert (found.files, found.bytes, found.newest, found.behind(0)) == (0, 0, None, (0, 0))
