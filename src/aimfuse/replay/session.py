"""One store at work: take files in, apply what is next, report. Synchronous; see replayer.

A round is a bounded piece of that. A disk error changes no position; the round fails and is
repeated later. See intake.py, applier.py, findings.py and report.py for the parts of it.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import StateLost, StoreError
from aimfuse.replay.ack import AckFile
from aimfuse.replay.ahead import ReadAhead
from aimfuse.replay.applier import Applier, RoundTime
from aimfuse.replay.findings import Findings
from aimfuse.replay.inbox import Inbox
from aimfuse.replay.intake import Ahead, Intake
from aimfuse.replay.look import Look
from aimfuse.replay.on_bookmark import OnBookmark
from aimfuse.replay.promotion import Promotion, begin, next_epoch
from aimfuse.replay.report import Report
from aimfuse.replay.state import PROMOTION, Json, Phase, Promoted
from aimfuse.replay.store import Store
from aimfuse.replay.switchover import Switchovers

log = logging.getLogger(__name__)


class Session:
    """A store between its opening and its closing; all methods on one thread at a time."""

    def __init__(
        self,
        disk: Disk,
        path: Path,
        look: Look | None = None,
        clock: Callable[[], int] = time.time_ns,
        *,
        read_ahead: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Name the store; nothing is touched before the first round. *clock*: Unix ns.

        With *read_ahead* the next file is read and checked on a second thread.
        """
        self.store = Store(disk, path, look)
        self.failures = 0
        self.error = ""
        self.is_gone = False
        self._clock = clock
        self._monotonic = monotonic
        self._ahead: Ahead | None = ReadAhead() if read_ahead else None
        self._findings = Findings(self.store, clock)
        self._time = RoundTime()
        self._ready = False
        self._is_released = False
        self._again = True

    @property
    def halted(self) -> str:
        """Return why the store stands still, "" if it goes on."""
        return self._findings.halted

    def hold_nothing_back(self) -> None:
        """Apply from now on whatever is here, also what a delay or a pause holds back."""
        self._is_released = True
        if self._ready:
            self._applier.brake.release()

    def go_on(self) -> None:
        """Work again though the store had halted: it has been decided what becomes of it."""
        self._findings.halted = ""

    @property
    def applied_files(self) -> int:
        """Return how many journal files were applied since the opening."""
        return self._applier.applied_files if self._ready else 0

    def report(self) -> Json | None:
        """Return what the ack says now, None as long as the store could not be opened."""
        return self._report.build(self.error) if self._ready else None

    @property
    def is_busy(self) -> bool:
        """Tell whether something is under way that no round can hasten."""
        return self._ready and self._on_bookmark.is_busy

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes that have come and are not applied, as far as they were looked at."""
        return self._applier.work.size_bytes + self._intake.size_bytes if self._ready else 0

    def round(self) -> bool:
        """Do a bounded piece of work; return whether anything got further.

        Never raises for what the disk or a sender did: `error` and `failures` say it, and
        the next round tries again. Once `is_gone` is set there is nothing to do but to close:
        the path leads elsewhere, and what lies there now is not this session's.
        """
        progress = False
        self._time.begin()
        try:
            self._look_whether_gone()
            if not self.halted and not self.is_gone:
                progress = self._round()
        except (OSError, MemoryError) as exc:
            self._fail(exc)
        except (StoreError, StateLost) as exc:
            self._findings.stop(f"{exc} {exc.hint}".rstrip())
        except Exception as exc:
            log.exception("%s: stopped by a fault of aimfuse", self.store.path)
            self._findings.stop(f"stopped by a fault of aimfuse: {exc!r}")
        else:
            if not self.is_gone:
                self.error, self.failures = "", 0
        self._offer_ack()
        return progress

    def close(self) -> None:
        """Write what the last ack left out, and let the store go."""
        if self._ahead:
            self._ahead.drop()
        if self._ready:
            self._on_bookmark.close()
            self._promotion.close()
        self._offer_ack(force=True)
        self.store.close()

    def _look_whether_gone(self) -> None:
        if not self.is_gone and not self.store.is_here():
            self.is_gone = True
            self.error = "moved away or replaced while it was replayed"
            log.warning("%s: %s; let go", self.store.path, self.error)

    def _offer_ack(self, *, force: bool = False) -> None:
        with contextlib.suppress(OSError):  # Then the ack cannot be written either.
            self._look_whether_gone()
            if self._ready and not self.is_gone:
                error = self.error
                self._ack.offer(
                    self._report.key(error), partial(self._report.build, error), force=force
                )

    def _round(self) -> bool:
        if not self._ready:
            self._open()
        if self.store.state.phase is Phase.HALTED:
            self._findings.halted = self.store.state.reason
            return False
        if self.store.state.phase in PROMOTION and self._promotion.go_on():
            return True
        self._applier.history.prune(urgent=self.failures > 0)
        self._applier.brake.look()
        progress = self._applier.drain()
        if self._applier.brake.receives and (
            self._again or self._applier.is_cut_short or self._intake.changed()
        ):
            progress = self._intake.empty() or progress
            self._again = self._intake.is_unfinished
        self._applier.forward.note()
        progress = self._on_bookmark.step() or progress
        return progress or self._applier.marks.step() or self._switch_over()

    def _switch_over(self) -> bool:
        """Begin to carry a request out that the source has sent, if it is time."""
        if self._applier.is_cut_short or self._again or self.store.state.phase in PROMOTION:
            return False
        position = self._switchovers.due(self._intake.files)
        if self._switchovers.is_waiting and not self._is_released:
            self.hold_nothing_back()
            return True
        if position is not None:
            promoted = Promoted(next_epoch(position), position, self._clock(), 0, position)
            begin(self.store, promoted)
        return position is not None

    def _open(self) -> None:
        store, findings = self.store, self._findings
        store.open()
        inbox = Inbox(store, self._clock)
        self._applier = Applier(store, findings, self._time, self._clock, self._monotonic)
        if self._is_released:
            self._applier.brake.release()
        self._intake = Intake(store, inbox, self._applier, findings, self._time, self._ahead)
        applier = self._applier
        self._on_bookmark = OnBookmark(
            store, applier.marks, lambda: applier.history.settings, self._clock, self._monotonic
        )
        self._report = Report(
            store, applier, self._intake, findings, self._on_bookmark, self._clock
        )
        self._promotion = Promotion(store, applier, findings, read_ahead=self._ahead is not None)
        self._switchovers = Switchovers(store, applier.work, findings)
        self._ack = AckFile(store, self._clock)
        remembered = self._ack.last.get("damaged")
        listed = remembered if isinstance(remembered, list) else []
        findings.open([*self._applier.work.lost, *listed])
        self._ready = True

    def _fail(self, exc: Exception) -> None:
        text = self.store.shown(f"{type(exc).__name__}: {exc}")
        if text != self.error:
            log.warning("%s: %s; it will be tried again", self.store.path, text)
        self.error = text
        self.failures += 1
        self._again = True
        if self._ahead:
            self._ahead.drop()
        if self._ready:
            self._intake.start_over()
