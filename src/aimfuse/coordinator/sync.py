"""The first copy to an empty store: a few SYNC files at a time, resumable at each of them.

The cursor says from which journal file the copy counts and pins everything after it, before
the first byte is read. The store says how far it is; we go on from there, whatever was sent.
"""

import contextlib
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio

from aimfuse.coordinator.acks import Ack, Position
from aimfuse.coordinator.cursor import Cursor, SyncState
from aimfuse.coordinator.decide import Halt, check_store
from aimfuse.coordinator.delivery import DAMAGED_GRACE_S, SILENCE_S, Flight, Grace
from aimfuse.coordinator.extents import ImageReader, write_sync_file
from aimfuse.coordinator.place import Place
from aimfuse.coordinator.retention import retention_lock
from aimfuse.coordinator.route import rule_of
from aimfuse.coordinator.session import TICK_S, Session
from aimfuse.errors import ImageMismatch, Unavailable

WINDOW_FILES = 4
SYNC_DIR = "sync"


async def begin_sync(place: Place) -> None:
    """Pin the journal from the present checkpoint on and note a new sync in the cursor.

    Under the retention lock, so that no file after that checkpoint is released in between.

    Raises:
        Unavailable: no checkpoint yet, or history is broken right behind it; or the lock
            stayed taken.
        StateLost: the checkpoint is unreadable.
    """
    async with retention_lock(place.parts.disk, place.parts.config.state_dir):
        await place.set_cursor(lambda: _first_cursor(place))
    sync = place.cursor.sync
    assert sync is not None
    place.delivery.rewind(sync.head.number, sync.head.number)
    place.open_route()
    reader = ImageReader(place.parts.disk, place.parts.config.image, sync)
    total = await trio.to_thread.run_sync(reader.data_bytes)
    place.cursor = replace(place.cursor, sync=replace(sync, total_bytes=total))


def _first_cursor(place: Place) -> Cursor:
    checkpoint = place.parts.checkpoint()
    if checkpoint.gap is not None:  # The store would halt on the GAP record behind it.
        raise Unavailable(
            f"the first copy waits for the next checkpoint: {checkpoint.gap}",
            hint="It begins by itself, once the image is mounted and has been written to.",
        )
    head = checkpoint.head
    sync_id = place.parts.tools.dice.getrandbits(64) or 1
    rule = rule_of(place.config)
    volumes = tuple(one for one in checkpoint.volumes if not rule or rule.takes(one.entry.name))
    if checkpoint.volumes and not volumes and not place.parts.config.image.is_dir():
        raise Halt(
            "its rule takes none of the group's volumes",
            hint="Correct `volumes` or `exclude` in group.toml.",
        )
    members = frozenset(int(one.entry.volume) for one in volumes) if rule else frozenset[int]()
    sync = SyncState(sync_id, head, volumes, checkpoint.next_volume)
    return Cursor(
        place.config.url, checkpoint.group, head.number, head.epoch, head.number,
        head.digest, head.number, sync, None, rule, members,
    )  # fmt: skip


@dataclass(slots=True)
class _Outgoing:
    """One SYNC file that the store has not confirmed; `grace` runs from its delivery."""

    index: int
    path: Path
    flight: Flight
    done_bytes: int
    grace: Grace = field(default_factory=lambda: Grace(0.0))
    flying: bool = False


