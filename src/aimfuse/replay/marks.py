"""The index of a store's bookmarks: ``STORE/bookmarks``, so that nobody has to read every file.

Its first line says from which file on it is complete: ``{"behind": 4711}``; then comes one line for
each bookmark, ``{"label":…,"epoch":…,"seq":…,"file":…,"time_ns":…}``, in order. A line is durable
before its file is applied, so what has been applied is in the index; lines of files that have
not been are left out by whoever reads. A missing or damaged index is made again, some files at a
time, from those of the history.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from aimfuse.disk import Disk, publish, read_file
from aimfuse.errors import CorruptRecord, JournalError
from aimfuse.journal.header import (
    HEADER_BYTES,
    BadHeader,
    decode_identity,
    decode_seal,
    identity_seed,
)
from aimfuse.journal.lines import Fact, decode_lines, encode_lines
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import IOCB_BYTES, BadIocb, RecordType, decode_iocb
from aimfuse.replay.kept import KeptSet
from aimfuse.replay.store import Store
from aimfuse.units import MIB

MARKS = "bookmarks"
MARKS_MAX = 100_000
"""Of more than these the oldest leave the index; they are found in the history's files, then."""

SCAN_FILES = 100
"""Files that one step of making the index again reads."""

_FILE_BYTES_MAX = 128 * MIB
_TYPE_AT = 4
"""Where in an IOCB its type is."""


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A bookmark in journal file *number*; *time_ns* in Unix ns."""

    label: str
    epoch: int
    seq: int
    number: int
    time_ns: int

    def to_json(self) -> Fact:
        """Return the form of the index."""
        return {
            "label": self.label, "epoch": self.epoch, "seq": self.seq,
            "file": self.number, "time_ns": self.time_ns,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Index:
    """What is indexed: all bookmarks of the files behind number *behind*."""

    behind: int
    marks: tuple[Bookmark, ...]
    end_at: int

    def between(self, base: int, head: int) -> list[Bookmark]:
        """Return the bookmarks of the files from *base* + 1 to *head*, the oldest first."""
        return list(dict.fromkeys(one for one in self.marks if base < one.number <= head))


def read_index(disk: Disk, store: Path) -> Index | None:
    """Return a store's index, None if it is missing or damaged anywhere.

    Raises:
        OSError: it could not be read.
    """
    try:
        data = read_file(disk, store / MARKS, _FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    lines = decode_lines(data)
    is_cut = lines.end_at < len(data)  # By a crash, of a file that was not applied; or by a harm.
    if is_cut or lines.damaged or not lines.facts or "behind" not in lines.facts[0]:
        return None
    marks = [
        Bookmark(one["label"], one["epoch"], one["seq"], one["file"], one["time_ns"])
        for one in lines.facts[1:]
    ]
    return Index(lines.facts[0]["behind"], tuple(marks), lines.end_at)


def find_marks(
    disk: Disk, store: Path, sets: Iterable[KeptSet], base: int, head: int
) -> list[Bookmark]:
    """Return the bookmarks of the files from *base* + 1 to *head*, the oldest first.

    Those of *sets*, which lie there, are read where the index does not go back so far.

    Raises:
        JournalError: a file of the history is damaged.
        OSError: one could not be read, or has just been pruned.
    """
    index = read_index(disk, store)
    behind = index.behind if index else head
    old = sorted((one.name for one in sets if one.name.number <= behind), key=lambda n: n.number)
    found = [mark for name in old for mark in scan_file(disk, store / "history" / name.sealed)]
    return found + (index.between(max(base, behind), head) if index else [])


def scan_file(disk: Disk, path: Path) -> list[Bookmark]:
    """Return the bookmarks of one file: its IOCB portion is read, and their labels.

    Raises:
        CorruptRecord: it is damaged.
        OSError: it could not be read.
    """
    fd = disk.open("marks:open_file", path, os.O_RDONLY)
    try:
        header = disk.pread(fd, HEADER_BYTES, 0)
        identity, seal = decode_identity(header), decode_seal(header)
        if seal is None:
            raise CorruptRecord(path, 0, "never sealed")
        raw = disk.pread(fd, seal.iocb_count * IOCB_BYTES, seal.iocb_at)
        kinds, seed = raw[_TYPE_AT::IOCB_BYTES], identity_seed(header)
        found, index = [], kinds.find(RecordType.BOOKMARK)
        while index >= 0:
            iocb = decode_iocb(seed, raw[index * IOCB_BYTES : (index + 1) * IOCB_BYTES])
            label = disk.pread(fd, iocb.payload_bytes, iocb.data_at).decode(errors="replace")
            found.append(Bookmark(label, identity.epoch, iocb.seq, identity.number, iocb.time_ns))
            index = kinds.find(RecordType.BOOKMARK, index + 1)
    except (BadIocb, BadHeader) as exc:
        raise CorruptRecord(path, 0, str(exc)) from exc
    finally:
        disk.close(fd)
    return found


def marks_of(aim: AimFile) -> list[Bookmark]:
    """Return the bookmarks of a file that is in memory."""
    end_at = aim.seal.iocb_at + aim.seal.iocb_count * IOCB_BYTES
    kinds = bytes(aim.data[aim.seal.iocb_at + _TYPE_AT : end_at : IOCB_BYTES])
    if RecordType.BOOKMARK not in kinds:
        return []
    epoch, number = aim.identity.epoch, aim.identity.number
    return [
        Bookmark(bytes(aim.payload(one)).decode(errors="replace"), epoch, one.seq, number,
                 one.time_ns)
        for one in aim.records()
        if one.type is RecordType.BOOKMARK
    ]  # fmt: skip


class Marks:
    """The index of one open store, kept by its replayer."""

    def __init__(self, store: Store, sets: Iterable[KeptSet]) -> None:
        """Read the index, or begin to make it again from *sets*, the history's.

        Raises:
            OSError: the disk failed; try again with a new object.
        """
        self._store = store
        head = store.state.head.number if store.state.head else 0
        index = read_index(store.disk, store.home)
        self._behind = index.behind if index else 0
        self._end_at = index.end_at if index else 0
        self.known = [one for one in index.marks if one.number <= head] if index else []
        self._to_scan = [] if index else [one.name for one in sets if one.name.number <= head]
        self._is_whole = index is not None and len(self.known) == len(index.marks)
        self._is_missing = index is None
        if index is None:
            self._behind = min((name.number - 1 for name in self._to_scan), default=head)
        self._scanned: list[Bookmark] = []

    def note(self, aim: AimFile) -> None:
        """Put the bookmarks of *aim*, which is about to be applied, into the index, durably.

        Raises:
            OSError: the disk failed. Nothing else was changed.
        """
        number, epoch = aim.identity.number, aim.identity.epoch
        found = marks_of(aim)
        if self.known and self.known[-1].number >= number:
            if self.known[-1].epoch == epoch:  # Applied again, after a crash or a failure.
                return
            self.known = [one for one in self.known if one.number < number]
            self._is_whole = False  # The mirror went back, and has left that branch.
        elif not found:
            return
        if self._is_whole:
            self._append(found)
        elif not self._is_missing:  # It has lines of files that were never applied.
            self._write(found)
        self.known += found

    def known_behind(self, number: int, seq: int) -> Iterator[Bookmark]:
        """Yield the bookmarks behind record *seq* of file *number*, the oldest first."""
        at = bisect_right(self.known, (number, seq), key=lambda one: (one.number, one.seq))
        return islice(self.known, at, None)

    def step(self) -> bool:
        """Do a piece of what is left to be done; tell whether anything was.

        Raises:
            OSError: the disk failed; the next step tries again.
        """
        if self._is_whole:
            return False
        batch, self._to_scan = self._to_scan[:SCAN_FILES], self._to_scan[SCAN_FILES:]
        for name in batch:
            try:
                path = self._store.home / "history" / name.sealed
                self._scanned += scan_file(self._store.disk, path)
            except FileNotFoundError:  # Pruned meanwhile.
                continue
            except JournalError:  # Whoever asks for the bookmarks hears of that.
                self._behind = name.number
        if not batch:
            self._write()
        return True

    def _append(self, marks: list[Bookmark]) -> None:
        if len(self.known) + len(marks) > 2 * MARKS_MAX:
            self._write(marks)
            return
        disk, data = self._store.disk, encode_lines(one.to_json() for one in marks)
        path = self._store.home / MARKS
        if not disk.exists(path):
            self._write(marks)
            return
        fd = disk.open("marks:open", path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            disk.pwrite("marks:write", fd, [data], self._end_at)
            disk.fdatasync("marks:sync", fd)
        finally:
            disk.close(fd)
        self._end_at += len(data)

    def _write(self, more: Iterable[Bookmark] = ()) -> None:
        """Make the index anew, of the newest bookmarks."""
        found = {one for one in self._scanned if one.number > self._behind}
        known = sorted(found.union(self.known), key=lambda one: (one.number, one.seq))
        marks, behind = [*known, *more], self._behind
        if len(marks) > MARKS_MAX:
            behind = marks[-MARKS_MAX - 1].number
            marks = [one for one in marks if one.number > behind]
        data = encode_lines([{"behind": behind}, *(one.to_json() for one in marks)])
        publish(self._store.disk, "marks", self._store.home / MARKS, data, 0o644)
        self._behind, self._end_at, self._is_whole = behind, len(data), True
        self.known = [one for one in known if one.number > behind]
        self._scanned, self._is_missing = [], False


def labels_of_store(disk: Disk, store: Path, number: int, seq: int) -> bytes:
    """Return the contents of ``labels`` for a source that goes on from this store.

    It goes on behind file *number* and, of the next one, the records up to *seq*: labels that were
    given later are not of its history.

    Raises:
        OSError: the index could not be read.
    """
    index = read_index(disk, store)
    return encode_lines(
        {"label": one.label, "epoch": one.epoch, "seq": one.seq}
        for one in (index.marks if index else ())
        if one.number <= number or (one.number == number + 1 and one.seq <= seq)
    )
