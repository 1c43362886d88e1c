"""Let requests in while there is room for what they bring: memory, a ready file, spool space.

A request that was let in is appended before any `await`; so what was found free is still free.
"""

import errno
import os
from collections.abc import Callable
from typing import TypeVar

from aimfuse.driver.engine import Engine
from aimfuse.driver.keeper import SpoolKeeper
from aimfuse.driver.ladder import FAIL
from aimfuse.driver.wakeups import Wakeups
from aimfuse.errors import OUT_OF_SPACE, BusyError, HaltedError, VolumeError

Result = TypeVar("Result")

RECLAIM_ROUNDS = 3
"""Rounds of housekeeping before a write is refused: what is confirmed needs two checkpoints."""


class Admission:
    """The way in for everything that adds to the journal."""

    def __init__(self, engine: Engine, keeper: SpoolKeeper, wakeups: Wakeups) -> None:
        """Let in what *engine* and the spool that *keeper* keeps have room for."""
        self.full: str | None = None
        """Why nobody is let in, by the last look; None if there is room."""

        self.ended = False
        self.rounds = 0
        """How often housekeeping has looked; who waits for it to free space counts them."""

        self._engine = engine
        self._keeper = keeper
        self._wakeups = wakeups

    def fits(self, payload_bytes: int) -> bool:
        """Tell whether a request may be accepted right now; then it must be, before any await."""
        if self.full is not None or self._engine.halted is not None or self.ended:
            return False
        return self._fits(payload_bytes)

    async def room(self, payload_bytes: int) -> None:
        """Wait until a request with so much payload may be accepted, which then is at once.

        Raises:
            HaltedError: the volume takes no more writes.
            VolumeError: ENOSPC, where the settings say to fail rather than to wait.
        """
        while not self.fits(payload_bytes):
            self.check()
            self._engine.check_writable()
            if self._keeper.when_full == FAIL and not await self._reclaimed():
                raise VolumeError(errno.ENOSPC, f"the spool is full: {self.full}")
            self._wakeups.commit_now()
            self._wakeups.want_next_file()
            await self._wakeups.next_progress()

    async def accept(self, payload_bytes: int, append: Callable[[], Result]) -> Result:
        """Wait for room and do *append*; where the disk turns out to be full, wait again.

        Raises:
            HaltedError, VolumeError: as for `room`.
            OSError: *append* failed; what it appended before stands.
        """
        while True:
            await self.room(payload_bytes)
            try:
                return append()
            except OSError as exc:
                self.note_full(exc)

    def note_full(self, exc: OSError) -> None:
        """Take it that the spool's disk is full, if that is what *exc* says and writers may wait.

        Raises:
            OSError: *exc*, if it says anything else, or the settings say to fail.
        """
        if exc.errno not in OUT_OF_SPACE:
            raise exc
        self.full = exc.strerror or "no space left"
        if self._keeper.when_full == FAIL:
            raise exc

    def check(self) -> None:
        """Refuse to wait for what will not come any more.

        Raises:
            BusyError: the volume is being unmounted.
            HaltedError: it takes nothing.
        """
        if self.ended:
            raise BusyError("the volume is being unmounted")
        if self._engine.halted is not None:
            raise HaltedError(self._engine.halted)

    def _fits(self, payload_bytes: int) -> bool:
        journal = self._engine.journal
        try:
            self.full = self._keeper.take(payload_bytes)
            if self.full is not None:
                return False
            fits = journal.can_roll and self._engine.has_room(payload_bytes)
            if journal.ready is None:
                self._wakeups.want_next_file()
        except OSError as exc:
            self.full = os.strerror(exc.errno or errno.EIO)
            return False
        return fits

    async def _reclaimed(self) -> bool:
        """Tell whether there is room once all is released that nobody needs any more."""
        rounds = self.rounds
        while self.full is not None and self.rounds < rounds + RECLAIM_ROUNDS:
            self.check()
            await self._wakeups.next_progress()
        return self.full is None
