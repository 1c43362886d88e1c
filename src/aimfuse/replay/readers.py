"""Who reads this store's past from afar: what he needs is kept, what he asks is answered.

A reader is a small file in the inbox, ``reader-TOKEN.json``, which he writes anew every few
seconds: ``behind``, the number of the file up to which sets may be pruned; ``ask``, counting his
questions; ``data``, files of the store of which he wants to know where their data lies; ``done``
when he needs nothing any more; and for people ``who`` he says that he is, and ``age_s``, how many
seconds he has read. What it says holds for `READER_NS` after it was written last, by
this host's clock; beyond what the settings allow nothing is kept: see history.py. The answer is
``readers/TOKEN.json.z``, for each file ranges as offset and end; everything outside of them was a
hole when the answer was begun, at file ``number``.
"""

import contextlib
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimfuse.disk import Disk, publish
from aimfuse.journal.names import PART, GoneName, parse_kept
from aimfuse.replay.look import Entry
from aimfuse.replay.state import Json
from aimfuse.replay.store import Store
from aimfuse.units import KIB, MIB, SECOND_NS, natural

READER_NS = 120 * SECOND_NS
"""How long a reader is heeded that is not heard of any more: a link that is cut comes back."""

LOOK_EVERY_NS = SECOND_NS // 5
RESCAN_NS = SECOND_NS
READERS_MAX = 64
"""Readers that are heeded; any further ones have to wait, as without a right to write."""

WHO_CHARACTERS_MAX = 100
AGE_S_MAX = 10 * 365 * 86400
READER_BYTES_MAX = 64 * KIB
FILES_MAX = 256
RANGES_MAX = 100_000
"""Ranges of one file; beyond, neighbours are taken as one."""

ANSWER_BYTES_MAX = 256 * MIB
"""What a packed answer may grow to: whoever serves a store may be anybody."""

ANSWERS = "readers"
_GAP_BYTES = 64 * KIB
"""A smaller hole costs more to tell than to send."""

_STEPS = 2000
"""Ranges that are looked up before the mirror gets its turn again: some ms."""

_READER = re.compile(r"reader-([0-9a-f]{16})\.json")
_VOLUME = re.compile(r"volumes/\d{8}")

log = logging.getLogger(__name__)

Ranges = list[tuple[int, int]]
"""Where data lies in a file: offset and end of each stretch, in order."""


def reader_name(token: str) -> str:
    """Return the name that a reader's file has in the inbox."""
    return f"reader-{token}.json"


def answer_name(token: str) -> str:
    """Return the path of the answer in the store."""
    return f"{ANSWERS}/{token}.json.z"


def is_reader(name: str) -> bool:
    """Tell whether a file of the inbox is a reader's."""
    return _READER.fullmatch(name.removesuffix(PART)) is not None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a reader says."""

    behind: int = 0
    ask: int = 0
    data: tuple[str, ...] = ()
    done: bool = False
    who: str = ""
    age_s: int = 0

    def to_json(self) -> Json:
        """Return the content of his file."""
        return {
            "behind": self.behind, "ask": self.ask, "data": list(self.data), "done": self.done,
            "who": self.who, "age_s": self.age_s,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Json) -> "Wish":
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        wanted = tuple(str(one) for one in data["data"])
        if len(wanted) > FILES_MAX or not all(map(_may_be_told, wanted)):
            raise ValueError("not the names of data")
        who = "".join(one if one.isprintable() else "?" for one in str(data.get("who", "")))
        age_s = natural(data.get("age_s", 0))  # Older releases say neither.
        return cls(
            natural(data["behind"]), natural(data["ask"]), wanted, bool(data["done"]),
            who[:WHO_CHARACTERS_MAX], min(age_s, AGE_S_MAX),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a reader; times in Unix ns by this host's clock, `owner` a user id here.

    `who` is what he says himself.
    """

    who: str
    owner: int
    since_ns: int
    heard_ns: int
    behind: int


@dataclass(slots=True)
class _Reader:
    """One of them; `told_ask` is the question that was answered last, `work` the next answer."""

    wish: Wish
    mtime_ns: int
    owner: int
    since_ns: int
    told_ask: int = 0
    work: Iterator[None] | None = None


