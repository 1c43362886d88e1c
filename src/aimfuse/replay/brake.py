"""What holds a store back on purpose: a pause of receiving or of applying, and a delay.

With a delay a journal file is applied once its last record is that old by its source's clock.
How old a file is, is asked once, when it comes: from then on it grows older by a clock that
nobody sets. So a step of either end's clock neither lets files in early nor keeps them out.
A file is never older than the one before it, and is new if it was made before that one, it says.
The source's clock is what it last said it was, and the time since; without a word from it, this
host's.

A mirror that is not consistent is finished first, whatever is paused or delayed.
"""

import json
import logging
import os
from collections.abc import Callable

from aimfuse.config.pauses import Pauses, load_pauses
from aimfuse.config.store import StoreConfig
from aimfuse.journal.names import JournalName
from aimfuse.replay.state import Json, Phase
from aimfuse.replay.store import HEARTBEAT, Store
from aimfuse.replay.work import Copy, Work
from aimfuse.units import KIB, MIB, SECOND_NS, FileNumber, natural

log = logging.getLogger(__name__)

LOOK_S = 0.25
ROOM_BYTES = 64 * MIB
"""What has to stay free, beside what history leaves alone, for files to be taken in and held."""

_HEARTBEAT_BYTES_MAX = 64 * KIB
_FIRST_COPY = frozenset({Phase.EMPTY, Phase.SYNCING})


class Brake:
    """The brake of one open store. What is not held back by it is applied as it comes."""

    def __init__(
        self,
        store: Store,
        work: Work,
        settings: Callable[[], StoreConfig],
        clock: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        """Look at what is paused, and how old the files are that wait. *clock*: Unix ns.

        Raises:
            OSError: the disk failed; try again with a new object.
        """
        self._store = store
        self._work = work
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._pauses: Pauses = {}
        self._is_released = False
        self._looked_s = float("-inf")
        self._heard = (0, 0.0, 0)
        self._born_s: dict[FileNumber, float] = {}
        self._newest = (0, 0)
        self.look()
        for number in sorted(work.journal):
            self.note(work.journal[number])

    def look(self) -> None:
        """Learn what is paused now, and what time it is at the source; costs little.

        Raises:
            OSError: the disk failed; what was known before still counts.
        """
        now_s = self._monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._pauses = load_pauses(self._store.home, self._store.disk)
        if self.delay_s:
            self._listen(now_s)
        self._looked_s = now_s

    def release(self) -> None:
        """Hold nothing back any more: somebody takes over from this mirror."""
        self._is_released = True

    @property
    def delay_s(self) -> float:
        """Return how old a file has to be."""
        return 0.0 if self._is_released else self._settings().delay_s

    @property
    def receives(self) -> bool:
        """Tell whether files are taken from the inbox."""
        return self._is_released or "receive" not in self._pauses

    @property
    def is_on(self) -> bool:
        """Tell whether files may have to wait here on purpose."""
        return self._is_paused() or self.delay_s > 0

    def has_room(self) -> bool:
        """Tell whether the disk has room for files that wait on purpose."""
        free = self._store.disk.free_bytes(self._store.home)
        return free >= self._settings().keep_free_bytes + ROOM_BYTES

    def note(self, copy: Copy) -> None:
        """Note how old a file is that has just been received."""
        if not isinstance(copy.name, JournalName):
            return
        now_s, number = self._monotonic(), copy.name.number
        age_s = max(0, self._source_ns(now_s) - copy.last_time_ns) / SECOND_NS
        before = self._born_s.get(FileNumber(number - 1), float("-inf"))
        before_number, before_ns = self._newest
        if number == before_number + 1 and copy.first_time_ns < before_ns:
            age_s = 0.0  # The source's clock was set back: what it last said is of no use.
        self._born_s[number] = max(now_s - age_s, before)
        if number > before_number:
            self._newest = (number, copy.last_time_ns)

    def forget(self, copy: Copy) -> None:
        """Note that a file waits no longer."""
        if isinstance(copy.name, JournalName):
            self._born_s.pop(copy.name.number, None)

    def lets(self, copy: Copy) -> bool:
        """Tell whether *copy* may be applied now."""
        phase = self._store.state.phase
        if not isinstance(copy.name, JournalName):  # A staged one changes nothing of the mirror.
            return phase not in _FIRST_COPY or self.lets_first_copy()
        if phase is not Phase.CONSISTENT:
            return True
        return not self._is_paused() and self._wait_s(copy.name.number) <= 0

    def lets_first_copy(self) -> bool:
        """Tell whether a first copy may go on: there is no mirror yet that could stay behind."""
        return not self._is_paused()

    def lets_switch(self) -> bool:
        """Tell whether a staged copy that is complete may be brought into the mirror now."""
        state = self._store.state
        if state.phase is not Phase.CONSISTENT or state.staging is None:
            return True
        to = FileNumber(state.staging.progress.to or 0)
        return not self._is_paused() and (to not in self._work.journal or self._wait_s(to) <= 0)

    def key(self) -> object:
        """Return something that differs whenever `report` says something else."""
        pauses = tuple(self._pauses.items())
        return pauses, self.delay_s, self._is_released

    def report(self) -> Json:
        """Return what the ack says of it; ``held`` is what waits here though it is its turn."""
        paused = None if self._is_released else self._pauses
        return {
            "paused": {kind: one.to_json() for kind, one in paused.items()} if paused else None,
            "delay_s": self.delay_s,
            "held": self._held(),
        }

    def _held(self) -> Json | None:
        state = self._store.state
        if not self.is_on or state.phase is not Phase.CONSISTENT or state.head is None:
            return None
        first, last = state.head.number + 1, self._work.received(state.head.number)
        if last < first or self.lets(self._work.journal[FileNumber(first)]):
            return None
        wait_s = None if self._is_paused() else self._wait_s(FileNumber(first))
        return {
            "files": last - first + 1,
            "bytes": self._work.size_bytes,
            "next_ns": None if wait_s is None else self._clock() + int(wait_s * SECOND_NS),
        }

    def _is_paused(self) -> bool:
        return not self._is_released and "apply" in self._pauses

    def _wait_s(self, number: FileNumber) -> float:
        """Return how long file *number* still has to wait; nothing or less if it need not."""
        born_s = self._born_s.get(number, float("-inf"))
        return born_s + self.delay_s - self._monotonic() if self.delay_s else 0.0

    # The source's clock.

    def _source_ns(self, now_s: float) -> int:
        said_ns, at_s, _mtime = self._heard
        return said_ns + int((now_s - at_s) * SECOND_NS) if said_ns else self._clock()

    def _listen(self, now_s: float) -> None:
        """Take in what the source last said of its clock, and how long ago that was."""
        path = self._store.inbox / HEARTBEAT
        entry = self._store.look.entry(path)
        if entry is None or not entry.is_file or entry.mtime_ns == self._heard[2]:
            return
        first = not self._heard[0]
        age_s = max(0, self._clock() - entry.mtime_ns) / SECOND_NS if first else 0.0
        disk = self._store.disk
        try:
            fd = disk.open("brake:listen", path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                said = json.loads(disk.pread(fd, _HEARTBEAT_BYTES_MAX, 0))
            finally:
                disk.close(fd)
            self._heard = (natural(said["time_ns"]), now_s - age_s, entry.mtime_ns)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as exc:
            log.info("%s: %s says no time: %r", self._store.path, HEARTBEAT, exc)
