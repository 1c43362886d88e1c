"""What a store knows of how its mirror compares with its source: from when on, and where not."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from aimfuse.journal.records import VolumeEntry

MISMATCHES_MAX = 64
"""Ranges that are kept; with more, those that lie nearest to each other count as one."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A range of a volume, in bytes, that did not hold what its source said it held there.

    `epoch` and `seq` are the newest record that said so, `time_ns` its time.
    """

    volume: int
    offset: int
    length: int
    epoch: int
    seq: int
    time_ns: int

    @property
    def end(self) -> int:
        """Return where the range ends."""
        return self.offset + self.length

    def to_json(self) -> Json:
        """Return the form that state slots and acks carry."""
        return {
            "volume": self.volume, "offset": self.offset, "length": self.length,
            "epoch": self.epoch, "seq": self.seq, "time_ns": self.time_ns,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Json) -> "Mismatch":
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or of another kind.
        """
        return cls(*(int(data[name]) for name in cls.__slots__))


@dataclass(frozen=True, slots=True)
class Verified:
    """How far a mirror was compared.

    From file `since` on every VERIFY record was, 0 if the next one is the first; the newest
    one was `seq` of `epoch`, written at `time_ns`. `mismatches` are in order, and do not meet.
    """

    since: int = 0
    epoch: int = 0
    seq: int = 0
    time_ns: int = 0
    mismatches: tuple[Mismatch, ...] = ()

    def begun(self, number: int) -> "Verified":
        """Return what is so once file *number* is compared, too."""
        return self if self.since else replace(self, since=number)

    def interrupted(self) -> "Verified":
        """Return what is so where what came was not, or not wholly, compared."""
        return replace(self, since=0) if self.since else self

    def without(self, volume: int, offset: int, length: int) -> "Verified":
        """Return the same but for a range that is known to be right again."""
        if not self.mismatches:
            return self
        kept = [part for one in self.mismatches for part in _without(one, volume, offset, length)]
        return replace(self, mismatches=tuple(kept))

    def with_mismatches(self, found: Iterable[Mismatch]) -> "Verified":
        """Return the same with what was *found*, the newest last."""
        return replace(self, mismatches=_merged([*self.mismatches, *found]))

    def within(self, volumes: Iterable[VolumeEntry]) -> "Verified":
        """Return the same without what lies beyond the volumes that there are."""
        if not self.mismatches:
            return self
        sizes = {int(one.volume): one.size_bytes for one in volumes}
        kept = [
            replace(one, length=min(one.end, sizes[one.volume]) - one.offset)
            for one in self.mismatches
            if one.offset < sizes.get(one.volume, 0)
        ]
        return replace(self, mismatches=tuple(kept))

    def to_json(self) -> Json:
        """Return the form that state slots and acks carry."""
        return {
            "since": self.since, "epoch": self.epoch, "seq": self.seq, "time_ns": self.time_ns,
            "mismatches": [one.to_json() for one in self.mismatches],
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Json | None) -> "Verified":
        """Read what `to_json` wrote; errors as for `Mismatch.from_json`."""
        if data is None:
            return cls()
        return cls(
            int(data["since"]), int(data["epoch"]), int(data["seq"]), int(data["time_ns"]),
            tuple(Mismatch.from_json(one) for one in data["mismatches"]),
        )  # fmt: skip


def _without(one: Mismatch, volume: int, offset: int, length: int) -> Iterator[Mismatch]:
    end = offset + length
    if one.volume != volume or one.end <= offset or end <= one.offset:
        yield one
        return
    if one.offset < offset:
        yield replace(one, length=offset - one.offset)
    if end < one.end:
        yield replace(one, offset=end, length=one.end - end)


def _merged(found: list[Mismatch]) -> tuple[Mismatch, ...]:
    """Return them in order, those that meet as one, and no more than are kept."""
    merged: list[Mismatch] = []
    for one in sorted(found, key=lambda one: (one.volume, one.offset)):
        if merged and one.volume == merged[-1].volume and one.offset <= merged[-1].end:
            merged[-1] = _spanning(merged[-1], one)
        else:
            merged.append(one)
    while len(merged) > MISMATCHES_MAX:
        gaps = [
            (two.offset - one.end, at)
            for at, (one, two) in enumerate(pairwise(merged))
            if one.volume == two.volume
        ]
        if not gaps:  # So many volumes: mend the first ones, and verify again.
            return tuple(merged[:MISMATCHES_MAX])
        _gap, at = min(gaps)
        merged[at : at + 2] = [_spanning(merged[at], merged[at + 1])]
    return tuple(merged)


def _spanning(one: Mismatch, two: Mismatch) -> Mismatch:
    newest = max(one, two, key=lambda each: (each.epoch, each.seq))
    offset = min(one.offset, two.offset)
    return replace(newest, offset=offset, length=max(one.end, two.end) - offset)
