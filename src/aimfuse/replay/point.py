"""Which point of the past is meant, and where in the history it lies.

A point is a file boundary and, behind it, the records of one more file up to a number. Given as
a time it is the last record that was made until then, by the source's clock.
"""

import contextlib
import itertools
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord, JournalError, OutOfReach, UsageError
from aimfuse.journal.excerpt import read_front, read_iocbs
from aimfuse.journal.header import HEADER_BYTES, Seal, identity_seed
from aimfuse.journal.names import JournalName
from aimfuse.journal.reader import read_header
from aimfuse.journal.records import IOCB_BYTES, BadIocb, decode_iocb
from aimfuse.replay.kept import KeptSet
from aimfuse.replay.marks import scan_file
from aimfuse.replay.onward import WORK, Step, read_step
from aimfuse.replay.past import Past, find_bookmarks, promoted_tail
from aimfuse.replay.state import Head
from aimfuse.replay.undo import read_undo
from aimfuse.units import SECOND_NS, parse_duration_s

HINT = (
    "Give a time (2026-11-23 14:03:10, 14:03:10, with +02:00 or Z behind it for another zone), "
    "an age (5 minutes ago, 90s ago), a position (1:4711), or a bookmark (also as bookmark:LABEL). "
    "`aimfuse history` lists what there is."
)
FUTURE_NS_MAX = 3600 * SECOND_NS
"""The source's clock may be ahead of this one."""

CLOCK_FILES = 8
"""So many files right behind the one that is found by its time are looked at, too."""

