"""A stretch of a volume, hashed as it is at one position while others write to the volume.

It is begun on trio's thread: what was accepted so far is gathered, and from then on each change
is noted. A worker thread reads the image and lays over it what was gathered; what the applier
puts there in between is the same. Back on trio's thread all that no change has touched is as it
was hashed, at whatever position the journal is by then.
"""

from collections.abc import Iterator, Sequence

from aimfuse.driver.changes import Change, paste
from aimfuse.driver.images import Images
from aimfuse.driver.volumes import Volume
from aimfuse.journal.verify import GRAIN_BYTES, ZEROS_BYTES_MAX, Hashed, hash_of
from aimfuse.units import MIB, align_down, align_up

READ_BYTES_MAX = 16 * MIB
"""Read of one stretch, at most; holes cost nothing and may make it longer."""

RANGES_MAX = 512
"""Ranges of one record, at most; what is behind them is left to the next stretch."""

Place = tuple[int, int]
"""Where a part of a volume begins and ends, in bytes."""


class Stretch:
    """Hashes what lies between two offsets of a volume; `end` is how far it came."""

    def __init__(self, images: Images, volume: Volume, start: int, end: int) -> None:
        """Gather what was accepted; `note` has to hear of every change from now on."""
        self.volume = volume
        self.start = start
        self.end = min(end, volume.size_bytes, start + ZEROS_BYTES_MAX)
        self.read_bytes = 0
        self.unreadable: list[Place] = []
        self._images = images
        self._hashed: list[Hashed] = []
        self._touched: set[Place] = set()
        length = max(0, self.end - start)
        self._over = volume.overlay.over(start, length) if length and volume.overlay else []
        self._narrow: dict[int, list[Change]] = {}
        self._wide: list[Change] = []

    def note(self, change: Change) -> None:
        """Note a change that was just accepted."""
        low, high = change.offset, change.offset + change.length
        is_ours = change.length and change.volume == self.volume.volume
        if is_ours and low < self.end and self.start < high:
            low, high = max(low, self.start), min(high, self.end)
            self._touched.add((align_down(low, GRAIN_BYTES), align_up(high, GRAIN_BYTES)))

    def hash(self) -> None:
        """Read and hash; blocks.

        What the disk refuses to read is left out, and listed in `unreadable`.
        """
        covered = _covered(self._over, self.start, self.end)
        self._sort_changes()
        at, is_data = self.start, False
        while at < self.end and self.read_bytes < READ_BYTES_MAX:
            if not is_data:
                skipped = self._next(at, covered)
                if skipped > at:
                    self._add(Hashed(at, skipped - at))
                    at = skipped
                    continue
            stop = min(self.end, align_down(at, GRAIN_BYTES) + GRAIN_BYTES)
            self.read_bytes += stop - at
            is_data = self._hash_grain(at, stop)
            at = stop
        self.end = at

    def sound(self) -> list[Hashed]:
        """Return what is still as it was hashed, a record's worth of it: that may lower `end`."""
        if self.volume.removed:
            return []
        found = self._hashed
        if self._touched:
            found = [piece for one in self._hashed for piece in self._untouched(one)]
        if len(found) > RANGES_MAX:
            self.end = found[RANGES_MAX].offset
        return found[:RANGES_MAX]

    def touched(self) -> list[Place]:
        """Return what has changed since it was begun: those parts have to be hashed again."""
        if self.volume.removed:
            return []
        return [
            (max(low, self.start), min(high, self.end, self.volume.size_bytes))
            for low, high in _merged(self._touched)
            if max(low, self.start) < min(high, self.end, self.volume.size_bytes)
        ]

    def _untouched(self, one: Hashed) -> Iterator[Hashed]:
        at = one.offset
        for low, high in _merged(self._touched):
            if high <= at or one.end <= low:
                continue
            if one.digest:  # It is of a grain, and touched.
                return
            if at < low:
                yield Hashed(at, low - at)
            at = high
        if at < one.end:
            yield one if at == one.offset else Hashed(at, one.end - at)

    def _next(self, at: int, covered: Sequence[Place]) -> int:
        """Return up to where there is a hole from *at* on, in whole grains, and nothing above."""
        above = next((max(low, at) for low, high in covered if high > at), self.end)
        if above <= at:
            return at
        data = self._images.next_data(self.volume.volume, at, self.end)
        if data < self.end:
            data = max(at, align_down(data, GRAIN_BYTES))
        return min(data, above)

    def _hash_grain(self, at: int, stop: int) -> bool:
        """Hash what lies in one grain; return whether there is anything but zeros."""
        try:
            data = self._images.read(self.volume.volume, stop - at, at)
        except OSError:
            self.unreadable.append((at, stop))
            return True
        over = self._narrow.get(at // GRAIN_BYTES, [])
        if self._wide:
            over = sorted([*over, *self._wide], key=lambda one: one.seq)
        if over:
            laid = bytearray(data)
            paste(laid, at, over)
            data = bytes(laid)
        digest = hash_of(data)
        self._add(Hashed(at, stop - at, digest))
        return bool(digest)

    def _sort_changes(self) -> None:
        """Note which changes lie over which grain: there may be thousands of either."""
        for one in self._over:
            if one.length > GRAIN_BYTES:
                self._wide.append(one)
                continue
            last = (one.offset + one.length - 1) // GRAIN_BYTES
            for grain in range(one.offset // GRAIN_BYTES, last + 1):
                self._narrow.setdefault(grain, []).append(one)

    def _add(self, new: Hashed) -> None:
        last = self._hashed[-1] if self._hashed else None
        if last and not last.digest and not new.digest and last.end == new.offset:
            self._hashed[-1] = Hashed(last.offset, last.length + new.length)
        else:
            self._hashed.append(new)


def _covered(changes: Sequence[Change], start: int, end: int) -> list[Place]:
    """Return the parts, in whole grains, over which a change lies that the image may lack."""
    return _merged(
        {
            (
                align_down(max(one.offset, start), GRAIN_BYTES),
                align_up(min(one.offset + one.length, end), GRAIN_BYTES),
            )
            for one in changes
        }
    )


def _merged(places: set[Place]) -> list[Place]:
    """Return the places in order, those that meet as one."""
    found: list[Place] = []
    for low, high in sorted(places):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found
