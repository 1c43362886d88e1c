"""What was accepted and is not yet in the image, and how reads see it.

The overlay of a volume knows, for every 4 KiB page, the changes that touch it. Huge changes
(discards, truncates) are kept aside so that they cost no entry per page. Entries go once the
image holds them; a newer change of a page survives the older one's leaving.
"""

from dataclasses import dataclass

from aimfuse.journal.records import RecordType
from aimfuse.units import BLOCK_BYTES, KIB, Seq

WIDE_BYTES_MIN = 256 * KIB
"""Changes from this length on are kept aside: an entry per page would cost more than a look."""


@dataclass(slots=True, eq=False)
class Change:
    """One accepted record on its way to the image; without payload its range reads as zeros."""

    seq: Seq
    kind: RecordType
    volume: int
    offset: int
    length: int
    payload: bytes = b""
    name: str = ""
    old_name: str = ""


class Overlay:
    """The accepted, unapplied changes of one volume's bytes."""

    def __init__(self) -> None:
        """Start empty: the image is the truth."""
        self._pages: dict[int, Change | list[Change]] = {}
        self._wide: dict[Seq, Change] = {}

    def __bool__(self) -> bool:
        """Tell whether reads have to look here at all."""
        return bool(self._pages or self._wide)

    def add(self, change: Change) -> None:
        """Put the newest change on top."""
        offset, length = change.offset, change.length
        if length >= WIDE_BYTES_MIN:
            self._wide[change.seq] = change
            return
        end = offset + length
        pages = self._pages
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        whole_first, whole_end = -(-offset // BLOCK_BYTES), end // BLOCK_BYTES
        for page in range(first, last + 1):
            if whole_first <= page < whole_end:
                pages[page] = change
                continue
            below = pages.get(page)
            if below is None:
                pages[page] = change
            elif isinstance(below, list):
                below.append(change)
            else:
                pages[page] = [below, change]

    def remove(self, change: Change) -> None:
        """Take out a change that the image holds by now."""
        if change.length >= WIDE_BYTES_MIN:
            del self._wide[change.seq]
            return
        pages = self._pages
        end = change.offset + change.length
        for page in range(change.offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            there = pages.get(page)
            if there is change:
                del pages[page]
            elif isinstance(there, list):
                rest = [entry for entry in there if entry is not change]
                if rest:
                    pages[page] = rest
                else:
                    del pages[page]

    def over(self, offset: int, length: int) -> list[Change]:
        """Return the changes that a read of the range must see, oldest first."""
        found: dict[Seq, Change] = {}
        end = offset + length
        for change in self._wide.values():
            if change.offset < end and offset < change.offset + change.length:
                found[change.seq] = change
        pages = self._pages
        if pages:
            wanted = range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)
            if len(wanted) > len(pages):  # A stretch of holes may be a thousand times as long.
                entries = [there for page, there in pages.items() if page in wanted]
            else:
                entries = [pages[page] for page in wanted if page in pages]
            for there in entries:
                if isinstance(there, list):
                    found.update((change.seq, change) for change in there)
                else:
                    found[there.seq] = there
        return [found[seq] for seq in sorted(found)]


def paste(base: bytearray, offset: int, changes: list[Change]) -> None:
    """Lay *changes*, oldest first, over *base*, the bytes of the image from *offset* on."""
    end = offset + len(base)
    for change in changes:
        start = max(offset, change.offset)
        stop = min(end, change.offset + change.length)
        if start >= stop:
            continue
        if change.payload:
            skip = start - change.offset
            data: bytes | memoryview = memoryview(change.payload)[skip : skip + stop - start]
        else:
            data = bytes(stop - start)
        base[start - offset : stop - offset] = data
