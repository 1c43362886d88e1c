"""A copy on its way to a store: a few SYNC files at a time, resumable at each of them.

The cursor says from which journal file the copy counts and pins everything after it, before
the first byte is read. The store says how far it is; we go on from there, whatever was sent.
When the spool overflows meanwhile, the copy goes into a further round: from a later origin,
with what it had not brought over yet and what was in the files that left the spool.
"""

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio

from aimfuse.coordinator.acks import Ack, Position
from aimfuse.coordinator.begin import begin_round
from aimfuse.coordinator.decide import Halt, check_store
from aimfuse.coordinator.delivery import DAMAGED_GRACE_S, SILENCE_S, Flight, Grace
from aimfuse.coordinator.extents import ImageReader, write_sync_file
from aimfuse.coordinator.kept import Kept, read_kept
from aimfuse.coordinator.place import Place
from aimfuse.coordinator.session import TICK_S, Session
from aimfuse.coordinator.todo import NotCovered
from aimfuse.errors import ImageMismatch, Unavailable, explain
from aimfuse.journal.names import SyncName
from aimfuse.transport.base import Pace, Progress
from aimfuse.units import FileNumber

WINDOW_FILES = 8
FLYING_FILES = 2
"""Sent at once. With all of them they would all arrive at the end, and the store wait for it."""
SYNC_DIR = "sync"
BEGUN = ".begun"
"""Beside a SYNC file: of this one, and no earlier one of its name, a part is over there."""


@dataclass(slots=True)
class _Outgoing:
    """One SYNC file that the store has not confirmed; `grace` runs from its delivery."""

    index: int
    path: Path
    flight: Flight
    done_bytes: int
    end: Position
    grace: Grace = field(default_factory=lambda: Grace(0.0))
    flying: bool = False


