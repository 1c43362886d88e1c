"""Keep the engine moving: the trio tasks that commit, apply, seal, make ready and checkpoint.

The engine belongs to trio's thread. Each task takes a step from it, does the slow part in a
worker thread and hands the result back; waiting requests are woken in between. Every disk
error on the journal halts the volume, since what an fsync lost is lost.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple, Unpack

import trio

from aimfuse.driver.engine import Engine
from aimfuse.driver.keeper import SpoolKeeper
from aimfuse.driver.ladder import FAIL
from aimfuse.driver.lanes import Lane
from aimfuse.driver.quick_sync import OUT_OF_SPACE, QuickSync
from aimfuse.errors import AimfuseError, BusyError, HaltedError, VolumeError, explain
from aimfuse.units import MIB, FileNumber, Seq

log = logging.getLogger(__name__)

Args = TypeVarTuple("Args")
Result = TypeVar("Result")
Task = Callable[[], Awaitable[None]]

TICK_S = 0.1
COMMIT_BYTES = 8 * MIB
"""Un-durable payload that starts a commit before its interval is over."""
APPLY_DELAY_S = 0.02
HOUSEKEEPING_S = 1.0
SPACE_RETRY_S = 1.0
RECLAIM_ROUNDS = 3
"""Rounds of housekeeping before a write is refused: what is confirmed needs two checkpoints."""
CHECKPOINT_FILES = 16
BACKGROUND_NICENESS = 19


@dataclass(frozen=True, slots=True)
class PumpLimits:
    """When to do what; times in seconds, sizes in bytes."""

    commit_interval_s: float
    file_age_s: float
    checkpoint_interval_s: float


class Pump:
    """The engine's tasks, and the waits that requests need."""

    def __init__(self, engine: Engine, keeper: SpoolKeeper, limits: PumpLimits) -> None:
        """Drive *engine*, whose spool *keeper* keeps."""
        self.engine = engine
        self.full: str | None = None
        self.ended = False
        self.keeper = keeper
        self.limits = limits
        self._commit_wanted = trio.Event()
        self._commit_urgent = trio.Event()
        self._idle = True
        self._apply_wanted = trio.Event()
        self._ready_wanted = trio.Event()
        self._seal_wanted = trio.Event()
        self._checkpoint_wanted = False
        self._committing = False
        self._waiting = 0
        self._starving = 0
        self._rounds = 0
        self._quick_sync = QuickSync(engine.journal)
        self._commits = Lane("commit")
        self._applies = Lane("apply")
        self._housekeeping = Lane("housekeeping")
        self._seals = Lane("seal", BACKGROUND_NICENESS)
        self._urgent_seals = Lane("urgent-seal")
        self._background = Lane("checkpoint", BACKGROUND_NICENESS)
        engine.on_halt = self._wake_all
        self._progress = trio.Event()

    # What requests wait for.

    def fits(self, payload_bytes: int) -> bool:
        """Tell whether a request may be accepted right now; then it must be, before any await."""
        if self.full is not None or self.engine.halted is not None or self.ended:
            return False
        return self._fits(payload_bytes)

    async def room(self, payload_bytes: int) -> None:
        """Wait until a request with so much payload may be accepted, which then is at once.

        Raises:
            HaltedError: the volume takes no more writes.
            VolumeError: ENOSPC, where the settings say to fail rather than to wait.
        """
        while not self.fits(payload_bytes):
            self._check()
            self.engine.check_writable()
            if self.keeper.when_full == FAIL and not await self._reclaimed():
                raise VolumeError(errno.ENOSPC, f"the spool is full: {self.full}")
            self._commit_now()
            self._ready_wanted.set()
            self._seal_wanted.set()
            await self._next_progress()

    async def _reclaimed(self) -> bool:
        """Tell whether there is room once all is released that nobody needs any more."""
        rounds = self._rounds
        while self.full is not None and self._rounds < rounds + RECLAIM_ROUNDS:
            self._check()
            await self._next_progress()
        return self.full is None

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
        if self.keeper.when_full == FAIL:
            raise exc

    async def flushed(self, append: Callable[[], Seq]) -> None:
        """Wait until all that was accepted is durable, with the flush that *append* records.

        A full spool refuses new data, never the promise for what it has taken: then the flush
        goes without a record of its own.

        Raises:
            HaltedError: it may never be durable.
        """
        seq = self.engine.journal.last_seq
        while not self.fits(0) and self.full is None:
            self._check()
            self._commit_wanted.set()
            await self._next_progress()
        self._check()
        if self.full is None:
            with contextlib.suppress(OSError):
                seq = append()
        await self.durable(seq)

    async def durable(self, seq: Seq) -> None:
        """Wait until record *seq* and all before it are durable in the journal.

        Whoever comes first does the commit, for all that have come by then; who comes in
        the meantime waits for the next one.

        Raises:
            HaltedError: they may never be.
        """
        self._waiting += 1
        try:
            while self.engine.journal.durable_seq < seq:
                self._check()
                if self._committing:
                    await self._progress.wait()
                else:
                    await self._commit_once()
        finally:
            self._waiting -= 1

    async def rolled(self, *, applied: bool = False) -> FileNumber:
        """Have everything accepted so far sealed; return the number of the newest file of it.

        With *applied* also wait until the image holds it.
        """
        engine = self.engine
        seq = engine.journal.last_seq
        active = engine.journal.active
        while active is not None and active.record_count and engine.journal.active is active:
            self._check()
            if engine.journal.ready is not None:
                engine.roll()
            self._ready_wanted.set()
            self._seal_wanted.set()
            if engine.journal.active is active:
                await self._next_progress()
        while engine.journal.closing and engine.journal.closing[0].first_seq <= seq:
            self._check()
            self._ready_wanted.set()
            self._seal_wanted.set()
            await self._next_progress()
        number = engine.journal.head.number
        while applied and engine.applied_seq < seq:
            self._check()
            await self._next_progress()
        return number

    async def checkpointed(self) -> FileNumber:
        """Have the image hold everything accepted so far, durably, and the checkpoint say so.

        Raises:
            HaltedError, BusyError: it never will.
        """
        number = await self.rolled(applied=True)
        while self.engine.checkpoint.head.number < number:
            self._check()
            self._checkpoint_wanted = True
            await self._next_progress()
        return number

    async def all_confirmed(self, wait_s_max: float) -> bool:
        """Wait until every destination has confirmed the newest sealed file, or give up."""
        with trio.move_on_after(wait_s_max):
            while not self.keeper.all_confirmed():  # noqa: ASYNC110 - another process's file
                await trio.sleep(TICK_S)
        return self.keeper.all_confirmed()

    def commit_soon(self) -> None:
        """Note that something was accepted; called by every request that adds records.

        The task that commits is woken only from idleness or for a full buffer: waking it for
        every write would cost more than the write.
        """
        if self._idle:
            self._commit_wanted.set()
        elif self.engine.uncommitted_bytes > COMMIT_BYTES:
            self._commit_urgent.set()

    def end(self) -> None:
        """Let nobody change the engine any more: another thread is about to close it.

        FUSE has no requests left by then; who asks by the control socket gets `BusyError`.
        """
        self.ended = True
        self._progressed()

    def _commit_now(self) -> None:
        self._commit_wanted.set()
        self._commit_urgent.set()

    # Tasks.

    async def run(self) -> None:
        """Run until cancelled. The engine is left as it is; `close_group` ends it cleanly."""
        async with trio.open_nursery() as nursery:
            for task in self._tasks():
                nursery.start_soon(self._guarded, task)

    def _tasks(self) -> tuple[Task, ...]:
        return (
            self._commit, self._apply, self._make_ready, self._seal, self._tick,
            self._checkpoint, self._keep_house,
        )  # fmt: skip

    async def _guarded(self, task: Task) -> None:
        """Turn whatever ends a task into a halted volume; the mount stays up."""
        name = getattr(task, "__name__", "task").strip("_")
        try:
            await task()
        except OSError as exc:
            self.engine.halt(f"{explain(exc)} ({name})")
        except AimfuseError as exc:
            self.engine.halt(str(exc))
        except Exception as exc:
            log.critical("a bug in %s", name, exc_info=exc)
            self.engine.halt(f"a bug in {name}: {exc!r}")

    async def _commit(self) -> None:
        """Commit at intervals what nobody waits for."""
        last_s = 0.0
        while True:
            self._idle = True
            await self._commit_wanted.wait()
            self._idle = False
            self._commit_wanted = trio.Event()
            wait_s = last_s + self.limits.commit_interval_s - time.monotonic()
            if wait_s > 0 and not self._is_urgent():
                with trio.move_on_after(wait_s):
                    await self._commit_urgent.wait()
            self._commit_urgent = trio.Event()
            while self._committing:
                await self._progress.wait()
            last_s = time.monotonic()
            await self._commit_once()
            if self.engine.uncommitted_bytes and self.engine.halted is None:
                self._commit_wanted.set()

    async def _commit_once(self) -> None:
        """Make durable what was accepted so far; one call at a time.

        Raises:
            HaltedError: the disk failed; the volume is halted.
        """
        engine = self.engine
        commit = engine.begin_commit()
        if commit is None:
            await trio.lowlevel.checkpoint()
            return
        self._committing = True
        try:
            if self._waiting != 1 or not self._quick_sync.do(commit):
                await self._with_space(self._commits, engine.journal.sync, commit)
        except OSError as exc:
            engine.halt(f"the journal could not be made durable: {exc.strerror}")
            self._check()
        finally:
            self._committing = False
            self._progressed()  # However it ended: who waits for it has to go on by himself.
        engine.finish_commit(commit)
        self._apply_wanted.set()

    async def _with_space(
        self, lane: Lane, step: Callable[[Unpack[Args]], Result], *args: *Args
    ) -> Result:
        """Do a blocking step that may be repeated, as often as it runs out of space."""
        starving = False
        try:
            while True:
                try:
                    return await lane.run(step, *args)
                except OSError as exc:
                    if exc.errno not in OUT_OF_SPACE:
                        raise
                    why = f"{exc.strerror}: {exc.filename or self.engine.images.root.parent}"
                    log.warning("%s: trying again", why)
                if not starving:
                    starving = True
                    self._starving += 1
                self.full = why
                self._progressed()  # Who waits for room may have to be refused now.
                await trio.sleep(SPACE_RETRY_S)
        finally:
            self._starving -= starving

    def _is_urgent(self) -> bool:
        return self.engine.uncommitted_bytes > COMMIT_BYTES or self.engine.halted is not None

    async def _apply(self) -> None:
        """Bring durable records into the images, many small ones at a time."""
        engine = self.engine
        while True:
            batch = engine.begin_apply()
            if not batch:
                self._apply_wanted = trio.Event()
                await self._apply_wanted.wait()
                continue
            if engine.unapplied_bytes < COMMIT_BYTES:
                await trio.sleep(APPLY_DELAY_S)
                batch = engine.begin_apply()
            await self._with_space(self._applies, engine.images.apply, batch)
            engine.finish_apply(batch)
            self._progressed()

    async def _make_ready(self) -> None:
        """Keep a file ready, so that rolling never waits for a directory."""
        engine = self.engine
        journal = engine.journal
        while True:
            if journal.ready is not None or engine.halted is not None:
                await self._ready_wanted.wait()
                self._ready_wanted = trio.Event()
                continue
            journal.adopt(await self._with_space(self._housekeeping, journal.make_ready))
            self._progressed()

    async def _seal(self) -> None:
        """Finish the files that were rolled, oldest first."""
        engine = self.engine
        while True:
            if not engine.journal.closing or engine.halted is not None:
                await self._seal_wanted.wait()
                self._seal_wanted = trio.Event()
                continue
            lane = self._urgent_seals if engine.journal.is_crowded else self._seals
            head = await self._with_space(lane, engine.journal.seal_next)
            engine.finish_seal(head)
            self.keeper.note_sealed(head.number, self.keeper.sealed_size(head))
            self._apply_wanted.set()
            self._progressed()

    async def _tick(self) -> None:
        """Roll by age, so that a quiet volume's last writes do not wait for a full file."""
        journal = self.engine.journal
        while True:
            await trio.sleep(TICK_S)
            if journal.active_age_s() >= self.limits.file_age_s and journal.ready is not None:
                try:
                    self.engine.roll()
                except OSError as exc:
                    if exc.errno not in OUT_OF_SPACE:
                        raise
                    self.full = exc.strerror  # The next tick tries again.
            if journal.ready is None or journal.closing:
                self._ready_wanted.set()
            self._seal_wanted.set()

    async def _checkpoint(self) -> None:
        engine = self.engine
        last_s = time.monotonic()
        while True:
            await trio.sleep(TICK_S)
            behind = engine.journal.head.number - engine.checkpoint.head.number
            due = time.monotonic() - last_s >= self.limits.checkpoint_interval_s
            low = self.keeper.is_low
            due = due or behind >= CHECKPOINT_FILES or self._checkpoint_wanted
            if engine.halted is not None or not (due or low):
                continue
            last_s = time.monotonic()
            self._checkpoint_wanted = False
            step = engine.begin_checkpoint(again=low)
            if step is not None:
                checkpoint, dirty = step
                # A sync that failed may have lost pages, for whatever reason; a slot is just
                # written again, whole.
                await self._background.run(engine.images.sync, dirty)
                await self._with_space(self._background, engine.write_checkpoint, checkpoint)
                engine.finish_checkpoint(checkpoint)
                self._progressed()

    async def _keep_house(self) -> None:
        """Release what nobody needs any more, and watch the space that is left."""
        told: str | None = None
        while True:
            keeper = self.keeper
            load = keeper.load()
            keeper.note_released(await self._with_space(self._housekeeping, keeper.release, load))
            full = keeper.why_full(was_full=self.full is not None)
            if self._starving:  # What was measured may suffice and what a step needs still not.
                full = full or self.full
            if (full is None) != (told is None):
                log.log(logging.WARNING if full else logging.INFO, "spool: %s", full or "fine")
                told = full
            self._rounds += 1
            if full != self.full or full:
                self.full = full
                self._progressed()
            await trio.sleep(TICK_S * 2 if keeper.is_low else HOUSEKEEPING_S)

    # Waking.

    def _fits(self, payload_bytes: int) -> bool:
        journal = self.engine.journal
        try:
            self.full = self.keeper.take(payload_bytes)
            if self.full is not None:
                return False
            fits = journal.can_roll and self.engine.has_room(payload_bytes)
            if journal.ready is None:
                self._ready_wanted.set()
                self._seal_wanted.set()
        except OSError as exc:
            self.full = os.strerror(exc.errno or errno.EIO)
            return False
        return fits

    def _check(self) -> None:
        if self.ended:
            raise BusyError("the volume is being unmounted")
        if self.engine.halted is not None:
            raise HaltedError(self.engine.halted)

    def _progressed(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()

    async def _next_progress(self) -> None:
        with trio.move_on_after(HOUSEKEEPING_S):
            await self._progress.wait()

    def _wake_all(self) -> None:
        self._progressed()
        self._commit_now()
