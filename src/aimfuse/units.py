"""Sizes, durations and the number types that the stages share."""

import re
from typing import NewType

from aimfuse.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
SECOND_NS = 1_000_000_000

# The grain of zero detection, of holes and of the sparse-image checks.
BLOCK_BYTES = 4 * KIB

Seq = NewType("Seq", int)
"""Number of a record within its epoch; the first is 1, 0 means none yet."""

Epoch = NewType("Epoch", int)
"""Number of one unbroken run of the journal; the first is 1, 0 means none yet."""

FileNumber = NewType("FileNumber", int)
"""Number of an AIM file along a lineage, across epochs; the first is 1, 0 means none yet."""

VolumeId = NewType("VolumeId", int)
"""Number of a volume within its group, never used twice; the first is 1."""

ByteOffset = NewType("ByteOffset", int)

_SIZE_FACTORS = {
    "": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_DURATION_FACTORS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_HINT = "Write for example 10GiB, 512MiB or 64KiB; the units are binary: KiB, MiB, GiB, TiB."
_DURATION_HINT = "Write for example 30s, 250ms or 5m; the units are ms, s, m, h and d."
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def natural(value: object) -> int:
    """Return *value* if it is a whole number from 0 to 2^64 - 1, as every counter is.

    Raises:
        ValueError: it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no counter")
    return value


def parse_size(text: str) -> int:
    """Return the bytes that *text* names: ``4096``, ``16MiB``, ``1.5g``.

    Raises:
        UsageError: *text* is not a number with one of the binary units.
    """
    return int(_quantity(text, _SIZE_FACTORS, "a size", _SIZE_HINT))


def parse_duration_s(text: str) -> float:
    """Return the seconds that *text* names: ``250ms``, ``1s``, ``5m``, ``7d``.

    Raises:
        UsageError: *text* is not a number with one of the units.
    """
    factors = {"": 1.0, **_DURATION_FACTORS_S}
    return float(_quantity(text, factors, "a duration", _DURATION_HINT))


def _quantity(
    text: str, factors: dict[str, float] | dict[str, int], wanted: str, hint: str
) -> float:
    match = _QUANTITY.fullmatch(text)
    factor = factors.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not {wanted}", hint=hint)
    return float(match[1]) * factor


def format_bytes(count: float) -> str:
    """Return *count* bytes for people: ``0 B``, ``1.5 KiB``, ``16.0 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < KIB:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= KIB
    return f"{count:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Return a duration for people: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 d 4 h``."""
    if seconds < 10:  # noqa: PLR2004 - below this a tenth of a second is worth showing
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for big, small, unit, rest in (
        (86400, 3600, "d", "h"),
        (3600, 60, "h", "min"),
        (60, 1, "min", "s"),
    ):
        if whole >= big:
            return f"{whole // big} {unit} {whole % big // small} {rest}"
    return f"{whole} s"


def counted(number: int, what: str) -> str:
    """Return a number of things for people."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def align_down(value: int, grain: int) -> int:
    """Return the largest multiple of *grain* that is not above *value*."""
    return value - value % grain


def align_up(value: int, grain: int) -> int:
    """Return the smallest multiple of *grain* that is not below *value*."""
    return value + -value % grain
