"""Sync a commit on trio's own thread where the disk is quick; two changes of threads cost more.

One in a hundred syncs is slow on any disk: the mean decides, and slow ones end this for a while.
"""

import time

from aimfuse.errors import OUT_OF_SPACE
from aimfuse.journal.journal import Commit, Journal

SYNC_S_MAX = 0.002
"""Mean time of a sync up to which the thread waits for it; single ones may take longer."""

PAUSE_S = 0.25
_WEIGHT = 0.125


class QuickSync:
    """How long the last syncs of one journal took here."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._not_before_s = 0.0
        self._mean_s = 0.0

    def do(self, commit: Commit) -> bool:
        """Make *commit* durable on this thread, if that is quick; tell whether it was done.

        Raises:
            OSError: as `Journal.sync`, but for a full disk: the slow way waits for space.
        """
        begun_s = time.monotonic()
        if commit.is_large or begun_s < self._not_before_s:
            return False
        try:
            self._journal.sync(commit)
        except OSError as exc:
            if exc.errno in OUT_OF_SPACE:
                return False
            raise
        now_s = time.monotonic()
        self._mean_s += (now_s - begun_s - self._mean_s) * _WEIGHT
        if self._mean_s > SYNC_S_MAX:
            self._not_before_s = now_s + PAUSE_S
            self._mean_s = 0.0
        return True
