"""One connection to one store: follow its ack, keep files in flight, say that we live."""

import logging
import math
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from aimfuse.coordinator.acks import ACK_BYTES_MAX, ACK_NAME, Ack, parse_ack
from aimfuse.coordinator.decide import check_history, check_store
from aimfuse.coordinator.delivery import Flight
from aimfuse.coordinator.heartbeat import heartbeat
from aimfuse.coordinator.place import Place
from aimfuse.coordinator.signal import Signal
from aimfuse.errors import JournalError, StoreError, Unavailable
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.reader import read_sealed
from aimfuse.transport.base import Transport
from aimfuse.units import MIB, format_bytes

SMALL_S_MAX = 30.0
DIFFERS_BYTES_MAX = 64 * MIB
POLL_S_MIN = 0.05
POLL_S_MAX = 1.0
POLL_IDLE_S = 5.0
HEARTBEAT_S = 5.0
TICK_S = 1.0
FREE_BYTES_MIN = 64 * MIB
HEARTBEAT_NAME = "source.json"

log = logging.getLogger(__name__)


class Session:
    """The work over one open transport. Ends by an error or by cancellation, never by itself.

    Cancel-safe anywhere: what was not confirmed is sent again by the next session, and the
    store drops the copy.
    """

    def __init__(self, place: Place, transport: Transport) -> None:
        self.place = place
        self.transport = transport
        self._parts = place.parts
        self._nudge = Signal()
        self._free_bytes: int | None = None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do *work* over and over while acks are followed and heartbeats sent.

        Raises:
            ExceptionGroup: of `Unavailable`, `Refused`, `Halt` or `OSError`.
        """
        await self._read_ack()
        await self._beat()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_beating)
            nursery.start_soon(self._watch_acks)
            while True:
                await work()

    async def ship(self, group: bytes, first: int, *, behind_copy: bool = False) -> None:
        """Keep files in flight until something else has to be done.

        That is a copy: what is needed next has left the spool, somebody asked for one, or one
        that waited for its journal was switched in.
        """
        place = self.place
        ack = place.ack
        assert ack is not None
        if place.route is not None:  # What was confirmed before we noted it.
            place.route.sweep()
            await place.route.follow(place.seen(ack).confirmed)
        place.begin_shipping(group, first, ack, behind_copy=behind_copy)
        async with trio.open_nursery() as nursery:
            while not self._is_interrupted(behind_copy=behind_copy):
                if place.ack is not ack and place.ack is not None:
                    ack = place.ack
                    self._check_ack()
                    place.take_ack(ack)
                if not self.is_full():
                    self._fill(nursery, group)
                await place.signal.wait(TICK_S)
            nursery.cancel_scope.cancel()

    async def differs(self) -> DirtyMap | None:
        """Return where a rejoined mirror differs from its position, None if it does not say.

        Raises:
            Unavailable: it says so, and the map is missing or damaged; it may come yet.
        """
        ack = self.place.ack
        if ack is None or ack.differs is None:
            return None
        data = await self.transport.get(ack.differs, DIFFERS_BYTES_MAX)
        try:
            return DirtyMap.decode(data or b"")
        except ValueError as exc:
            hint = "Remove it there to have everything copied, then end and begin the replayer."
            raise Unavailable(f"the store's {ack.differs} is damaged: {exc}", hint=hint) from exc

    def _is_interrupted(self, *, behind_copy: bool) -> bool:
        place = self.place
        place.look_at_fold(now=False)
        if place.is_overtaken():
            return True
        ack, sync = place.ack, place.cursor.sync
        if behind_copy:
            theirs = ack.copy_of(sync.sync_id) if ack and sync else None
            return theirs is None or not theirs.staged
        return bool(ack and ack.needs_sync) or place.is_copy_wanted()

    def _fill(self, nursery: trio.Nursery, group: bytes) -> None:
        # No await here: picking a file and starting its task is one step.
        place, config = self.place, self.place.config
        while place.gate.is_open() and (
            picked := place.delivery.pick(config.max_in_flight, config.inbox_bytes_max)
        ):
            nursery.start_soon(self._send, group, *picked)
        if place.cursor.sync is not None:
            place.enter("syncing")
        else:
            place.enter(self._state())

    def _state(self) -> str:
        """Return what the destination is doing while files are shipped."""
        delivery, ack = self.place.delivery, self.place.ack
        if delivery.applied >= self._parts.backlog.newest:
            return "idle"
        if ack is None or not (ack.takes_nothing or (ack.is_held and not delivery.queued().files)):
            return "shipping"
        return "held" if ack.is_paused else "delayed"

    def is_full(self) -> bool:
        """Tell, also in the status, whether the far disk is too full to be sent anything."""
        free = self._free_bytes
        if free is None or free >= FREE_BYTES_MIN:
            return False
        error = Unavailable(f"the destination has only {format_bytes(free)} free")
        self.place.enter("retrying", error, HEARTBEAT_S)
        return True

    def _check_ack(self) -> None:
        """Hold a new ack against our history.

        Raises:
            Halt: see `decide`.
            Unavailable: the store has started over; the next session decides anew.
        """
        place, ack = self.place, self.place.ack
        assert ack is not None
        history = place.history(self._parts.checkpoint())
        check_store(ack, history)
        confirmed = place.seen(ack).confirmed
        if ack.is_empty or ack.phase == "syncing" or confirmed < place.delivery.confirmed:
            raise Unavailable("the store has gone back behind what it had confirmed")
        check_history(ack, history)

    async def _send(self, group: bytes, number: int, flight: Flight) -> None:
        place = self.place
        delivered = False
        try:  # No await before this: a flight that was noted always lands.
            await self._put_journal_file(group, number, flight)
            delivered = True
        finally:
            place.delivery.land(number, trio.current_time(), delivered=delivered)
            place.signal.notify()
        place.note_progress()
        self._nudge.notify()

    async def _put_journal_file(self, group: bytes, number: int, flight: Flight) -> None:
        backlog = self._parts.backlog
        name = backlog.name(number)
        if name is None:
            if self._is_confirmed(number):
                return
            raise self._lost(number, f"file {number} is missing from the spool")
        path = backlog.path(name)
        try:
            await trio.to_thread.run_sync(backlog.check, name, group)
            if flight.fresh:  # The far side found damage: is it ours?
                await trio.to_thread.run_sync(read_sealed, self._parts.disk, path)
            await self._put_copy(flight, number, path, name.sealed)
        except FileNotFoundError as exc:
            if self._is_confirmed(number):
                return
            raise self._lost(number, f"{name.sealed} is missing from the spool") from exc
        except JournalError as exc:
            raise self._lost(number, f"the spool is damaged: {exc}") from exc

    def _lost(self, number: int, why: str) -> Unavailable:
        """Note that a file cannot be sent, unless it was folded: a copy takes its place."""
        place = self.place
        place.look_at_fold()
        if place.fold.through < number:
            # A store that passes files on has none of what came to it by a copy, nor keeps them
            # beyond its room: that is its way.
            is_normal = self._parts.checkpoint().is_passed_on and "missing" in why
            level = logging.INFO if is_normal else logging.ERROR
            log.log(level, "%s: %s; a copy of everything begins", place.config.name, why)
            place.lost = max(place.lost, number)
        return Unavailable(why)

    async def _put_copy(self, flight: Flight, number: int, path: Path, name: str) -> None:
        """Send the file, or, to a destination with a rule, its copy."""
        route = self.place.route
        if route is None:
            await self.put(flight, partial(self.transport.put, path, name))
            return
        if number <= route.first:  # Confirmed, and so durable there, while it waited.
            return
        try:
            copy = await route.copy(number)
        except StoreError:
            if number <= route.first:  # Confirmed while it waited for the copies before it.
                return
            raise
        try:
            flight.bytes = copy.stat().st_size
            await self.put(flight, partial(self.transport.put, copy, name))
        finally:
            route.drop(number)

    def _is_confirmed(self, number: int) -> bool:
        """Tell whether an ack has overtaken the sending: then the file may be released."""
        return number <= self.place.delivery.confirmed

    async def put(self, flight: Flight, send: Callable[..., Awaitable[None]]) -> None:
        """Run one `put`, given up when nothing moves for the destination's stall time.

        Raises:
            Unavailable: it stalled, or the transport said so.
        """
        stall_s = self.place.config.stall_s_max
        with trio.move_on_after(stall_s) as scope:

            def moved(count_bytes: int) -> None:
                flight.sent += count_bytes
                scope.deadline = trio.current_time() + stall_s
                self.place.note_progress(count_bytes)

            async def pace(count_bytes: int) -> None:
                scope.deadline = math.inf  # What waits for its turn has not stalled.
                await self.place.may_send(count_bytes)
                scope.deadline = trio.current_time() + stall_s

            # Asking costs a change of threads per block: not where nothing could say no.
            asks = pace if self.place.is_paced else None
            await send(progress=moved, pace=asks, fresh=flight.fresh)
        if scope.cancelled_caught:
            raise Unavailable(f"{flight.name} did not move for {stall_s:.0f} s")
        flight.sent = flight.bytes

    async def _watch_acks(self) -> None:
        """Read the ack: often while something is on its way, seldom while nothing is."""
        wait_s = POLL_S_MIN
        while True:
            nudged = await self._nudged(wait_s)
            changed = await self._read_ack()
            if changed:
                self.place.signal.notify()
            if changed or nudged:
                wait_s = POLL_S_MIN
            else:
                ceiling_s = POLL_S_MAX if self._awaits_ack() else POLL_IDLE_S
                wait_s = min(ceiling_s, wait_s * 1.5)

    def _awaits_ack(self) -> bool:
        place = self.place
        return not place.is_shipping or place.delivery.applied < self._parts.backlog.newest

    async def _nudged(self, wait_s: float) -> bool:
        before = trio.current_time()
        await self._nudge.wait(wait_s)
        nudged = trio.current_time() - before < wait_s
        if nudged:
            await trio.sleep(POLL_S_MIN)
        return nudged

    def nudge(self) -> None:
        """Have the ack read soon."""
        self._nudge.notify()

    async def _read_ack(self) -> bool:
        with _ceiling("ack.json"):
            data = await self.transport.get(ACK_NAME, ACK_BYTES_MAX)
        ack = parse_ack(data) if data is not None else None
        before, self.place.ack = self.place.ack, ack
        return not _says_the_same(before, ack)

    async def _keep_beating(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT_S)
            await self._beat()

    async def _beat(self) -> None:
        with _ceiling("free space"):
            self._free_bytes = await self.transport.free_bytes()
        driver = await self._parts.source.status()
        if self._is_foreign():  # Its source's heartbeat stays there.
            return
        with _ceiling(HEARTBEAT_NAME):
            confirmed = self.place.ack.confirmed if self.place.ack else 0
            content = heartbeat(self._parts, driver, confirmed)
            await self.transport.put_bytes(content, HEARTBEAT_NAME)

    def _is_foreign(self) -> bool:
        ack, checkpoint = self.place.ack, self._parts.source.checkpoint()
        group = checkpoint.group if checkpoint else None
        return ack is not None and ack.group is not None and ack.group != group


def _says_the_same(one: Ack | None, other: Ack | None) -> bool:
    if one is None or other is None:
        return one is other
    return replace(one, generation=0) == replace(other, generation=0)


@contextmanager
def _ceiling(what: str) -> Generator[None]:
    """Bound a small request."""
    with trio.move_on_after(SMALL_S_MAX) as scope:
        yield
    if scope.cancelled_caught:
        raise Unavailable(f"no answer about {what} for {SMALL_S_MAX:.0f} s")
