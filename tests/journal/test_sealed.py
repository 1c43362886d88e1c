"""Sealed files: written once, read whole or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimfuse.errors import CorruptRecord, JournalError, TornRecord
from aimfuse.journal.header import (
    HEADER_BYTES,
    SEAL_AT,
    SEAL_BYTES,
    Seal,
    decode_seal,
    encode_seal,
)
from aimfuse.journal.reader import (
    FILE_BYTES_MAX,
    check_sealed,
    file_digest,
    read_header,
    read_sealed,
)
from aimfuse.journal.records import IOCB_BYTES, RecordType
from tests.journal.samples import (
    PREV_DIGEST,
    SPOOL,
    TABLE,
    open_file,
    payload_of,
    sealed_file,
    spool_disk,
)

ANY = Path("any")

record_lengths = st.lists(st.integers(0, 300), max_size=6)


def seal_of(data: bytes | bytearray) -> Seal:
    seal = decode_seal(bytes(data))
    assert seal is not None
    return seal


def with_seal(data: bytes, **changes: int) -> bytes:
    """Return the file with other words in its seal, and the sums right again."""
    return signed(data, replace(seal_of(data), **changes))  # type: ignore[arg-type]


def signed(data: bytes, seal: Seal) -> bytes:
    raw = bytearray(data)
    raw[SEAL_AT : SEAL_AT + SEAL_BYTES] = encode_seal(seal)
    raw[SEAL_AT : SEAL_AT + SEAL_BYTES] = encode_seal(replace(seal, digest=file_digest(bytes(raw))))
    return bytes(raw)


@given(record_lengths, st.integers(1, 2**40))
def test_what_was_appended_is_read_back(lengths: list[int], first_seq: int) -> None:
    file = check_sealed(ANY, sealed_file(lengths, first_seq=first_seq))
    records = list(file.records())
    assert [record.seq for record in records] == [first_seq + i for i in range(len(lengths))]
    for record, length in zip(records, lengths, strict=True):
        assert file.payload(record) == payload_of(record.seq, length)
        assert record.type is (RecordType.WRITE if length else RecordType.FLUSH)
    assert file.iocbs[0].type is RecordType.TABLE
    table = file.table()
    assert table is not None
    assert [entry.name for entry in table] == ["v.img"]


def test_a_file_of_several_pieces_has_the_digest_of_the_whole() -> None:
    lengths = [100_000] * 7
    file = check_sealed(ANY, sealed_file(lengths))
    assert [record.payload_bytes for record in file.records()] == lengths


def test_the_header_says_what_the_file_holds() -> None:
    data = sealed_file([5, 0, 9], first_seq=4)
    seal = seal_of(data)
    data_bytes = 4 * IOCB_BYTES + (len(TABLE) + -len(TABLE) % 8) + 8 + 16
    assert (seal.data_bytes, seal.iocb_at) == (data_bytes, HEADER_BYTES + data_bytes)
    assert seal.total_bytes == len(data) == seal.iocb_at + 4 * IOCB_BYTES
    assert (seal.iocb_count, seal.record_count, seal.payload_bytes) == (4, 3, 14)
    assert (seal.first_seq, seal.last_seq) == (4, 6)
    assert (seal.first_time_ns, seal.last_time_ns) == (1004, 1006)
    assert (seal.next_epoch, seal.next_number) == (1, 2)
    assert seal.prev_digest == PREV_DIGEST


def test_a_file_without_records_is_sound() -> None:
    file = check_sealed(ANY, sealed_file([]))
    assert list(file.records()) == []
    assert (file.seal.record_count, file.seal.first_seq, file.seal.last_seq) == (0, 0, 0)


def test_every_proper_prefix_is_torn() -> None:
    data = sealed_file([3, 100, 0])
    for keep in range(len(data)):
        with pytest.raises(TornRecord):
            check_sealed(ANY, data[:keep])


def test_every_flipped_bit_is_noticed_and_none_passes_for_a_cut() -> None:
    data = sealed_file([3, 20])
    padding = range(8 * (SEAL_AT + SEAL_BYTES), 8 * HEADER_BYTES, 97)  # Sampled: all are alike.
    body = range(8 * HEADER_BYTES, 8 * len(data))
    for bit in (*range(8 * (SEAL_AT + SEAL_BYTES)), *padding, *body):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecord):
            check_sealed(ANY, bytes(damaged))


@settings(max_examples=200)
@given(st.data())
def test_any_other_damage_is_noticed(draw: st.DataObject) -> None:
    data = bytearray(sealed_file([30, 0, 400]))
    at = draw.draw(st.integers(0, len(data) - 1), label="at")
    new = draw.draw(st.binary(min_size=1, max_size=64), label="bytes")[: len(data) - at]
    if data[at : at + len(new)] == new:
        return
    data[at : at + len(new)] = new
    with pytest.raises(JournalError):
        check_sealed(ANY, bytes(data))


def test_bytes_behind_the_end_are_refused() -> None:
    with pytest.raises(CorruptRecord, match="pointers"):
        check_sealed(ANY, sealed_file([3]) + b"\0")


def test_a_file_that_was_never_sealed_is_torn() -> None:
    with pytest.raises(TornRecord, match="never sealed"):
        check_sealed(ANY, open_file([3, 4]))


@pytest.mark.parametrize(
    "changes",
    [
        {"record_count": 1},
        {"record_count": 3},
        {"first_seq": 2},
        {"last_seq": 3},
        {"iocb_count": 2},
        {"data_bytes": 8},
        {"iocb_at": HEADER_BYTES},
        {"total_bytes": FILE_BYTES_MAX + 1},
    ],
)
def test_a_seal_that_contradicts_the_file_is_refused_though_its_sums_are_right(
    changes: dict[str, int],
) -> None:
    with pytest.raises(CorruptRecord):
        check_sealed(ANY, with_seal(sealed_file([3, 20]), **changes))


def test_two_iocbs_in_exchanged_places_are_refused_though_the_digest_is_right() -> None:
    data = bytearray(sealed_file([8, 8]))
    at = seal_of(data).iocb_at + IOCB_BYTES
    one, other = data[at : at + IOCB_BYTES], data[at + IOCB_BYTES : at + 2 * IOCB_BYTES]
    data[at : at + 2 * IOCB_BYTES] = other + one
    with pytest.raises(CorruptRecord, match="out of place"):
        check_sealed(ANY, signed(bytes(data), seal_of(data)))


def test_a_payload_in_another_s_place_is_refused_though_the_digest_is_right() -> None:
    data = bytearray(sealed_file([8, 8]))
    first, second = [iocb.data_at for iocb in check_sealed(ANY, bytes(data)).records()]
    data[first : first + 8] = data[second : second + 8]
    with pytest.raises(CorruptRecord, match="payload checksum"):
        check_sealed(ANY, signed(bytes(data), seal_of(data)))


def test_a_sealed_file_is_read_from_the_disk() -> None:
    disk = spool_disk()
    data = sealed_file([3])
    disk.plant(SPOOL / "f.aim", data)
    file = read_sealed(disk, SPOOL / "f.aim")
    assert bytes(file.data) == data
    assert read_header(disk, SPOOL / "f.aim") == (file.identity, file.seal)
    assert disk.open_paths == []


def test_a_damaged_header_is_refused_without_reading_the_rest() -> None:
    disk = spool_disk()
    disk.plant(SPOOL / "f.aim", b"\0" * HEADER_BYTES)
    with pytest.raises(CorruptRecord, match="not an AIM file"):
        read_header(disk, SPOOL / "f.aim")
