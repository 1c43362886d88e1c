"""What a store's session found wrong, and what it does about it: set aside, ask again, halt.

A broken history halts the store durably; a fault of ours halts it until the next start.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aimfuse.journal.names import JournalName, SyncName, parse
from aimfuse.replay.ack import LIST_MAX
from aimfuse.replay.quarantine import Quarantine, safe_name
from aimfuse.replay.state import HistoryBroken, Phase
from aimfuse.replay.store import Store
from aimfuse.units import SECOND_NS

log = logging.getLogger(__name__)

NOTICE_NS = 300 * SECOND_NS


class Findings:
    """The findings of one session. `halted` says why the store stands still, "" if it goes on.

    `stale_count` is how many SYNC files of an earlier copy came.
    """

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        """Begin without any; nothing is touched before `open`. *clock*: Unix ns."""
        self.halted = ""
        self.stale_count = 0
        self._store = store
        self._clock = clock
        self._damaged: dict[str, None] = {}
        self._notice = ("", 0)

    def open(self, remembered: list[object]) -> None:
        """Count what is set aside already, and take up the names of damaged files.

        Raises:
            OSError: the disk failed; try again.
        """
        self.quarantine = Quarantine(self._store)
        names = [n for n in remembered if isinstance(n, str) and parse(n) is not None]
        self._damaged = dict.fromkeys(names)

    def set_aside(self, path: Path, reason: str, *, expendable: bool = False) -> bool:
        """Move *path* into the quarantine; see `Quarantine.set_aside`."""
        shown = self._store.shown(reason)
        return self.quarantine.set_aside(path, shown, self._clock(), expendable=expendable)

    def note_damaged(self, name: JournalName | SyncName) -> None:
        """Note a file that has to be sent again."""
        if len(self._damaged) < LIST_MAX:
            self._damaged[name.sealed] = None

    def note_sound(self, name: JournalName | SyncName) -> None:
        """Note that a file is here, whatever became of an earlier one of its name."""
        self._damaged.pop(name.sealed, None)

    @property
    def damaged(self) -> tuple[str, ...]:
        """Return the names of what was damaged, also of what is of no use any more."""
        return tuple(self._damaged)

    def still_needed(self, after: int) -> list[str]:
        """Return what has to be sent again, behind journal file *after*; forget the rest."""
        needed = [name for name in self._damaged if _is_needed(name, after)][:LIST_MAX]
        self._damaged = dict.fromkeys(needed)
        return needed

    def give_notice(self, text: str) -> None:
        """Show *text* to the sources for a while."""
        self._notice = (text, self._clock())

    def notice(self) -> str:
        """Return what was given notice of lately, or ""."""
        text, since_ns = self._notice
        return text if 0 <= self._clock() - since_ns < NOTICE_NS else ""

    def halt(self, exc: HistoryBroken, path: Path | None) -> None:
        """Stop for good: the reason becomes durable before the file is set aside."""
        store = self._store
        reason = store.shown(str(exc))
        store.save(replace(store.state, phase=Phase.HALTED, reason=reason))
        self.stop(reason)
        if path is not None:
            self.set_aside(path, reason)

    def stop(self, reason: str) -> None:
        """Stop until the next start."""
        self.halted = self._store.shown(reason)
        log.error("%s halted: %s", self._store.path, self.halted)


def _is_needed(text: str, applied: int) -> bool:
    """Tell whether a damaged file of this name still has to come again."""
    name = parse(safe_name(text))
    return not isinstance(name, JournalName) or name.number > applied
