"""Keep the engine moving: the trio tasks that commit, apply, seal, make ready and checkpoint.

The engine belongs to trio's thread. Each task takes a step from it, does the slow part in a
worker thread and hands the result back; waiting requests are woken in between. Every disk
error on the journal halts the volume, since what an fsync lost is lost.
"""

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple, Unpack

import trio

from aimfuse.driver.admission import Admission
from aimfuse.driver.engine import Engine
from aimfuse.driver.keeper import SpoolKeeper
from aimfuse.driver.lanes import Lane
from aimfuse.driver.quick_sync import QuickSync
from aimfuse.driver.wakeups import Wakeups
from aimfuse.errors import OUT_OF_SPACE, AimfuseError, explain
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
CHECKPOINT_FILES = 16
BACKGROUND_NICENESS = 19


@dataclass(frozen=True, slots=True)
class PumpLimits:
    """When to do what; times in seconds, sizes in bytes."""

    commit_interval_s: float
    file_age_s: float
    checkpoint_interval_s: float


class Pump:
    """The engine's tasks, and the waits for what they do."""

    def __init__(self, engine: Engine, keeper: SpoolKeeper, limits: PumpLimits) -> None:
        """Drive *engine*, whose spool *keeper* keeps."""
        self.engine = engine
        self.keeper = keeper
        self.limits = limits
        self._wakeups = Wakeups()
        self.admission = Admission(engine, keeper, self._wakeups)
        self._idle = True
        self._checkpoint_wanted = False
        self._committing = False
        self._waiting = 0
        self._starving = 0
        self._quick_sync = QuickSync(engine.journal)
        self._commits = Lane("commit")
        self._applies = Lane("apply")
        self._housekeeping = Lane("housekeeping")
        self._seals = Lane("seal", BACKGROUND_NICENESS)
        self._urgent_seals = Lane("urgent-seal")
        self._background = Lane("checkpoint", BACKGROUND_NICENESS)
        engine.on_halt = self._wakeups.wake_all

    # What others wait for.

    async def flushed(self, append: Callable[[], Seq]) -> None:
        """Wait until all that was accepted is durable, with the flush that *append* records.

        A full spool refuses new data, never the promise for what it has taken: then the flush
        goes without a record of its own.

        Raises:
            HaltedError: it may never be durable.
        """
        seq = self.engine.journal.last_seq
        while not self.admission.fits(0) and self.admission.full is None:
            self.admission.check()
            self._wakeups.commit_wanted.set()
            await self._wakeups.next_progress()
        self.admission.check()
        if self.admission.full is None:
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
                self.admission.check()
                if self._committing:
                    await self._wakeups.progress.wait()
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
            self.admission.check()
            if engine.journal.ready is not None:
                engine.roll()
            self._wakeups.want_next_file()
            if engine.journal.active is active:
                await self._wakeups.next_progress()
        while engine.journal.closing and engine.journal.closing[0].first_seq <= seq:
            self.admission.check()
            self._wakeups.want_next_file()
            await self._wakeups.next_progress()
        number = engine.journal.head.number
        while applied and engine.applied_seq < seq:
            self.admission.check()
            await self._wakeups.next_progress()
        return number

    async def checkpointed(self) -> FileNumber:
        """Have the image hold everything accepted so far, durably, and the checkpoint say so.

        Raises:
            HaltedError, BusyError: it never will.
        """
        number = await self.rolled(applied=True)
        while self.engine.checkpoint.head.number < number:
            self.admission.check()
            self._checkpoint_wanted = True
            await self._wakeups.next_progress()
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
            self._wakeups.commit_wanted.set()
        elif self.engine.uncommitted_bytes > COMMIT_BYTES:
            self._wakeups.commit_urgent.set()

    def end(self) -> None:
        """Let nobody change the engine any more: another thread is about to close it.

        FUSE has no requests left by then; who asks by the control socket gets `BusyError`.
        """
        self.admission.ended = True
        self._wakeups.progressed()

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
            await self._wakeups.commit_wanted.wait()
            self._idle = False
            self._wakeups.commit_wanted = trio.Event()
            wait_s = last_s + self.limits.commit_interval_s - time.monotonic()
            if wait_s > 0 and not self._is_urgent():
                with trio.move_on_after(wait_s):
                    await self._wakeups.commit_urgent.wait()
            self._wakeups.commit_urgent = trio.Event()
            while self._committing:
                await self._wakeups.progress.wait()
            last_s = time.monotonic()
            await self._commit_once()
            if self.engine.uncommitted_bytes and self.engine.halted is None:
                self._wakeups.commit_wanted.set()

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
            self.admission.check()
        finally:
            self._committing = False
            # However it ended: who waits for it has to go on by himself.
            self._wakeups.progressed()
        engine.finish_commit(commit)
        self._wakeups.apply_wanted.set()

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
                self.admission.full = why
                self._wakeups.progressed()  # Who waits for room may have to be refused now.
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
                self._wakeups.apply_wanted = trio.Event()
                await self._wakeups.apply_wanted.wait()
                continue
            if engine.unapplied_bytes < COMMIT_BYTES:
                await trio.sleep(APPLY_DELAY_S)
                batch = engine.begin_apply()
            await self._with_space(self._applies, engine.images.apply, batch)
            engine.finish_apply(batch)
            self._wakeups.progressed()

    async def _make_ready(self) -> None:
        """Keep a file ready, so that rolling never waits for a directory."""
        engine = self.engine
        journal = engine.journal
        while True:
            if journal.ready is not None or engine.halted is not None:
                await self._wakeups.ready_wanted.wait()
                self._wakeups.ready_wanted = trio.Event()
                continue
            journal.adopt(await self._with_space(self._housekeeping, journal.make_ready))
            self._wakeups.progressed()

    async def _seal(self) -> None:
        """Finish the files that were rolled, oldest first."""
        engine = self.engine
        while True:
            if not engine.journal.closing or engine.halted is not None:
                await self._wakeups.seal_wanted.wait()
                self._wakeups.seal_wanted = trio.Event()
                continue
            lane = self._urgent_seals if engine.journal.is_crowded else self._seals
            head = await self._with_space(lane, engine.journal.seal_next)
            engine.finish_seal(head)
            self.keeper.note_sealed(head.number, self.keeper.sealed_size(head))
            self._wakeups.apply_wanted.set()
            self._wakeups.progressed()

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
                    self.admission.full = exc.strerror  # The next tick tries again.
            if journal.ready is None or journal.closing:
                self._wakeups.ready_wanted.set()
            self._wakeups.seal_wanted.set()

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
                self._wakeups.progressed()

    async def _keep_house(self) -> None:
        """Release what nobody needs any more, and watch the space that is left."""
        told: str | None = None
        while True:
            keeper = self.keeper
            load = keeper.load()
            keeper.note_released(await self._with_space(self._housekeeping, keeper.release, load))
            full = keeper.why_full(was_full=self.admission.full is not None)
            if self._starving:  # What was measured may suffice and what a step needs still not.
                full = full or self.admission.full
            if (full is None) != (told is None):
                log.log(logging.WARNING if full else logging.INFO, "spool: %s", full or "fine")
                told = full
            self.admission.rounds += 1
            if full != self.admission.full or full:
                self.admission.full = full
                self._wakeups.progressed()
            await trio.sleep(TICK_S * 2 if keeper.is_low else HOUSEKEEPING_S)
