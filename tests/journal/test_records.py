"""The 64 bytes in front of every payload, and the table of volumes."""

import struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.journal.records import (
    IOCB_BYTES,
    PAYLOAD_BYTES_MAX,
    BadIocb,
    Iocb,
    RecordType,
    VolumeEntry,
    check_name,
    decode_iocb,
    decode_table,
    encode_iocb,
    encode_table,
    padded,
)
from aimfuse.units import VolumeId

SEED = 0x1234

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(RecordType)
volume_names = st.text(
    st.characters(min_codepoint=0x20, blacklist_categories=["Cs"], blacklist_characters="/\x7f"),
    min_size=1,
    max_size=60,
).filter(lambda name: name not in {".", ".."} and len(name.encode()) <= 255)


def sample() -> bytes:
    return encode_iocb(SEED, RecordType.WRITE, 2, 7, 4096, 3, 4160, 99, b"abc")


def resealed(fields: bytes) -> bytes:
    """Return 60 bytes with a right checksum behind them."""
    return fields + struct.pack("<I", crc32c(fields, SEED))


def test_the_bytes_are_those_that_the_format_names() -> None:
    head = struct.pack("<4sBBHII", b"IOCB", 1, 0, 0, 2, 3)
    body = struct.pack("<QQQQQI", 7, 4096, 3, 4160, 99, crc32c(b"abc"))
    assert sample() == resealed(head + body)
    assert len(sample()) == IOCB_BYTES


@given(kinds, u32, u64, u64, u64, u64, u64, st.binary(max_size=40), u32)
def test_what_is_encoded_decodes_to_the_same(
    kind: RecordType,
    volume: int,
    seq: int,
    offset: int,
    length: int,
    data_at: int,
    time_ns: int,
    payload: bytes,
    seed: int,
) -> None:
    raw = encode_iocb(seed, kind, volume, seq, offset, length, data_at, time_ns, payload)
    iocb = decode_iocb(seed, raw)
    assert isinstance(iocb, Iocb)
    found = (iocb.type, iocb.volume, iocb.seq, iocb.offset, iocb.length, iocb.data_at)
    assert found == (kind, volume, seq, offset, length, data_at)
    assert (iocb.time_ns, iocb.payload_bytes) == (time_ns, len(payload))
    assert iocb.payload_crc == crc32c(payload)
    assert iocb.is_mark == (kind >= 128)
    assert iocb.end_at == data_at + padded(len(payload))


@given(st.integers(0, 10**9))
def test_frames_start_at_multiples_of_eight(payload_bytes: int) -> None:
    assert padded(payload_bytes) % 8 == 0
    assert payload_bytes <= padded(payload_bytes) < payload_bytes + 8


def test_every_proper_prefix_is_refused() -> None:
    for keep in range(IOCB_BYTES):
        with pytest.raises(BadIocb, match="cut short"):
            decode_iocb(SEED, sample()[:keep])


def test_every_flipped_bit_is_noticed() -> None:
    for bit in range(8 * IOCB_BYTES):
        damaged = bytearray(sample())
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadIocb):
            decode_iocb(SEED, bytes(damaged))


@given(u32.filter(lambda seed: seed != SEED))
def test_another_file_s_iocb_is_refused(seed: int) -> None:
    with pytest.raises(BadIocb):
        decode_iocb(seed, sample())


@pytest.mark.parametrize(
    ("at", "layout", "value"),
    [
        (0, "<4s", b"IOCC"),
        (4, "<B", 0),
        (4, "<B", 11),
        (4, "<B", 127),
        (4, "<B", 132),
        (4, "<B", 255),
        (5, "<B", 1),
        (6, "<H", 1),
        (12, "<I", PAYLOAD_BYTES_MAX + 1),
    ],
)
def test_a_right_checksum_does_not_excuse_what_this_version_does_not_know(
    at: int, layout: str, value: object
) -> None:
    fields = bytearray(sample()[:-4])
    struct.pack_into(layout, fields, at, value)
    with pytest.raises(BadIocb):
        decode_iocb(SEED, resealed(bytes(fields)))


# Tables of volumes.


def test_a_table_s_bytes_are_those_that_the_format_names() -> None:
    entries = [VolumeEntry(VolumeId(5), "é", 2**40), VolumeEntry(VolumeId(1), "a.img", 0)]
    expected = (
        struct.pack("<IQH", 1, 0, 5) + b"a.img" + struct.pack("<IQH", 5, 2**40, 2) + b"\xc3\xa9"
    )
    assert encode_table(entries) == expected


@given(st.dictionaries(volume_names, st.tuples(u32, u64), max_size=8))
def test_a_table_decodes_to_its_volumes_in_the_order_of_their_ids(
    volumes: dict[str, tuple[int, int]],
) -> None:
    by_id = {number: VolumeEntry(VolumeId(number), n, s) for n, (number, s) in volumes.items()}
    entries = decode_table(encode_table(by_id.values()))
    assert entries == tuple(by_id[number] for number in sorted(by_id))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_refused(data: bytes) -> None:
    try:
        entries = decode_table(data)
    except ValueError:
        return
    assert encode_table(entries) == data


def test_every_proper_prefix_of_one_entry_is_refused() -> None:
    whole = encode_table([VolumeEntry(VolumeId(1), "v.img", 9)])
    for keep in range(1, len(whole)):
        with pytest.raises(ValueError, match="cut short"):
            decode_table(whole[:keep])


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([(2, b"a"), (1, b"b")], "rise"),
        ([(1, b"a"), (1, b"b")], "rise"),
        ([(1, b"a"), (2, b"a")], "twice"),
        ([(1, b"")], "cannot name"),
        ([(1, b"\xff")], "decode"),
    ],
)
def test_a_bad_table_is_refused(entries: list[tuple[int, bytes]], reason: str) -> None:
    raw = b"".join(struct.pack("<IQH", number, 0, len(name)) + name for number, name in entries)
    with pytest.raises(ValueError, match=reason):
        decode_table(raw)


@pytest.mark.parametrize("name", ["a", "a.img", " ", "ü" * 127, "x" * 255, "..."])
def test_a_plain_name_is_taken(name: str) -> None:
    assert check_name(name.encode()) == name


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"..",
        b"a/b",
        b"/",
        b"a\0",
        b"\n",
        b"\x1b[2J",
        b"\x7f",
        b"x" * 256,
        "ü".encode() * 128,
        b"\xff\xfe",
        b"\xed\xa0\x80",
    ],
)
def test_a_name_that_could_harm_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the decoder's message differs by case
        check_name(raw)