class Readers:
    """The distant readers of one open store."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        """Look for nobody yet. *clock* gives Unix ns."""
        self._store = store
        self._clock = clock
        self._known: dict[str, _Reader] = {}
        self._looked_ns: int | None = None
        self._seen_ns = 0

    def lowest(self) -> int | None:
        """Return the highest number whose set may go for their sake, None for no limit.

        Raises:
            OSError: the inbox could not be read.
        """
        if self._looked_ns is None:
            self._look()
        return min((one.wish.behind for one in self._known.values()), default=None)

    def known(self) -> list[Known]:
        """Return who is heeded, who came first first."""
        found = [
            Known(one.wish.who, one.owner, one.since_ns, one.mtime_ns, one.wish.behind)
            for one in self._known.values()
        ]
        return sorted(found, key=lambda one: one.since_ns)

    def tend(self) -> None:
        """Notice who came and went, and go on with answers; takes some ms at most.

        Raises:
            OSError: the disk failed; all of it is tried again.
        """
        if self._is_time():
            self._look()
        for token, reader in self._known.items():
            if reader.told_ask != reader.wish.ask:
                self._answer(token, reader)

    def _is_time(self) -> bool:
        """Tell whether to look: seldom, but soon after anything came into the inbox."""
        if self._looked_ns is None:
            return True
        age_ns = self._clock() - self._looked_ns
        if 0 <= age_ns < LOOK_EVERY_NS:
            return False
        entry = self._store.look.entry(self._store.inbox)
        return not 0 <= age_ns < RESCAN_NS or entry is None or entry.mtime_ns != self._seen_ns

    def _look(self) -> None:
        store, now_ns = self._store, self._clock()
        self._looked_ns = now_ns
        inbox = store.look.entry(store.inbox)
        self._seen_ns = inbox.mtime_ns if inbox else 0
        seen: dict[str, _Reader] = {}
        for name in store.look.scan(store.inbox):
            match = _READER.fullmatch(name.removesuffix(PART))
            entry = store.look.entry(store.inbox / name) if match else None
            if match is None or entry is None or not entry.is_file:
                continue
            if name.endswith(PART):  # Of one who was killed while he wrote.
                if abs(now_ns - entry.mtime_ns) > READER_NS:
                    self._unlink(store.inbox / name)
                continue
            reader = self._known.get(match[1])
            if reader is None or reader.mtime_ns != entry.mtime_ns:
                reader = self._heard(name, entry, reader)
            if reader.wish.done or abs(now_ns - entry.mtime_ns) > READER_NS:
                self._forget(match[1])
            elif len(seen) < READERS_MAX:
                seen[match[1]] = reader
        self._known = seen

    def _heard(self, name: str, entry: Entry, before: _Reader | None) -> _Reader:
        """Return what a reader says now; whoever cannot be understood needs everything."""
        store, wish = self._store, Wish()
        try:
            wish = Wish.from_json(json.loads(_read_small(store.disk, store.inbox / name, entry)))
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as exc:
            log.info("%s: %s says nothing of use: %s", store.path, name, exc)
        if before is None:
            # We may be younger than he.
            since_ns = max(0, entry.mtime_ns - wish.age_s * SECOND_NS)
            return _Reader(wish, entry.mtime_ns, entry.owner, since_ns)
        before.wish, before.mtime_ns = wish, entry.mtime_ns
        return before

    def _forget(self, token: str) -> None:
        store = self._store
        self._unlink(store.inbox / reader_name(token))
        answer = store.home / answer_name(token)
        if store.disk.exists(answer):
            store.disk.unlink("readers:unlink_answer", answer)

    def _unlink(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):  # He was faster.
            self._store.disk.unlink("readers:unlink", path)

    def _answer(self, token: str, reader: _Reader) -> None:
        """Go on with an answer; once it is complete, give it."""
        if reader.work is None:
            reader.work = self._work(token, reader, reader.wish)
        next(reader.work, None)

    def _work(self, token: str, reader: _Reader, wish: Wish) -> Iterator[None]:
        """Find out what is asked and publish it, in small steps."""
        store, state = self._store, self._store.state
        said: Json = {
            "ask": wish.ask,
            "behind": wish.behind,
            "number": state.head.number if state.head else 0,
            "sync": state.sync.sync_id if state.sync else 0,
            "data": {},
        }
        for name in wish.data:
            ranges = yield from _survey(store, name)
            if ranges is not None:
                said["data"][name] = ranges
        if not store.disk.exists(store.home / ANSWERS):
            store.disk.mkdir("readers:mkdir", store.home / ANSWERS)
        body = zlib.compress(json.dumps(said, separators=(",", ":")).encode(), 1)
        publish(store.disk, "readers", store.home / answer_name(token), body)
        reader.told_ask, reader.work = wish.ask, None


def _read_small(disk: Disk, path: Path, entry: Entry) -> bytes:
    """Return what a file says that somebody else put there: no link, no pipe, nothing large."""
    fd = disk.open("readers:read", path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if disk.inode(fd) != entry.inode or disk.size(fd) > READER_BYTES_MAX:
            raise ValueError("another file, or too large a one")
        return disk.pread(fd, READER_BYTES_MAX, 0)
    finally:
        disk.close(fd)


def read_answer(data: bytes) -> Json:
    """Return what an answer says.

    Raises:
        ValueError: it is none.
    """
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(data, ANSWER_BYTES_MAX)
    except zlib.error as exc:
        raise ValueError(str(exc)) from exc
    if not unpacking.eof:
        raise ValueError("an answer that is cut short, or longer than any")
    said: Any = json.loads(text)
    if not isinstance(said, dict):
        raise ValueError("no object")  # noqa: TRY004 - as for all that is wrong with it
    return said


def _survey(store: Store, name: str) -> Generator[None, None, Ranges | None]:
    """Return where the data of a file lies, in small steps; None if the file is gone."""
    disk, gap = store.disk, _GAP_BYTES
    ranges: Ranges = []
    try:
        fd = disk.open(
            "readers:open", store.home / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        )
    except FileNotFoundError:
        return None
    try:
        for step, (start, end) in enumerate(disk.data_ranges(fd, 0, disk.size(fd)), start=1):
            if ranges and start - ranges[-1][1] < gap:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
            if len(ranges) > RANGES_MAX:
                gap *= 2
                ranges[:] = _merged(ranges, gap)
            if step % _STEPS == 0:
                yield
    finally:
        disk.close(fd)
    return ranges


def _merged(ranges: Ranges, gap: int) -> Ranges:
    """Return *ranges* with those as one that lie less than *gap* bytes apart."""
    merged = ranges[:1]
    for start, end in ranges[1:]:
        if start - merged[-1][1] < gap:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _may_be_told(name: str) -> bool:
    """Tell whether a name is that of a volume's data, here or removed."""
    kept = parse_kept(name.removeprefix("history/")) if name.startswith("history/") else None
    return isinstance(kept, GoneName) or _VOLUME.fullmatch(name) is not None
