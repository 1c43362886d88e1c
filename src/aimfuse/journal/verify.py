"""What a VERIFY record says: what ranges of a volume hold at its position, by their hashes.

The payload is JSON: ``{"ranges": [[offset, length, "64 hex digits of BLAKE3"], …]}``, offsets
rising, no overlap. An empty hash says that the range reads as zeros, of whatever length.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from blake3 import blake3

from aimfuse.units import GIB, KIB, MIB, natural

GRAIN_BYTES = 256 * KIB
"""The stretch that one hash of ours is of, and the least that a mismatch names."""

HASHED_BYTES_MAX = 4 * MIB
"""The longest range with a hash that a reader compares: it is read as one."""

ZEROS_BYTES_MAX = 16 * GIB
"""The longest range of zeros that a writer puts into one record: elsewhere it may be no hole."""

VERIFY_BYTES_MAX = 64 * KIB
"""What a payload of ours takes, at most."""

VOLUME_BYTES_MAX = (1 << 63) - 1
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Hashed:
    """A range of a volume in bytes and its hash, which is empty for one that is all zeros."""

    offset: int
    length: int
    digest: bytes = b""

    @property
    def end(self) -> int:
        """Return where the range ends."""
        return self.offset + self.length


def hash_of(data: bytes) -> bytes:
    """Return the hash of *data*, empty if it is all zeros."""
    return b"" if data == zeros(len(data)) else blake3(data).digest()


@lru_cache(maxsize=8)
def zeros(length: int) -> bytes:
    """Return so many zeros; for lengths of a grain or so, of which few differ."""
    return bytes(length)


@lru_cache(maxsize=64)
def hash_of_zeros(length: int) -> bytes:
    """Return what BLAKE3 gives for so many zeros: others may hash a hole like that."""
    return blake3(bytes(length)).digest()


def encode_hashes(ranges: Sequence[Hashed]) -> bytes:
    """Return the payload of a VERIFY record."""
    listed = [[one.offset, one.length, one.digest.hex()] for one in ranges]
    return json.dumps({"ranges": listed}, separators=(",", ":")).encode()


def decode_hashes(payload: bytes) -> tuple[Hashed, ...]:
    """Return what a VERIFY record says.

    Raises:
        ValueError: not what this version knows; then there is nothing to compare.
    """
    try:
        listed = json.loads(payload)["ranges"]
        found = tuple(
            Hashed(natural(offset), natural(length), bytes.fromhex(digest))
            for offset, length, digest in listed
        )
    except (KeyError, TypeError, RecursionError) as exc:
        raise ValueError(f"no hashes of ranges: {exc}") from exc
    end = 0
    for one in found:
        _check(one, end)
        end = one.end
    return found


def _check(one: Hashed, after: int) -> None:
    if one.offset < after or not one.length or one.end > VOLUME_BYTES_MAX:
        raise ValueError("ranges that overlap, do not rise or are empty")
    if one.digest and (len(one.digest) != _DIGEST_BYTES or one.length > HASHED_BYTES_MAX):
        raise ValueError("a hash of another kind, or of too long a range")
