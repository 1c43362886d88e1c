"""The spool as the coordinator sees it: which sealed files there are, in a few bytes each.

One listing at the start, then the two names that can follow the newest file are looked for:
numbers have no holes, and an epoch either goes on or is followed by the next one. A rescan
now and then repairs what that could miss.
"""

import contextlib
import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path

import trio

from aimfuse.coordinator.signal import Signal
from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError, ForeignFile, TornRecord
from aimfuse.journal.header import FileKind, Identity, Seal
from aimfuse.journal.names import JournalName, parse
from aimfuse.journal.reader import read_header
from aimfuse.units import Epoch, FileNumber

FOLLOW_BUSY_S = 0.05
FOLLOW_IDLE_S = 0.1
RESCAN_S = 60.0
_BURST_FILES = 1000
_NUMBER = slice(9, 21)
"""Where a file's name has its number."""


class Backlog:
    """Files by rising number: epoch, bytes up to and with the file, time of its first record.

    An entry outlives its file in the spool while some mirror has yet to apply it. Used from
    trio's thread only.
    """

    def __init__(self, disk: Disk, spool: Path) -> None:
        self.spool = spool
        self.head = JournalName(Epoch(0), FileNumber(0))
        self.subscribers: set[Signal] = set()
        self._disk = disk
        self._numbers = array("Q")
        self._epochs = array("L")
        self._ends_bytes = array("Q")
        self._times_ns = array("Q")
        self._base_bytes = 0

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def newest(self) -> FileNumber:
        """Return the highest number that was ever sealed, 0 for none."""
        return self.head.number

    @property
    def oldest(self) -> FileNumber:
        """Return the lowest number known by its file; one past the newest if there is none."""
        return FileNumber(self._numbers[0] if self._numbers else self.newest + 1)

    def name(self, number: int) -> JournalName | None:
        """Return the name of file *number*, None if it is not known."""
        at = self._at(number)
        return None if at is None else JournalName(Epoch(self._epochs[at]), FileNumber(number))

    def path(self, name: JournalName) -> Path:
        """Return where the file lies, or lay."""
        return self.spool / name.sealed

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all files that were ever known: how much was written, so far."""
        return self._end_bytes(len(self._numbers) - 1)

    def bytes_of(self, number: int) -> int:
        """Return the file's size, 0 if it is not known."""
        return self.bytes_between(number - 1, number)

    def bytes_between(self, after: int, through: int) -> int:
        """Return the bytes of the known files with *after* < number <= *through*."""
        low, high = bisect_right(self._numbers, after), bisect_right(self._numbers, through)
        return 0 if low >= high else self._end_bytes(high - 1) - self._end_bytes(low - 1)

    def summary(self) -> dict[str, int]:
        """Return the known files as a sum that others can check against what they see."""
        newest = self._numbers[-1] if self._numbers else 0
        return {
            "first": self.oldest, "last": newest, "files": len(self),
            "bytes": self.bytes_between(0, newest),
        }  # fmt: skip

    def count_above(self, number: int) -> int:
        """Return how many known files come after file *number*."""
        return len(self._numbers) - bisect_right(self._numbers, number)

    def first_time_ns(self, after: int) -> int:
        """Return the time of the oldest record in files above *after*, 0 if none is known."""
        for at in range(bisect_right(self._numbers, after), len(self._numbers)):
            if not self._times_ns[at]:
                self._times_ns[at] = self._read_time_ns(at)
            if self._times_ns[at] > 1:
                return self._times_ns[at]
        return 0

    def check(self, name: JournalName, group: bytes) -> tuple[Identity, Seal]:
        """Return the header of a file that may be sent: sealed, whole in length, and ours.

        Raises:
            TornRecord: it is not sealed, or not of the length that was sealed.
            ForeignFile: its header does not say what its name says.
            CorruptRecord: the header is damaged.
            OSError: it could not be read.
        """
        path = self.path(name)
        identity, seal = read_header(self._disk, path)
        if seal is None:
            raise TornRecord(path, 0, "never sealed")
        if (identity.group, identity.epoch, identity.number, identity.kind) != (
            group, name.epoch, name.number, FileKind.JOURNAL,
        ):  # fmt: skip
            raise ForeignFile(path, 0, "the header contradicts the name, or the group")
        size = path.stat().st_size
        if size != seal.total_bytes:
            raise TornRecord(path, size, f"{seal.total_bytes} bytes were sealed")
        return identity, seal

    def header(self, number: int) -> tuple[Identity, Seal] | None:
        """Return the header of file *number* if it can still be read."""
        name = self.name(number)
        try:
            found = read_header(self._disk, self.path(name)) if name else None
        except (OSError, AimfuseError):
            return None
        return (found[0], found[1]) if found and found[1] else None

    def drop_through(self, number: int) -> None:
        """Forget the files up to *number*: every mirror has applied them."""
        count = bisect_right(self._numbers, number)
        if count:
            self._base_bytes = self._end_bytes(count - 1)
            for column in (self._numbers, self._epochs, self._ends_bytes, self._times_ns):
                del column[:count]

    def note_head(self, epoch: int, number: int) -> None:
        """Learn that numbers up to *number* have been used, also where their files are gone."""
        # The driver may have sealed files and moved its checkpoint past them since the last look.
        while self.newest < number and self._look_safely():
            continue
        if number > self.newest:
            self.head = JournalName(Epoch(epoch), FileNumber(number))

    def load(self) -> None:
        """List the spool once and learn every file above the newest known one.

        Raises:
            OSError: the spool could not be listed.
        """
        above = f"{self.newest:012d}" if self._numbers else ""
        # A hundred thousand names: nothing is made of one before it is known to be new.
        names = (name for name in os.listdir(self.spool) if name[_NUMBER] > above)  # noqa: PTH208
        parsed = (name for one in sorted(names) if isinstance(name := parse(one), JournalName))
        for name in parsed:
            # A listing can miss a file that gets its name while it runs, though it shows one
            # that got its name later.
            while self._numbers and self.newest + 1 < name.number and self.look():
                continue
            with contextlib.suppress(FileNotFoundError):  # Released since.
                self._add(name, os.stat(f"{self.spool}/{name.sealed}").st_size)  # noqa: PTH116

    def look(self) -> bool:
        """Learn the file that follows the newest one; tell whether there was one."""
        for epoch in (self.head.epoch, self.head.epoch + 1):
            name = JournalName(Epoch(epoch), FileNumber(self.newest + 1))
            try:
                size = self.path(name).stat().st_size
            except FileNotFoundError:
                continue
            self._add(name, size)
            return True
        return False

    def _look_safely(self) -> bool:
        try:
            return self.look()
        except OSError:
            return False

    async def follow(self, note: Callable[[OSError | None], None]) -> None:
        """Keep up with the spool for ever. *note* hears why it cannot be read, or that it can."""
        rescan_at = trio.current_time() + RESCAN_S
        wait_s = FOLLOW_BUSY_S
        while True:
            try:
                grew = self._look_for_all()
                if trio.current_time() >= rescan_at:
                    rescan_at = trio.current_time() + RESCAN_S
                    before = self.newest
                    self.load()
                    note(None)
                    grew = grew or self.newest > before
            except OSError as exc:
                note(exc)
                grew = False
            if grew:
                for subscriber in self.subscribers:
                    subscriber.notify()
            wait_s = FOLLOW_BUSY_S if grew else min(FOLLOW_IDLE_S, wait_s * 1.1)
            await trio.sleep(wait_s)

    def _look_for_all(self) -> bool:
        grew = False
        for _ in range(_BURST_FILES):
            if not self.look():
                break
            grew = True
        if not grew:
            self.spool.stat()  # A file that is not there is no error, a spool is.
        return grew

    def _add(self, name: JournalName, size: int) -> None:
        if not self._is_news(name):
            return
        self._ends_bytes.append(self._end_bytes(len(self._numbers) - 1) + size)
        self._numbers.append(name.number)
        self._epochs.append(name.epoch)
        self._times_ns.append(0)
        if name.number > self.newest:
            self.head = name

    def _is_news(self, name: JournalName) -> bool:
        return not self._numbers or name.number > self._numbers[-1]

    def _at(self, number: int) -> int | None:
        at = bisect_left(self._numbers, number)
        return at if at < len(self._numbers) and self._numbers[at] == number else None

    def _end_bytes(self, at: int) -> int:
        return self._ends_bytes[at] if at >= 0 else self._base_bytes

    def _read_time_ns(self, at: int) -> int:
        found = self.header(self._numbers[at])
        if found is None:
            return 0
        return found[1].first_time_ns or 1  # 1: known to hold no record.
