"""The replayer's private copies of received files: durable before the sender's copy goes.

Nobody else writes here, so a file that was checked stays checked; it is checked again when it
is read back all the same, because disks forget.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from aimfuse.disk import publish
from aimfuse.errors import JournalError
from aimfuse.journal.names import PART, JournalName, SyncName, parse
from aimfuse.journal.reader import AimFile, read_header, read_sealed
from aimfuse.replay.store import Store
from aimfuse.units import GIB, FileNumber

FILES_MAX = 4096
BYTES_MAX = 8 * GIB


@dataclass(frozen=True, slots=True)
class Copy:
    """One received file; the times, in Unix ns, are those of its first and its last record."""

    name: JournalName | SyncName
    size_bytes: int
    digest: bytes
    first_time_ns: int
    last_time_ns: int = 0


class Work:
    """What was received and not yet applied: journal files by number, SYNC files by name."""

    def __init__(self, store: Store) -> None:
        """Take up what the last run left. Files that it did not finish are removed.

        Raises:
            OSError: the disk failed; try again with a new object.
        """
        self._store = store
        self.journal: dict[FileNumber, Copy] = {}
        self.sync: dict[SyncName, Copy] = {}
        self.size_bytes = 0
        self.lost: list[str] = []
        self._row = (0, 0)
        disk = store.disk
        for text in disk.listdir(store.work):
            name = parse(text)
            if name is None:
                disk.unlink("work:tidy", store.work / text)
            else:
                self._take_up(name)
        disk.sync_dir("work:sync_dir", store.work)  # What is counted as received must stay.

    def add(self, name: JournalName | SyncName, aim: AimFile) -> None:
        """Make a durable copy of a checked file.

        Raises:
            OSError: there may be a copy, but nobody relies on it.
        """
        path = self._store.work / name.sealed
        part = path.with_name(path.name + PART)
        if self._store.disk.exists(part):  # After a failed sync the old one is not to be trusted.
            self._store.disk.unlink("work:unlink_part", part)
        publish(self._store.disk, "work", path, aim.data)
        seal = aim.seal
        times = (seal.first_time_ns, seal.last_time_ns)
        self._note(Copy(name, seal.total_bytes, seal.digest, *times))

    def read(self, copy: Copy) -> AimFile:
        """Read a copy back and check it.

        Raises:
            JournalError: it was damaged since.
            OSError: it could not be read.
        """
        return read_sealed(self._store.disk, self._store.work / copy.name.sealed)

    def drop(self, copy: Copy) -> None:
        """Remove a copy that is applied or useless; after a crash it may be back."""
        path = self._store.work / copy.name.sealed
        if self._store.disk.exists(path):
            self._store.disk.unlink("work:drop", path)
        self.forget(copy)

    def forget(self, copy: Copy) -> None:
        """Strike a copy off the list; its file is somebody else's matter."""
        if isinstance(copy.name, JournalName):
            found = self.journal.pop(copy.name.number, None)
            self._cut_row(copy.name.number)
        else:
            found = self.sync.pop(copy.name, None)
        if found is not None:
            self.size_bytes -= found.size_bytes

    def _cut_row(self, number: int) -> None:
        """Take a file out of the unbroken row that was counted last: a long one is costly."""
        first, last = self._row
        if number == first + 1 <= last:
            self._row = (number, last)
        elif first < number <= last:
            self._row = (first, number - 1)

    def has_room(self) -> bool:
        """Tell whether files that cannot be applied yet may still be taken in."""
        return self.files < FILES_MAX and self.size_bytes < BYTES_MAX

    @property
    def files(self) -> int:
        """Return how many copies there are."""
        return len(self.journal) + len(self.sync)

    def copies(self) -> Iterator[Copy]:
        """Yield every copy, in no order."""
        yield from self.journal.values()
        yield from self.sync.values()

    def oldest_ns(self) -> int:
        """Return the time of the oldest record that waits here, 0 for none."""
        lowest = [self.journal[min(self.journal)]] if self.journal else []
        waiting = (*lowest, *self.sync.values())
        return min((one.first_time_ns for one in waiting if one.first_time_ns), default=0)

    def received(self, after: int) -> int:
        """Return the highest number such that all from *after* + 1 up to it are here."""
        first, last = self._row
        number = last if first <= after <= last else after
        while FileNumber(number + 1) in self.journal:
            number += 1
        self._row = (after, number)
        return number

    def missing(self, after: int, count_max: int) -> list[int]:
        """Return the lowest numbers behind *after* that are not here though later ones are."""
        absent: list[int] = []
        last = max(self.journal, default=FileNumber(0))
        number = self.received(after) + 1
        while number < last and len(absent) < count_max:
            if FileNumber(number) not in self.journal:
                absent.append(number)
            number += 1
        return absent

    def _take_up(self, name: JournalName | SyncName) -> None:
        disk, path = self._store.disk, self._store.work / name.sealed
        try:
            _identity, seal = read_header(disk, path)
        except JournalError:
            seal = None
        if seal is None or (isinstance(name, JournalName) and name.number in self.journal):
            self.lost.append(name.sealed)
            disk.unlink("work:tidy", path)
            return
        fd = disk.open("work:size", path, os.O_RDONLY)
        try:
            size = disk.size(fd)
        finally:
            disk.close(fd)
        self._note(Copy(name, size, seal.digest, seal.first_time_ns, seal.last_time_ns))

    def _note(self, copy: Copy) -> None:
        self.forget(copy)
        if isinstance(copy.name, JournalName):
            self.journal[copy.name.number] = copy
        else:
            self.sync[copy.name] = copy
        self.size_bytes += copy.size_bytes