class Copying:
    """One run of a sync over one session, from where the store wants to go on."""

    def __init__(self, session: Session, group: bytes, index: int, start: Position) -> None:
        self._session = session
        self._place = session.place
        self._parts = session.place.parts
        self._group = group
        sync = self._place.cursor.sync
        assert sync is not None
        self._sync = sync
        self._directory = self._place.directory / SYNC_DIR
        self._reader: ImageReader | None = None
        self._next_index = index
        self._next = start
        self._done_bytes = sync.done_bytes if index else 0
        self._has_built = False
        self._is_last_built = False
        self._out: dict[int, _Outgoing] = {}

    async def run(self) -> None:
        """Send SYNC files until the store has the last one. Cancel-safe: see the module.

        Raises:
            Unavailable: the end of the copy cannot be fixed now, or the store began anew.
            Halt: the image is not the one that was mirrored, or the store says so.
        """
        place = self._place
        self._parts.disk.mkdir("sync:mkdir", self._directory)
        ahead = [self._name(self._next_index + one) for one in range(WINDOW_FILES)]
        _sweep_files(place, {*ahead, *(name + BEGUN for name in ahead)})
        self._note(self._next_index, self._next, self._done_bytes)
        try:
            await self._open_reader()
        except NotCovered as exc:
            raise self._begin_anew(f"what was to be copied is not known: {exc}") from exc
        try:
            await self._send_all()
        finally:
            place.outgoing = []

    async def _send_all(self) -> None:
        place = self._place
        async with trio.open_nursery() as nursery:
            while not self._is_done():
                place.enter("syncing")  # Before building: a busy driver may take minutes for it.
                self._forget_confirmed()
                place.look_at_fold()
                if place.is_overtaken():
                    if not self._out:
                        await self._begin_round()
                elif not self._is_last_built and len(self._out) < WINDOW_FILES:
                    await self._prepare()
                is_full = self._session.is_full()
                if not is_full:
                    self._send_what_is_due(nursery)
                place.outgoing = [out.flight for out in self._out.values()]
                is_window_full = self._is_last_built or len(self._out) >= WINDOW_FILES
                if is_full or is_window_full or place.is_overtaken():
                    await place.signal.wait(TICK_S)
            nursery.cancel_scope.cancel()

    def _is_done(self) -> bool:
        ack = self._place.ack
        if ack is None:
            return False
        check_store(ack, self._place.history(self._parts.checkpoint()))
        if self._sync.staged:
            theirs = ack.copy_of(self._sync.sync_id)
            has_all = theirs and theirs.done and theirs.round == self._sync.round
            has_switched = theirs and not theirs.staged
            return bool(has_switched or (has_all and not self._place.is_overtaken()))
        if ack.phase in {"catching_up", "consistent"}:
            return True
        if self._next_index > WINDOW_FILES and ack.is_empty:
            raise Unavailable("the store was emptied during the first copy")
        return False

    def _forget_confirmed(self) -> None:
        """Note what the store has applied, and drop our copies of it."""
        ack = self._place.ack
        theirs = ack.copy_of(self._sync.sync_id) if ack else None
        if ack is None:
            return
        if theirs is None:
            if self._sync.staged and self._is_given_up(ack):
                raise Unavailable("the store has given up the copy")
            return
        for index in [one for one in self._out if one < theirs.next_index]:
            out = self._out.pop(index)
            if not out.flying:
                self._forget(out.path)
            said = (theirs.round, theirs.next)
            if index + 1 == theirs.next_index and said != (self._sync.round, out.end):
                raise Unavailable("the store took an earlier part than the one sent now")
            self._note(theirs.next_index, theirs.next, out.done_bytes)
            self._place.note_progress()
        if theirs.next_index > self._next_index:
            raise Unavailable("the store is ahead of what was sent to it")

    def _is_given_up(self, ack: Ack) -> bool:
        """Tell whether a staged copy that the store does not know is gone, or not wanted there.

        It was there; or the mirror is beyond its origin by now; or needs one for other reasons.
        """
        if self._sync.next_index > 0 or ack.applied_number > self._sync.head.number:
            return True
        return ack.needs_sync not in {None, self._sync.why}

    async def _open_reader(self) -> None:
        parts = self._parts
        todo = await trio.to_thread.run_sync(self._place.todo.read, self._sync)
        self._reader = ImageReader(
            parts.disk, parts.config.image, self._sync, parts.tools.sync_file_bytes, todo
        )

    async def _begin_round(self) -> None:
        """Go on from a later origin; nothing is on its way now."""
        if not await begin_round(self._place, self._next, self._next_index):
            raise self._begin_anew("what was overtaken is not known")
        sync = self._place.cursor.sync
        assert sync is not None
        self._sync, self._next, self._done_bytes = sync, (0, 0), 0
        self._is_last_built = False
        await self._open_reader()

    def _begin_anew(self, why: str) -> Unavailable:
        """Note that only a copy of everything helps; the next session begins one."""
        self._place.lost = max(self._place.lost, self._sync.head.number + 1)
        return Unavailable(why)

    async def _prepare(self) -> None:
        """Have the next file ready to be sent: one that is here still, or a new one."""
        index, path = self._next_index, self._directory / self._name(self._next_index)
        kept = None
        if not self._has_built:  # One that is older than its predecessors covers less than they do.
            read = partial(
                read_kept, self._parts.disk, path, self._group, self._sync, index, self._next
            )
            kept = await trio.to_thread.run_sync(read)
        is_new = self._has_built = kept is None
        if kept is None:
            kept = await self._build(index)
        if kept.to is not None:
            self._sync = replace(self._sync, to=FileNumber(kept.to))
        self._done_bytes += kept.covered_bytes
        # What the store has of another one under this name cannot be continued.
        is_begun = not is_new and self._parts.disk.exists(_begun(path))
        flight = Flight(path.name, path.stat().st_size, fresh=not is_begun)
        self._out[index] = _Outgoing(index, path, flight, self._done_bytes, kept.end)
        self._next_index, self._next = index + 1, kept.end
        self._is_last_built = kept.to is not None

    async def _build(self, index: int) -> Kept:
        assert self._reader is not None
        try:
            stretch = await trio.to_thread.run_sync(self._reader.gather, self._next)
        except ImageMismatch as exc:
            raise Halt(str(exc), hint=exc.hint) from exc
        except FileNotFoundError as exc:
            raise Unavailable(f"the image cannot be read: {explain(exc)}") from exc
        to = None
        if stretch.last:
            to = await self._parts.source.covering_number(self._parts.backlog.newest)
        self._unlink(_begun(self._directory / self._name(index)))
        await trio.to_thread.run_sync(
            partial(
                write_sync_file, self._parts.disk, self._directory, self._group, self._sync,
                index, stretch, to, self._parts.wall_ns(),
            )
        )  # fmt: skip
        return Kept(stretch.end, stretch.scanned_bytes, to)

    def _name(self, index: int) -> str:
        return SyncName(self._sync.sync_id, index).sealed

    def _send_what_is_due(self, nursery: trio.Nursery) -> None:
        # No await here: a file is marked as flying before anything else can run.
        damaged = set(self._place.ack.damaged) if self._place.ack else set()
        now = trio.current_time()
        flying = sum(out.flying for out in self._out.values())
        for out in self._out.values():
            if flying == FLYING_FILES:
                return
            is_damaged = out.flight.name in damaged
            grace_s = DAMAGED_GRACE_S if is_damaged else SILENCE_S
            first_time = out.grace.tries == 0
            if not out.flying and (first_time or out.grace.is_over(now, grace_s)):
                out.flight.fresh = is_damaged or (first_time and out.flight.fresh)
                out.flight.sent = 0
                out.flying = True
                flying += 1
                nursery.start_soon(self._send, out)

    async def _send(self, out: _Outgoing) -> None:
        try:
            await self._session.put(out.flight, partial(self._put, out))
        finally:
            out.flying = False
            out.grace = Grace(trio.current_time(), out.grace.tries + 1)
            self._place.signal.notify()
        if self._out.get(out.index) is not out:  # Confirmed while it flew again.
            self._forget(out.path)
        self._session.nudge()

    async def _put(
        self, out: _Outgoing, *, progress: Progress, pace: Pace | None, fresh: bool
    ) -> None:
        """Send the file, noting that a part of it is over there once that is so."""
        is_noted = False

        def moved(count_bytes: int) -> None:
            nonlocal is_noted
            if not is_noted:
                self._note_begun(out.path)
                is_noted = True
            progress(count_bytes)

        put = self._session.transport.put
        await put(out.path, out.flight.name, progress=moved, pace=pace, fresh=fresh)

    def _note(self, index: int, position: Position, done_bytes: int) -> None:
        self._sync = replace(self._sync, next_index=index, next=position, done_bytes=done_bytes)
        self._place.cursor = replace(self._place.cursor, sync=self._sync, halted=None)

    def _note_begun(self, path: Path) -> None:
        """Note it; where that fails the next session sends the file from its beginning."""
        disk = self._parts.disk
        with contextlib.suppress(OSError):
            disk.close(disk.open("sync:begun", _begun(path), os.O_WRONLY | os.O_CREAT))

    def _forget(self, path: Path) -> None:
        for one in (path, _begun(path)):
            self._unlink(one)

    def _unlink(self, path: Path) -> None:
        _unlink(self._place, path)


def sweep(place: Place) -> None:
    """Remove what earlier copies left behind."""
    _sweep_files(place)
    place.todo.forget_others(None)


def _sweep_files(place: Place, kept: Collection[str] = ()) -> None:
    directory = place.directory / SYNC_DIR
    for name in place.parts.disk.listdir(directory) if directory.exists() else ():
        if name not in kept:
            _unlink(place, directory / name)


def _begun(path: Path) -> Path:
    return path.with_name(path.name + BEGUN)


def _unlink(place: Place, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        place.parts.disk.unlink("sync:unlink", path)
