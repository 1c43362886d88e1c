"""The books of one destination: where it stands, what is on its way, and its cursor on disk."""

import math
from collections.abc import Callable
from dataclasses import replace

import trio

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.acks import Ack
from aimfuse.coordinator.bandwidth import TokenBucket
from aimfuse.coordinator.cursor import Cursor, CursorFile
from aimfuse.coordinator.decide import History
from aimfuse.coordinator.delivery import Delivery, Flight
from aimfuse.coordinator.gate import Gate
from aimfuse.coordinator.parts import Parts
from aimfuse.coordinator.rate import RateMeter
from aimfuse.coordinator.request import REQUEST
from aimfuse.coordinator.retention import retention_lock
from aimfuse.coordinator.route import ROUTED, Base, Route
from aimfuse.coordinator.signal import Signal
from aimfuse.coordinator.source import SourceCheckpoint
from aimfuse.coordinator.todo import Todo
from aimfuse.errors import AimfuseError
from aimfuse.journal.fold import Fold, FoldFile
from aimfuse.journal.header import NO_DIGEST
from aimfuse.journal.journal import Head
from aimfuse.units import Epoch, FileNumber, Seq

FOLD_LOOK_S = 1.0
_SENDING = {"syncing", "shipping"}


class Place:
    """One destination as the coordinator knows it. Owned by that destination's tasks."""

    def __init__(self, parts: Parts, config: DestinationConfig) -> None:
        self.parts = parts
        self.config = config
        self.directory = parts.config.destination_dir(config.name)
        self.signal = Signal()
        self.delivery = Delivery(parts.backlog)
        self.outgoing: list[Flight] = []
        """The files of a copy that the store has not confirmed."""
        self.cursor = Cursor(config.url)
        self.ack: Ack | None = None
        self.meter = RateMeter()
        self.route: Route | None = None
        self.fold = Fold()
        self.lost = 0
        """A file that the mirror needs and that cannot be sent any more; 0 if none is known."""
        self.todo = Todo(parts.disk, self.directory)
        self._folds = FoldFile(parts.disk, self.directory)
        self._looked_at = -math.inf
        self.gate = Gate(config.windows, parts.wall_ns)
        self.bucket = TokenBucket(config.bandwidth_bytes_s)
        self.state = "new"
        self.error: AimfuseError | OSError | None = None
        self.failing_since: float | None = None
        self.since_ns = parts.wall_ns()
        self.retry_at: float | None = None
        self.moved_at = trio.current_time()
        self._saved: Cursor | None = None
        self._saving = trio.Lock()
        self._file = CursorFile(parts.disk, self.directory, config.url)

    def open(self) -> None:
        """Make the directory if it is missing and read the cursor.

        Raises:
            StateLost: the cursor is unreadable.
            OSError: as the disk gave it.
        """
        for path in (self.directory.parent, self.directory):
            self.parts.disk.mkdir("destination:mkdir", path)
        self.cursor = self._saved = self._file.read()
        self.delivery.rewind(self.cursor.number, self.cursor.applied)
        self.open_route()

    def open_route(self) -> None:
        """Begin the copies of a destination with a rule where the cursor is."""
        at = self.cursor
        self.route = None
        if at.rule is not None:
            base = Base(at.number, at.epoch, at.digest, at.members)
            directory = self.directory / ROUTED
            self.route = Route(self.parts.disk, self.parts.backlog, directory, at.rule, base)
            self.route.sweep()

    def configure(self, config: DestinationConfig) -> None:
        """Go on under other settings; only for those that need no new connection."""
        self.config = config
        self.gate.windows = config.windows
        self.bucket.rate_bytes_s = config.bandwidth_bytes_s
        self.signal.notify()

    @property
    def is_paced(self) -> bool:
        """Tell whether anything could make a block wait."""
        return bool(self.config.windows) or self.config.bandwidth_bytes_s is not None

    async def may_send(self, count_bytes: int) -> None:
        """Return once *count_bytes* more may be sent: in a window, and below the cap."""
        await self.gate.wait()
        await self.bucket.take(count_bytes)

    def look_at_fold(self, *, now: bool = True) -> None:
        """Learn what has left the spool unsent; without *now* only after a while.

        Raises:
            StateLost, OSError: it cannot be read.
        """
        if now or trio.current_time() - self._looked_at >= FOLD_LOOK_S:
            self._looked_at = trio.current_time()
            self.fold = self._folds.read()

    def is_overtaken(self) -> bool:
        """Tell whether what is needed next has left the spool unsent."""
        sync = self.cursor.sync
        at = sync.head.number if sync else self.delivery.confirmed
        return max(int(self.fold.through), self.lost) > at

    def is_copy_wanted(self) -> bool:
        """Tell whether an operator asked for a copy."""
        return self.parts.disk.exists(self.directory / REQUEST)

    # State.

    def enter(
        self,
        state: str,
        error: AimfuseError | OSError | None = None,
        retry_in_s: float | None = None,
    ) -> None:
        """Note what the destination is doing now, and what is wrong with it."""
        now = trio.current_time()
        if state in _SENDING and not self.gate.is_open():
            state = "waiting"
        if state != self.state:
            self.since_ns = self.parts.wall_ns()
        self.state = state
        self.error = error
        self.retry_at = None if retry_in_s is None else now + retry_in_s
        if error is None and state in {"shipping", "idle", "waiting", "delayed", "held"}:
            self.failing_since = None
        elif error is not None and self.failing_since is None:
            self.failing_since = now

    def note_progress(self, count_bytes: int = 0) -> None:
        """Note that something moved, *count_bytes* of it over the wire."""
        self.moved_at = trio.current_time()
        self.failing_since = None
        if count_bytes:
            self.meter.add(self.moved_at, count_bytes)

    def take_ack(self, ack: Ack) -> None:
        """Note what the store has while files are shipped."""
        ack = self.seen(ack)
        if self.delivery.take_ack(ack, trio.current_time()):
            self.note_progress()

    def seen(self, ack: Ack) -> Ack:
        """Return *ack* as shipping sees it: behind a staged copy, that copy's journal counts."""
        sync = self.cursor.sync
        theirs = ack.copy_of(sync.sync_id) if sync and sync.staged else None
        if sync is None or theirs is None or not theirs.staged:
            return ack
        return replace(ack, applied=None, received=max(theirs.received, int(sync.head.number)))

    def history(self, checkpoint: SourceCheckpoint) -> History:
        """Return our side of the history, to hold a store's against."""
        heads = [] if self.route else [checkpoint.head]  # Copies have digests of their own.
        if self.cursor.sync:
            heads.append(self.cursor.sync.head)
        if self.cursor.number and self.cursor.digest != NO_DIGEST:
            number, epoch = FileNumber(self.cursor.number), Epoch(self.cursor.epoch)
            heads.append(Head(epoch, number, Seq(0), self.cursor.digest))
        if self._is_before_switch():
            heads.clear()
        backlog = self.parts.backlog
        return History(
            checkpoint.group, backlog.newest, backlog.oldest, tuple(heads), self._digests,
            self.fold, self.lost,
        )  # fmt: skip

    def _is_before_switch(self) -> bool:
        """Tell whether the mirror ends a chain of copies that was given up for a staged one's."""
        sync, ack = self.cursor.sync, self.ack
        if self.route is None or sync is None or not sync.staged:
            return False
        theirs = ack.copy_of(sync.sync_id) if ack else None
        return theirs is None or theirs.staged

    def begin_shipping(self, group: bytes, first: int, ack: Ack, *, behind_copy: bool) -> None:
        """Leave new or syncing behind: the store has everything below *first*.

        *behind_copy*: the copy goes on; this is the journal that makes it consistent.
        """
        if behind_copy:
            ack = self.seen(ack)
            self.delivery.rewind(ack.confirmed, self.delivery.applied)
            self.delivery.start(first, trio.current_time())
            return
        if ack.confirmed < self.delivery.confirmed or self.cursor.is_new or self.cursor.sync:
            self.delivery.rewind(ack.confirmed, ack.applied_number)
        self.delivery.start(first, trio.current_time())
        self.cursor = replace(
            self.cursor, url=self.config.url, group=group, pin=self._known_confirmed(), sync=None,
            halted=None,
        )  # fmt: skip
        self.take_ack(ack)

    @property
    def is_open(self) -> bool:
        """Tell whether the cursor has been read."""
        return self._saved is not None

    @property
    def is_shipping(self) -> bool:
        """Tell whether the first sync lies behind."""
        return not self.cursor.is_new and self.cursor.sync is None

    @property
    def is_drained(self) -> bool:
        """Tell whether the store has confirmed all there is, and the cursor says so durably.

        A copy that was asked for, or is needed there, and is not begun is still to come; and
        what lies at another URL than before may need one.
        """
        return (
            self.is_shipping
            and not (self.ack and self.ack.needs_sync)
            and self.delivery.confirmed >= self.parts.backlog.newest
            and self._saved is not None
            and self._saved.state == "shipping"
            and self._saved.url == self.config.url
            and self._saved.number == self.delivery.confirmed
            and not self.is_copy_wanted()
        )

    @property
    def pin(self) -> int | None:
        """Return the number above which every file must stay, durably promised; None pins all.

        A new destination pins nothing, which is as good as everything confirmed.
        """
        if self._saved is None:
            return 0
        return self._saved.pin

    # The cursor on disk.

    async def save_cursor(self) -> None:
        """Make the cursor durable if it moved. Finishes also when cancelled."""
        async with self._saving:
            before = self.cursor
            cursor = self._moved_cursor()
            if cursor == self._saved:
                return
            if self._file.exists():
                await trio.to_thread.run_sync(self._file.write, cursor)
            else:  # Half a first slot must not be read as a lost cursor.
                async with retention_lock(self.parts.disk, self.parts.config.state_dir):
                    await trio.to_thread.run_sync(self._file.write, cursor)
            self._saved = cursor
            if self.route is not None:
                self.route.forget_through(cursor.number)
            if self.cursor is before:  # Otherwise it went on while this one was written.
                self.cursor = cursor

    async def set_cursor(self, make: Callable[[], Cursor]) -> None:
        """Make and write a new cursor in a worker thread, durable when this returns."""

        def write() -> Cursor:
            cursor = make()
            self._file.write(cursor)
            return cursor

        async with self._saving:
            self.cursor = self._saved = await trio.to_thread.run_sync(write)

    def _moved_cursor(self) -> Cursor:
        cursor, number = self.cursor, self._known_confirmed()
        if not self.is_shipping:
            return cursor
        if cursor.number != number and self.route is not None:
            at = self.route.base_at(number)
            cursor = replace(
                cursor, number=number, epoch=at.epoch, digest=at.digest, members=at.members
            )
        elif cursor.number != number:
            epoch, digest = self._identify(number)
            cursor = replace(cursor, number=number, epoch=epoch, digest=digest)
        return replace(cursor, pin=number, applied=min(self.delivery.applied, number))

    def _known_confirmed(self) -> int:
        """Return how far the cursor can follow: with a rule, to the copies that were made."""
        confirmed = self.delivery.confirmed
        if self.route is None:
            return confirmed
        return max(self.route.first, min(confirmed, self.route.through))

    def _identify(self, number: int) -> tuple[int, bytes]:
        found = self.parts.backlog.header(number)
        if found is not None:
            return int(found[0].epoch), found[1].digest
        applied = self.ack.applied if self.ack else None
        if applied is not None and applied.number == number:
            return applied.epoch, applied.digest
        return self.cursor.epoch, NO_DIGEST

    def _digests(self, number: int) -> tuple[bytes, bytes] | None:
        if self.route is not None:
            return None if self._is_before_switch() else self.route.digests(number)
        found = self.parts.backlog.header(number)
        return (found[1].digest, found[1].prev_digest) if found else None
