"""Whose files are folded, and how far: decided from the marks and the destinations' policies."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.driver.ladder import (
    Account,
    Load,
    Policy,
    excess,
    folds,
    level,
    policy_of_lowest,
    why_share_full,
)
from aimfuse.journal.spool import full_mark
from aimfuse.units import GIB, KIB, MIB, FileNumber

SIZES = tuple((FileNumber(number), MIB) for number in range(1, 21))


def account(name: str, pin: int, folded: int = 0) -> Account:
    return Account(Path("/d") / name, FileNumber(pin), FileNumber(folded))


def policies(**given: Policy) -> Callable[[Account], Policy]:
    return lambda one: given.get(one.directory.name, Policy("fold"))


def found(
    accounts: list[Account], load: Load, through_max: int = 20, **given: Policy
) -> dict[str, int]:
    done = folds(accounts, policies(**given), load, through_max)
    return {one.directory.name: int(through) for one, through in done}


def test_nobody_is_folded_while_there_is_room() -> None:
    assert found([account("a", 0)], Load(SIZES, 0)) == {}


def test_of_a_full_spool_the_oldest_files_go_and_only_who_needs_them_is_folded() -> None:
    accounts = [account("dead", 0), account("slow", 3), account("fast", 19)]
    assert found(accounts, Load(SIZES, 5 * MIB)) == {"dead": 5, "slow": 5}


def test_no_file_goes_before_the_image_holds_it() -> None:
    assert found([account("dead", 0)], Load(SIZES, 5 * MIB), through_max=2) == {"dead": 2}


def test_what_is_folded_already_is_not_folded_again() -> None:
    assert found([account("dead", 0, folded=5)], Load(SIZES[5:], 5 * MIB)) == {"dead": 10}
    assert found([account("dead", 0, folded=5)], Load(SIZES, 5 * MIB)) == {}


def test_nobody_is_folded_for_files_that_another_one_keeps_anyway() -> None:
    accounts = [account("dead", 0), account("precious", 2)]
    load, block = Load(SIZES, 9 * MIB), Policy("block")
    assert found(accounts, load, precious=block) == {"dead": 2}
    assert found([account("dead", 4), *accounts[1:]], load, precious=block) == {}
    assert found(accounts, load, precious=Policy("fail")) == {"dead": 2}


def test_a_share_that_is_used_up_folds_its_destination_alone() -> None:
    accounts = [account("dead", 0), account("slow", 0)]
    assert found(accounts, Load(SIZES), dead=Policy("fold", 10 * MIB)) == {"dead": 12}
    assert found(accounts, Load(SIZES), dead=Policy("fold", 20 * MIB)) == {}


def test_a_share_that_is_not_folded_is_told() -> None:
    accounts = [account("dead", 0), account("slow", 15)]
    load = Load(SIZES)
    assert why_share_full(accounts, policies(dead=Policy("fold", MIB)), load) is None
    assert why_share_full(accounts, policies(slow=Policy("block", 6 * MIB)), load) is None
    told = why_share_full(accounts, policies(slow=Policy("block", 5 * MIB)), load)
    assert told is not None
    assert "slow" in told


def test_writers_get_what_the_one_says_who_keeps_the_oldest_file() -> None:
    accounts = [account("dead", 3), account("slow", 5)]
    assert policy_of_lowest(accounts, policies(dead=Policy("fail"))) == "fail"
    assert policy_of_lowest(accounts, policies(slow=Policy("fail"))) == "fold"
    assert policy_of_lowest([], policies()) is None


@pytest.mark.parametrize("file_bytes", [64 * KIB, MIB, 16 * MIB])
@pytest.mark.parametrize("bytes_max", [64 * MIB, GIB, 64 * GIB])
def test_a_spool_is_emptied_before_a_writer_waits_and_well_below_the_mark(
    bytes_max: int, file_bytes: int
) -> None:
    mark = full_mark(bytes_max, file_bytes)
    assert bytes_max // 2 <= mark <= bytes_max - bytes_max // 10
    assert not excess(mark - 1, mark)
    assert 0.15 * mark < excess(mark, mark) < 0.25 * mark


def test_the_level_falls_later_than_it_rises() -> None:
    assert level(0.69, "fine", is_full=False) == "fine"
    assert level(0.7, "fine", is_full=False) == "warn"
    assert level(0.65, "warn", is_full=False) == "warn"
    assert level(0.59, "warn", is_full=False) == "fine"
    assert level(0.1, "fine", is_full=True) == "full"
    assert level(0.65, "full", is_full=False) == "warn"