_POSITION = re.compile(r"(\d{1,19}):(\d{1,19})")
_AGO = re.compile(r"(.+?)\s+ago")
_WORDS = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|sec|min|second|minute|hour|day|week)s?\b")
_UNITS = {"sec": "s", "min": "m", "second": "s", "minute": "m", "hour": "h", "day": "d"}
_CLOCK = re.compile(r"\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_BOOKMARK = "bookmark:"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for: one of position (epoch, seq), Unix time in ns, or bookmark."""

    text: str
    position: tuple[int, int] | None = None
    time_ns: int | None = None
    label: str | None = None
    before: bool = False

    @property
    def is_newest(self) -> bool:
        """Tell whether nothing but the newest state is wanted."""
        return self.position is None and self.time_ns is None and self.label is None


@dataclass(frozen=True, slots=True)
class Point:
    """The state behind file *base* and, of file *redo*, the records up to *seq*.

    *position* is epoch and seq of the last record in it, *time_ns* its time, 0 if unknown. Of a
    point that the mirror has not come to, *onward* are the files from there; *seq* is in the last.
    """

    base: int
    redo: KeptSet | None
    seq: int
    position: tuple[int, int]
    time_ns: int
    onward: tuple[Step, ...] = ()


def parse_at(text: str | None, now: datetime, *, before: bool = False) -> Wanted:
    """Return what *text* means at the local time *now*; nothing is the newest state.

    Raises:
        UsageError: it is empty, or a time that cannot be.
    """
    if text is None or text.strip() in {"now", "newest"}:
        return Wanted("now", before=before)
    text = text.strip()
    if not text:
        raise UsageError("an empty point in time", hint=HINT)
    if text.startswith(_BOOKMARK):
        return Wanted(text, label=text.removeprefix(_BOOKMARK), before=before)
    if match := _AGO.fullmatch(text):
        then_ns = int(now.timestamp() * SECOND_NS) - int(_age_s(match[1]) * SECOND_NS)
        return Wanted(text, time_ns=then_ns, before=before)
    if (moment := _moment(text, now)) is not None:
        return Wanted(text, time_ns=moment, before=before)
    if match := _POSITION.fullmatch(text):
        return Wanted(text, position=(int(match[1]), int(match[2])), before=before)
    return Wanted(text, label=text, before=before)


def _age_s(text: str) -> float:
    """Return the seconds of ``5 minutes``, ``1 h 30 min``, ``90s``."""
    rest = _WORDS.sub("", text).strip(" ,")
    parts = _WORDS.findall(text)
    if rest or not parts:
        raise UsageError(f"{text!r} is no age", hint=HINT)
    total = 0.0
    for number, unit in parts:
        if unit == "week":
            total += float(number) * 7 * 86400
        else:
            total += parse_duration_s(f"{number}{_UNITS.get(unit, unit)}")
    return total


def _moment(text: str, now: datetime) -> int | None:
    """Return the Unix time in ns of a date, or of a time of day with seconds; None for neither."""
    try:
        if _CLOCK.fullmatch(text):
            clock = time.fromisoformat(text)
            found = datetime.combine(now.date(), clock)
            if found > now.replace(tzinfo=None):  # Nobody asks for the future.
                found -= timedelta(days=1)
        elif _DATE.match(text):
            found = datetime.fromisoformat(text)
        else:
            return None
        moment_ns = round(found.timestamp() * 1_000_000) * 1000
    except (ValueError, OverflowError, OSError) as exc:
        raise UsageError(f"{text!r} is no time: {exc}", hint=HINT) from exc
    if moment_ns > now.timestamp() * SECOND_NS + FUTURE_NS_MAX:
        raise UsageError(f"{text!r} lies in the future", hint=HINT)
    return moment_ns


class Finder:
    """Finds points in the past of one store."""

    def __init__(self, disk: Disk, past: Past, onward: Sequence[Step] = ()) -> None:
        """*past* has a mirror; whoever asks holds a pin.

        With *onward* points are also found in these files, which the mirror has yet to come to.
        """
        assert past.reach is not None
        assert past.state.head is not None
        self._disk = disk
        self._past = past
        self._reach = past.reach
        self._head = past.state.head
        self._sets = past.reach.sets[::-1]
        self._onward = onward
        self._tail, self._tail_seq = promoted_tail(past)
        self._headers: dict[JournalName, tuple[int, Seal]] = {}

    def find(self, wanted: Wanted) -> Point:
        """Return where *wanted* lies.

        Raises:
            OutOfReach: the past does not go back there, or it has not come yet.
            UsageError: several bookmarks have that name.
            JournalError: a file of the history is damaged.
            OSError: one could not be read.
        """
        if wanted.is_newest:
            return self._newest()
        if wanted.position is not None:
            epoch, seq = wanted.position
            return self._at(wanted, epoch, seq - 1 if wanted.before else seq)
        if wanted.time_ns is not None:
            return self._until(wanted, wanted.time_ns)
        return self._bookmark(wanted)

    def _bookmark(self, wanted: Wanted) -> Point:
        known = find_bookmarks(self._disk, self._past)
        for step in self._onward:
            with contextlib.suppress(FileNotFoundError):  # Applied meanwhile.
                known += scan_file(self._disk, self._past.path / WORK / step.name.sealed)
        found = [one for one in known if one.label == wanted.label]
        if not found:
            raise self._beyond(wanted, "no bookmark of that name is in reach")
        if len(found) > 1:
            places = ", ".join(f"{one.epoch}:{one.seq}" for one in found)
            hint = f"Name one by its position: {places}."
            raise UsageError(f"several bookmarks are called {wanted.label!r}", hint=hint)
        return self._at(wanted, found[0].epoch, found[0].seq - bool(wanted.before))

    def _at(self, wanted: Wanted, epoch: int, seq: int) -> Point:
        """Return the point behind record *epoch*:*seq*."""
        if (epoch, seq) == (self._head.epoch, self._head.seq):
            return self._boundary(self._head)
        if (epoch, seq) > (self._head.epoch, self._head.seq):
            for count, step in enumerate(self._onward, 1):
                if step.holds(epoch, seq):
                    return self._ahead(count, seq)
            if self._tail and epoch == self._tail.name.epoch and seq <= self._tail_seq:
                return self._inside(self._tail, seq)
            raise self._beyond(wanted, "it is not here yet")
        index = bisect_left(self._sets, (epoch, seq), key=self._last_position)
        if index == len(self._sets):
            raise self._beyond(wanted, self._reach.why)
        one = self._sets[index]
        before = self._undo_head(one)
        if (epoch, seq) == (before.epoch, before.seq):
            return self._boundary(before)
        if self._last_position(one) == (epoch, seq) and not self._header(one)[1].record_count:
            return self._boundary(before)  # An epoch that began with a file without records.
        epoch_here, seal = self._header(one)
        if epoch_here != epoch or not seal.record_count or seq < seal.first_seq - 1:
            why = self._reach.why if index == 0 else "there is no such record"
            raise self._beyond(wanted, why)
        return self._inside(one, seq)

    def _until(self, wanted: Wanted, time_ns: int) -> Point:
        """Return the point behind the last record that was made until *time_ns*."""
        limit_ns = time_ns - 1 if wanted.before else time_ns
        if not self._head.time_ns:
            raise self._beyond(wanted, "nothing has been written since the copy, so it has no time")
        if limit_ns >= self._head.time_ns:
            return self._ahead_until(limit_ns)
        for one in reversed(self._sets[: self._end_of_begun(limit_ns)]):
            if 0 < self._begun_ns(one) <= limit_ns:
                return self._inside_until(one, limit_ns)
        oldest = self._undo_head(self._sets[0]) if self._sets else self._head
        if not 0 < oldest.time_ns <= limit_ns:
            raise self._beyond(wanted, self._reach.why)
        return self._boundary(oldest)

    def _end_of_begun(self, limit_ns: int) -> int:
        """Return the index behind the last file that was begun until *limit_ns*.

        Where the source's clock was ahead for a while, files behind those have smaller times; so
        some are looked at behind what was found, too. What the clock showed once is found if it
        was ahead for a few files, or of all that it showed later, or not for most of the rest.
        """
        end = self._begun_after(limit_ns)
        while (again := self._begun_again(end, limit_ns)) is not None:
            end = self._begun_after(limit_ns, again + 1)
        was_ahead = any(
            seal.record_count and seal.first_time_ns > self._head.time_ns
            for _epoch, seal in self._headers.values()
        )
        return len(self._sets) if was_ahead else end

    def _begun_again(self, end: int, limit_ns: int) -> int | None:
        """Return the last file found from index *end* on that was begun until then after all.

        Looked at are those near, and then further and further on.
        """
        count, step = len(self._sets), CLOCK_FILES
        probes = set(range(end, min(end + step, count)))
        while end + (step := 2 * step) < count:
            probes.add(end + step)
        if end < count:
            probes.add(count - 1)
        for at in sorted(probes, reverse=True):
            if 0 < self._guess_ns(self._sets[at]) <= limit_ns:
                return at
        return None

    def _begun_after(self, limit_ns: int, low: int = 0) -> int:
        """Return the index, from *low* on, of the first file all made after *limit_ns*.

        Found by halves. If the source's clock was set back there may be several.
        """
        high = len(self._sets)
        while low < high:
            middle = at = (low + high) // 2
            while not (begun_ns := self._guess_ns(self._sets[at])) and at > low:
                at -= 1  # It holds no records, or is damaged: the one in front of it counts.
            if begun_ns > limit_ns:
                high = at
            else:
                low = middle + 1
        return low

    def _begun_ns(self, one: KeptSet) -> int:
        """Return when the first record of a file was made, 0 if it holds none."""
        _epoch, seal = self._header(one)
        return seal.first_time_ns if seal.record_count else 0

    def _guess_ns(self, one: KeptSet) -> int:
        """Return the same, also 0 if it is damaged: what lies behind it can be had all the same."""
        try:
            return self._begun_ns(one)
        except JournalError:
            return 0

    def _newest(self) -> Point:
        """Return where the mirror is; of a promoted store where it was promoted."""
        if self._tail:
            return self._inside(self._tail, self._tail_seq)
        return self._boundary(self._head)

    def _inside_until(self, one: KeptSet, limit_ns: int, seq_max: int | None = None) -> Point:
        aim = read_iocbs(self._disk, self._path(one))
        last = aim.seal.first_seq - 1
        for iocb in aim.records():
            if iocb.time_ns > limit_ns or iocb.seq == (seq_max or -1) + 1:
                break
            last = iocb.seq
        return self._inside(one, last)

    def _inside(self, one: KeptSet, seq: int) -> Point:
        """Return the point behind record *seq* of a file, or in front of its first one."""
        aim = read_iocbs(self._disk, self._path(one))
        before = self._undo_head(one)
        if seq < aim.seal.first_seq:
            return self._boundary(before)
        times = [iocb.time_ns for iocb in aim.records() if iocb.seq == seq]
        position = (aim.identity.epoch, seq)
        return Point(before.number, one, seq, position, times[0])

    def _ahead_until(self, limit_ns: int) -> Point:
        for count in range(len(self._onward), 0, -1):
            seal = self._onward[count - 1].seal
            if seal.record_count and seal.first_time_ns <= limit_ns:
                aim = read_step(self._disk, self._past.path, self._onward[count - 1])
                before = itertools.takewhile(lambda one: one.time_ns <= limit_ns, aim.records())
                return self._ahead(count, max(one.seq for one in before))
        if self._tail and 0 < self._begun_ns(self._tail) <= limit_ns:
            return self._inside_until(self._tail, limit_ns, self._tail_seq)
        return self._boundary(self._head)

    def _ahead(self, count: int, seq: int) -> Point:
        """Return the point behind record *seq* of the last of *count* files that wait."""
        steps = tuple(self._onward[:count])
        aim = read_step(self._disk, self._past.path, steps[-1])
        (time_ns,) = (iocb.time_ns for iocb in aim.records() if iocb.seq == seq)
        position = (aim.identity.epoch, seq)
        return Point(self._head.number, None, seq, position, time_ns, steps)

    def _boundary(self, head: Head) -> Point:
        return Point(head.number, None, 0, (head.epoch, head.seq), head.time_ns)

    def _last_position(self, one: KeptSet) -> tuple[int, int]:
        """Return the position behind a file, by its header; of an empty one by its first mark."""
        epoch, seal = self._header(one)
        if seal.record_count:
            return epoch, seal.last_seq
        fd = self._disk.open("point:open", self._path(one), 0)
        try:
            header = self._disk.pread(fd, HEADER_BYTES, 0)
            mark = decode_iocb(
                identity_seed(header), self._disk.pread(fd, IOCB_BYTES, HEADER_BYTES)
            )
        except BadIocb as exc:
            raise CorruptRecord(self._path(one), HEADER_BYTES, str(exc)) from exc
        finally:
            self._disk.close(fd)
        return epoch, mark.seq

    def _header(self, one: KeptSet) -> tuple[int, Seal]:
        if (known := self._headers.get(one.name)) is not None:
            return known
        identity, seal = read_header(self._disk, self._path(one))
        if seal is None:
            raise CorruptRecord(self._path(one), 0, "never sealed")
        self._headers[one.name] = identity.epoch, seal
        return identity.epoch, seal

    def _undo_head(self, one: KeptSet) -> Head:
        return read_undo(self._disk, self._past.history, one.name, read_front).mark.head

    def _path(self, one: KeptSet) -> Path:
        return self._past.history / one.name.sealed

    def _beyond(self, wanted: Wanted, why: str) -> OutOfReach:
        return OutOfReach(f"{wanted.text} is out of reach: {why}", hint=HINT)