class FirstSync:
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
        self._reader = ImageReader(
            self._parts.disk, self._parts.config.image, sync, self._parts.tools.sync_file_bytes
        )
        self._next_index = index
        self._next = start
        self._done_bytes = sync.done_bytes if index else 0
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
        sweep(place)
        self._note(self._next_index, self._next, self._done_bytes)
        async with trio.open_nursery() as nursery:
            while not self._is_done():
                place.enter("syncing")  # Before building: a busy driver may take minutes for it.
                self._forget_confirmed()
                if not self._is_last_built and len(self._out) < WINDOW_FILES:
                    await self._build()
                self._send_what_is_due(nursery)
                if self._is_last_built or len(self._out) >= WINDOW_FILES:
                    await place.signal.wait(TICK_S)
            nursery.cancel_scope.cancel()

    def _is_done(self) -> bool:
        ack = self._place.ack
        if ack is None:
            return False
        check_store(ack, self._place.history(self._parts.checkpoint()))
        if ack.phase in {"catching_up", "consistent"}:
            return True
        if self._next_index > WINDOW_FILES and ack.is_empty:
            raise Unavailable("the store was emptied during the first copy")
        return False

    def _forget_confirmed(self) -> None:
        """Note what the store has applied, and drop our copies of it."""
        ack = self._ours(self._place.ack)
        if ack is None or ack.sync is None:
            return
        for index in [one for one in self._out if one < ack.sync.next_index]:
            out = self._out.pop(index)
            if not out.flying:
                self._unlink(out.path)
            self._note(ack.sync.next_index, ack.sync.next, out.done_bytes)
            self._place.note_progress()
        if ack.sync.next_index > self._next_index:
            raise Unavailable("the store is ahead of what was sent to it")

    def _ours(self, ack: Ack | None) -> Ack | None:
        same = ack is not None and ack.sync and ack.sync.sync_id == self._sync.sync_id
        return ack if same else None

    async def _build(self) -> None:
        index, start = self._next_index, self._next
        try:
            stretch = await trio.to_thread.run_sync(self._reader.gather, start)
        except ImageMismatch as exc:
            raise Halt(str(exc), hint=exc.hint) from exc
        except FileNotFoundError as exc:
            raise Unavailable(f"the image cannot be read: {exc}") from exc
        to = None
        if stretch.last:
            to = await self._parts.source.covering_number(self._parts.backlog.newest)
            self._sync = replace(self._sync, to=to)
        path = await trio.to_thread.run_sync(
            partial(
                write_sync_file, self._parts.disk, self._directory, self._group, self._sync,
                index, stretch, to, self._parts.wall_ns(),
            )
        )  # fmt: skip
        self._done_bytes += stretch.scanned_bytes
        flight = Flight(path.name, path.stat().st_size)
        self._out[index] = _Outgoing(index, path, flight, self._done_bytes)
        self._next_index, self._next = index + 1, stretch.end
        self._is_last_built = stretch.last

    def _send_what_is_due(self, nursery: trio.Nursery) -> None:
        # No await here: a file is marked as flying before anything else can run.
        damaged = set(self._place.ack.damaged) if self._place.ack else set()
        now = trio.current_time()
        for out in self._out.values():
            is_damaged = out.flight.name in damaged
            grace_s = DAMAGED_GRACE_S if is_damaged else SILENCE_S
            first_time = out.grace.tries == 0
            if not out.flying and (first_time or out.grace.is_over(now, grace_s)):
                out.flight.fresh = is_damaged
                out.flight.sent = 0
                out.flying = True
                nursery.start_soon(self._send, out)

    async def _send(self, out: _Outgoing) -> None:
        transport = self._session.transport
        try:
            await self._session.put(out.flight, partial(transport.put, out.path, out.flight.name))
        finally:
            out.flying = False
            out.grace = Grace(trio.current_time(), out.grace.tries + 1)
            self._place.signal.notify()
        if self._out.get(out.index) is not out:  # Confirmed while it flew again.
            self._unlink(out.path)
        self._session.nudge()

    def _note(self, index: int, position: Position, done_bytes: int) -> None:
        self._sync = replace(self._sync, next_index=index, next=position, done_bytes=done_bytes)
        self._place.cursor = replace(self._place.cursor, sync=self._sync, halted=None)

    def _unlink(self, path: Path) -> None:
        _unlink(self._place, path)


def sweep(place: Place) -> None:
    """Remove the SYNC files that an earlier run left behind."""
    directory = place.directory / SYNC_DIR
    for name in place.parts.disk.listdir(directory) if directory.exists() else ():
        _unlink(place, directory / name)


def _unlink(place: Place, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        place.parts.disk.unlink("sync:unlink", path)
