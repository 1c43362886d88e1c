"""Names of AIM files: one strict form each, in an order that is the journal's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.journal.names import OPEN, PART, SEALED, JournalName, SyncName, parse
from aimfuse.units import Epoch, FileNumber

journal_names = st.builds(
    JournalName,
    st.integers(0, 10**8 - 1).map(Epoch),
    st.integers(0, 10**12 - 1).map(FileNumber),
)
sync_names = st.builds(SyncName, st.integers(0, 2**64 - 1), st.integers(0, 10**8 - 1))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("00000001-000000000001.aim", JournalName(Epoch(1), FileNumber(1))),
        ("12345678-123456789012.aim", JournalName(Epoch(12345678), FileNumber(123456789012))),
        ("sync-00000000000000ff-00000003.aim", SyncName(255, 3)),
    ],
)
def test_a_name_is_written_and_read_in_one_form(text: str, name: JournalName | SyncName) -> None:
    assert name.sealed == text
    assert parse(text) == name


@given(st.one_of(journal_names, sync_names))
def test_what_is_written_is_read(name: JournalName | SyncName) -> None:
    assert parse(name.sealed) == name
    assert parse(f"{name}{PART}", PART) == name
    assert parse(name.sealed, OPEN) is None


@given(st.lists(journal_names))
def test_names_sort_in_the_order_of_the_journal(names: list[JournalName]) -> None:
    assert [name.sealed for name in sorted(names)] == sorted(name.sealed for name in names)


@given(journal_names)
def test_an_open_file_s_name_differs_from_a_sealed_one_s(name: JournalName) -> None:
    assert parse(name.open, OPEN) == name
    assert parse(name.open) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        SEALED,
        "1-1.aim",
        "00000001-000000000001",
        "00000001-000000000001.AIM",
        "00000001-000000000001.aim.part",
        "00000001-000000000001.aim\n",
        "00000001-000000000001\n.aim",
        " 00000001-000000000001.aim",
        "00000001-0000000000011.aim",
        "-0000001-000000000001.aim",
        "0000000\uff11-000000000001.aim",
        "../00000001-000000000001.aim",
        "00000001-000000000001.open.aim",
        "sync-00000000000000FF-00000003.aim",
        "sync-00000000000000ff-3.aim",
        "free-00000001-000000000001.aim",
        "\0.aim",
    ],
)
def test_anything_else_is_none_of_ours(text: str) -> None:
    assert parse(text) is None


@given(st.text(max_size=40))
def test_any_text_is_a_name_in_its_own_form_or_none(text: str) -> None:
    name = parse(f"{text}{SEALED}")
    assert name is None or str(name) == text
