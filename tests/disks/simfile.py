"""The contents of one simulated file: what the cache shows and what the disk may hold.

Each page keeps its versions since it was last durable. The first is on the disk, the last is
in the cache, and a power cut may leave any of them. None is a hole.
"""

from collections.abc import Iterator

from aimfuse.disk import Buffer
from tests.disks.cuts import Choose, Unit

PAGE_BYTES = 4096
SECTOR_BYTES = 512
_ZEROS = bytes(PAGE_BYTES)

Page = bytes | None


class SimFile:
    """One inode. A sync that fails leaves pages that are clean, but not what the disk holds."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.error_count = 0
        self._versions: dict[int, list[Page]] = {}
        self._dirty: set[int] = set()
        self._sizes = [0]
        self._size_dirty = False
        self._size_journalled = False
        self._times = [0]

    @property
    def size(self) -> int:
        return self._sizes[-1]

    @property
    def times(self) -> int:
        """Return a number that rises with every change, as a file's mtime does."""
        return self._times[-1]

    def copy(self) -> "SimFile":
        other = SimFile(self.inode)
        other.error_count = self.error_count
        other._versions = {index: list(pages) for index, pages in self._versions.items()}
        other._dirty = set(self._dirty)
        other._sizes = list(self._sizes)
        other._size_dirty = self._size_dirty
        other._size_journalled = self._size_journalled
        other._times = list(self._times)
        return other

    # What programs see.

    def read(self, length: int, offset: int) -> bytes:
        return self._read(length, offset, -1)

    def durable_bytes(self) -> bytes:
        return self._read(self._sizes[0], 0, 0, self._sizes[0])

    def _read(self, length: int, offset: int, version: int, size: int | None = None) -> bytes:
        end = min(offset + length, self.size if size is None else size)
        parts = []
        while offset < end:
            index, at = divmod(offset, PAGE_BYTES)
            upto = min(PAGE_BYTES, at + end - offset)
            page = self._versions.get(index, [None])[version] or _ZEROS
            parts.append(page[at:upto])
            offset += upto - at
        return b"".join(parts)

    def write(self, data: Buffer, offset: int) -> None:
        self._touch()
        end = offset + len(data)
        done = 0
        while offset + done < end:
            index, at = divmod(offset + done, PAGE_BYTES)
            count = min(PAGE_BYTES - at, end - offset - done)
            piece = bytes(data[done : done + count])
            if count < PAGE_BYTES:
                old = self._page(index) or _ZEROS
                piece = old[:at] + piece + old[at + count :]
            self._put(index, piece)
            done += count
        # A rewrite up to the end brings a size along that an earlier failed sync had lost.
        if end > self.size or end > min(self._sizes):
            self._set_size(max(end, self.size))

    def truncate(self, size: int) -> None:
        self._touch()
        for index in list(self._versions):
            if index * PAGE_BYTES >= size:
                self._put(index, None)
        index, keep = divmod(size, PAGE_BYTES)
        page = self._page(index)
        if keep and page and page[keep:] != _ZEROS[keep:]:
            self._put(index, page[:keep].ljust(PAGE_BYTES, b"\0"))
        self._size_journalled |= size != self.size
        self._set_size(size)

    def punch(self, offset: int, length: int) -> None:
        self._touch()
        end = offset + length
        for index in list(self._versions):
            start = index * PAGE_BYTES
            a, b = max(offset, start) - start, min(end, start + PAGE_BYTES) - start
            page = self._page(index)
            if a >= b or page is None:
                continue
            whole = b - a == PAGE_BYTES
            self._put(index, None if whole else page[:a] + bytes(b - a) + page[b:])

    def data_pages(self) -> list[int]:
        """Return the indices of the pages that are no holes, in order."""
        return sorted(index for index, pages in self._versions.items() if pages[-1] is not None)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        end = min(end, self.size)
        at = upto = start
        for index in self.data_pages():
            a, b = max(start, index * PAGE_BYTES), min(end, (index + 1) * PAGE_BYTES)
            if a >= b:
                continue
            if a != upto and at < upto:
                yield at, upto
            if a != upto:
                at = a
            upto = b
        if at < upto:
            yield at, upto

    # What the disk holds.

    def sync(self) -> None:
        for index in self._dirty:
            self._forget_older(index)
        self._dirty.clear()
        if self._size_dirty:
            self._sizes = self._sizes[-1:]
            self._size_dirty = self._size_journalled = False

    def sync_times(self) -> None:
        """Make the times durable, which `sync` does not: it is an fdatasync."""
        self._times = self._times[-1:]

    def fail_sync(self) -> None:
        """Clean every dirty page without saying which of them the disk holds.

        Holes and sizes that were set, not grown by writes, are metadata: journalled, and
        never forgotten for the failure of a data page.
        """
        self._dirty = {index for index in self._dirty if self._page(index) is None}
        self._size_dirty = self._size_dirty and self._size_journalled
        self.error_count += 1

    def drop_cache(self) -> None:
        """Read clean pages from the disk again: what a failed sync lost is gone."""
        for index in [i for i, pages in self._versions.items() if len(pages) > 1]:
            if index not in self._dirty:
                del self._versions[index][1:]
                self._drop_hole(index)

    def units(self, grain: int, *, lazy_times: bool) -> Iterator[Unit]:
        """Yield what a power cut may lose, in a fixed order."""
        for _index, _at, unit, _states in self._page_units(grain):
            yield unit
        if len(self._sizes) > 1:
            yield self._size_unit()
        if lazy_times and len(self._times) > 1:
            yield self._times_unit()

    def settle(self, choose: Choose, grain: int, *, lazy_times: bool) -> "SimFile":
        """Return the file as a power cut leaves it."""
        other = SimFile(self.inode)
        other._versions = {index: pages[:1] for index, pages in self._versions.items()}
        for index, at, unit, states in self._page_units(grain):
            state = states[choose(unit)]
            if grain < PAGE_BYTES:
                page = other._versions[index][0] or _ZEROS
                state = page[:at] + (state or _ZEROS[:grain]) + page[at + grain :]
            other._versions[index] = [state]
        size = self._sizes[choose(self._size_unit())] if len(self._sizes) > 1 else self.size
        lazy = lazy_times and len(self._times) > 1
        times = self._times[choose(self._times_unit()) if lazy else -1]
        for index in list(other._versions):
            other._drop_hole(index)
        other._sizes = [max(self._sizes)]
        other.truncate(size)
        other.sync()
        other._times = [times]
        return other

    def _page_units(self, grain: int) -> Iterator[tuple[int, int, Unit, list[Page]]]:
        kind = "page" if grain == PAGE_BYTES else "sector"
        for index in sorted(self._versions):
            pages = self._versions[index]
            for at in range(0, PAGE_BYTES, grain) if len(pages) > 1 else ():
                states = list(dict.fromkeys(page and page[at : at + grain] for page in pages))
                if len(states) > 1:
                    where = f"inode {self.inode} byte {index * PAGE_BYTES + at}"
                    yield index, at, Unit(kind, where, len(states)), states

    def _size_unit(self) -> Unit:
        return Unit("size", f"inode {self.inode}", len(self._sizes))

    def _times_unit(self) -> Unit:
        return Unit("times", f"inode {self.inode}", len(self._times))

    def _touch(self) -> None:
        self._times = [self._times[0], self._times[-1] + 1]

    def _page(self, index: int) -> Page:
        return self._versions.get(index, [None])[-1]

    def _put(self, index: int, page: Page) -> None:
        versions = self._versions.setdefault(index, [None])
        versions.append(page)
        self._dirty.add(index)

    def _set_size(self, size: int) -> None:
        if size != self.size:
            self._sizes.append(size)
            self._size_dirty = True
        elif len(self._sizes) > 1:
            self._size_dirty = True

    def _forget_older(self, index: int) -> None:
        del self._versions[index][:-1]
        self._drop_hole(index)

    def _drop_hole(self, index: int) -> None:
        if self._versions[index] == [None]:
            del self._versions[index]
