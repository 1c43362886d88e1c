"""Identity and seal, the two parts of an AIM file's header."""

import struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.journal.header import (
    HEADER_BYTES,
    IDENTITY_BYTES,
    SEAL_AT,
    SEAL_BYTES,
    BadHeader,
    FileKind,
    Identity,
    Parent,
    Seal,
    decode_identity,
    decode_seal,
    encode_identity,
    encode_seal,
    identity_seed,
)
from aimfuse.units import Epoch, FileNumber, Seq
from tests.journal.samples import flipped

GROUP = bytes(range(16))
DIGEST = bytes(range(32))

u64 = st.integers(0, 2**64 - 1)
digests = st.binary(min_size=32, max_size=32)
parents = st.builds(Parent, u64.map(Epoch), u64.map(Seq), digests)
identities = st.builds(
    Identity,
    st.binary(min_size=16, max_size=16),
    u64.map(Epoch),
    u64.map(FileNumber),
    u64,
    parents,
    st.sampled_from(FileKind),
    u64,
)
seals = st.builds(
    Seal, u64, u64, u64, u64, u64, u64.map(Seq), u64.map(Seq), u64, u64, u64, u64.map(Epoch),
    u64.map(FileNumber), digests, digests,
)  # fmt: skip

SAMPLE = Identity(
    GROUP, Epoch(3), FileNumber(9), 77, Parent(Epoch(2), Seq(5), DIGEST), FileKind.SYNC, 6
)


def header_with_seal(seal: Seal) -> bytes:
    raw = bytearray(encode_identity(SAMPLE))
    raw[SEAL_AT : SEAL_AT + SEAL_BYTES] = encode_seal(seal)
    return bytes(raw)


def some_seal() -> Seal:
    return Seal(
        5000, 4500, 404, 2, 1, Seq(4), Seq(4), 10, 11, 12, Epoch(3), FileNumber(10), DIGEST, DIGEST
    )


def test_the_identity_s_bytes_are_those_that_the_format_names() -> None:
    fields = struct.pack("<8sHHI16sQQQ", b"\x89AIM\r\n\x1a\n", 1, 1, 4096, GROUP, 3, 9, 77)
    fields += struct.pack("<QQ32sQQI", 2, 5, DIGEST, 4096, 6, 0)
    raw = encode_identity(SAMPLE)
    assert raw[:IDENTITY_BYTES] == fields + struct.pack("<I", crc32c(fields))
    assert raw[IDENTITY_BYTES:] == bytes(HEADER_BYTES - IDENTITY_BYTES)


def test_the_seal_s_bytes_are_those_that_the_format_names() -> None:
    numbers = (5000, 4500, 404, 2, 1, 4, 4, 10, 11, 12, 3, 10)
    fields = struct.pack("<8s12Q32s32s", b"AIM-SEAL", *numbers, DIGEST, DIGEST)
    assert encode_seal(some_seal()) == fields + struct.pack("<I", crc32c(fields))


@given(identities)
def test_an_identity_decodes_to_the_same(identity: Identity) -> None:
    raw = encode_identity(identity)
    assert len(raw) == HEADER_BYTES
    assert decode_identity(raw) == identity
    assert decode_seal(raw) is None


@given(seals)
def test_a_seal_decodes_to_the_same(seal: Seal) -> None:
    raw = header_with_seal(seal)
    assert decode_seal(raw) == seal
    assert decode_identity(raw) == SAMPLE


@given(identities, identities)
def test_files_that_differ_have_seeds_that_differ(one: Identity, other: Identity) -> None:
    equal = identity_seed(encode_identity(one)) == identity_seed(encode_identity(other))
    assert equal == (one == other)


def test_the_seed_does_not_depend_on_the_seal() -> None:
    assert identity_seed(header_with_seal(some_seal())) == identity_seed(encode_identity(SAMPLE))


def test_every_proper_prefix_is_refused() -> None:
    raw = header_with_seal(some_seal())
    for keep in range(IDENTITY_BYTES):
        with pytest.raises(BadHeader, match="cut short"):
            decode_identity(raw[:keep])
    for keep in range(SEAL_AT + SEAL_BYTES):
        with pytest.raises(BadHeader, match="cut short"):
            decode_seal(raw[:keep])


def test_every_flipped_bit_is_noticed() -> None:
    raw = header_with_seal(some_seal())
    for bit in range(8 * IDENTITY_BYTES):
        with pytest.raises(BadHeader):
            decode_identity(flipped(raw, bit))
    for bit in range(8 * SEAL_AT, 8 * (SEAL_AT + SEAL_BYTES)):
        with pytest.raises(BadHeader):
            decode_seal(flipped(raw, bit))


def test_a_seal_of_which_any_part_is_zeros_does_not_read_as_unsealed() -> None:
    raw = header_with_seal(some_seal())
    for keep in range(1, SEAL_BYTES):
        cut = bytearray(raw)
        cut[SEAL_AT + keep : SEAL_AT + SEAL_BYTES] = bytes(SEAL_BYTES - keep)
        with pytest.raises(BadHeader, match="checksum"):
            decode_seal(bytes(cut))


@pytest.mark.parametrize(
    ("at", "layout", "value", "reason"),
    [
        (0, "<8s", b"\x89AIM\n\n\x1a\n", "not an AIM file"),
        (8, "<H", 0, "version 0"),
        (8, "<H", 2, "version 2"),
        (10, "<H", 3, "kind 3"),
        (12, "<I", 4095, "pointers"),
        (104, "<Q", 8192, "pointers"),
        (120, "<I", 1, "version"),
    ],
)
def test_a_right_checksum_does_not_excuse_what_this_version_does_not_know(
    at: int, layout: str, value: object, reason: str
) -> None:
    raw = bytearray(encode_identity(SAMPLE)[: IDENTITY_BYTES - 4])
    struct.pack_into(layout, raw, at, value)
    with pytest.raises(BadHeader, match=reason):
        decode_identity(bytes(raw) + struct.pack("<I", crc32c(bytes(raw))))
