"""One destination from start to stop: connect, decide, work, and what to do when that fails."""

import logging
from dataclasses import replace
from typing import TypeVar

import trio

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.backoff import Backoff
from aimfuse.coordinator.bandwidth import BLOCK_BYTES_MAX, block_bytes_max
from aimfuse.coordinator.begin import begin_resync, begin_sync
from aimfuse.coordinator.complaint import Complaint
from aimfuse.coordinator.decide import (
    Action,
    AwaitStore,
    BeginResync,
    BeginSync,
    ContinueSync,
    Halt,
    Promoted,
    Ship,
    decide,
)
from aimfuse.coordinator.ending import older
from aimfuse.coordinator.parts import Parts
from aimfuse.coordinator.place import Place
from aimfuse.coordinator.place_report import PlaceReport
from aimfuse.coordinator.repair import Repairs
from aimfuse.coordinator.request import forget_request, read_request
from aimfuse.coordinator.route import rule_of
from aimfuse.coordinator.session import TICK_S, Session
from aimfuse.coordinator.sync import Copying, sweep
from aimfuse.errors import AimfuseError, Refused, StateLost, Unavailable, UsageError
from aimfuse.journal.dirty import DirtyMap

CONNECT_S_MAX = 45.0
CLOSE_S_MAX = 5.0
REPORT_S = 0.5
REFUSED_RETRY_S = 15 * 60.0
HALTED_RETRY_S = 5 * 60.0

_FIXED = (
    "name", "url", "paused", "stall_s_max", "known_hosts", "identity_files", "ssh_config",
    "use_agent", "volumes", "exclude",
)  # fmt: skip
"""Settings that a running destination has used already."""

log = logging.getLogger(__name__)

Failure = AimfuseError | OSError
E = TypeVar("E", bound=BaseException)


class Destination:
    """Runs one `Place`. Nothing that happens to it reaches another destination."""

    def __init__(self, parts: Parts, config: DestinationConfig) -> None:
        self.place = Place(parts, config)
        self._report = PlaceReport(self.place)
        self._parts = parts
        self._repairs = Repairs(self.place)
        self._backoff = Backoff(config.retry_s_min, config.retry_s_max, parts.tools.dice)
        self._retry = trio.Event()
        self._books_complaint = Complaint(log, f"{config.name}: its state cannot be written")

    async def run(self) -> None:
        """Ship to the destination for ever.

        Cancel-safe anywhere: the cursor on disk is never ahead of the store's ack.
        """
        place = self.place
        await self._open_place()
        self._parts.backlog.subscribers.add(place.signal)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_books)
                await self._serve()
        finally:
            self._parts.backlog.subscribers.discard(place.signal)
            with trio.move_on_after(CLOSE_S_MAX) as scope:
                scope.shield = True
                await self._write_books()

    def configure(self, config: DestinationConfig) -> bool:
        """Take other settings over while it runs; tell whether that was enough.

        False changes nothing: the destination has to be stopped and begun anew.
        """
        before = self.place.config
        if any(getattr(before, name) != getattr(config, name) for name in _FIXED):
            return False
        if _block_bytes(before) != _block_bytes(config):
            return False
        self.place.configure(config)
        self._backoff.wait_s_min = config.retry_s_min
        self._backoff.wait_s_max = config.retry_s_max
        return True

    def retry_now(self) -> None:
        """Try again at once what waits for its operator, or for its next try, or is about to."""
        self._backoff.reset()
        self._retry.set()

    async def _open_place(self) -> None:
        while True:
            self._retry = trio.Event()
            try:
                self.place.open()
            except (StateLost, OSError) as exc:
                log.error("%s: the cursor cannot be read: %s", self.place.config.name, exc)  # noqa: TRY400
                self.place.enter("halted", exc)
                await self._wait_for_operator(HALTED_RETRY_S)
            else:
                return

    async def _serve(self) -> None:
        place = self.place
        while True:
            if (ended := self._parts.ending.error()) is not None:
                place.enter("superseded", ended)
                await trio.sleep_forever()
            if place.config.paused or place.config.is_reserved:
                place.enter("paused" if place.config.paused else "reserved")
                await trio.sleep_forever()
            failure: Failure | None = None
            self._retry = trio.Event()
            try:
                await self._connect_and_work()
            except* trio.Cancelled:
                raise
            except* (AimfuseError, OSError) as group:
                failure = _worst(group)
            except* Exception as group:  # A bug here must not stop the other destinations.
                log.critical("%s hit a bug", place.config.name, exc_info=group)
                failure = Halt(f"a bug in the coordinator: {_leaves(group)[0]!r}")
            assert failure is not None, "a session never ends by itself"
            await self._after(failure)

    async def _connect_and_work(self) -> None:
        place = self.place
        if place.state in {"new", "refused", "halted"}:
            place.enter("connecting", place.error)
        transport = self._parts.tools.connect(place.config)
        try:
            with trio.move_on_after(CONNECT_S_MAX) as scope:
                await transport.open()
            if scope.cancelled_caught:
                raise Unavailable(f"no connection within {CONNECT_S_MAX:.0f} s")
            session = Session(place, transport)
            await session.run(lambda: self._step(session))
        finally:
            with trio.move_on_after(CLOSE_S_MAX) as closing:
                closing.shield = True
                await transport.aclose()

    async def _step(self, session: Session) -> None:
        place = self.place
        checkpoint = self._parts.checkpoint()
        place.look_at_fold()
        action = self._wanted(decide(place.ack, place.cursor, place.history(checkpoint)))
        if not isinstance(action, AwaitStore):
            self._backoff.reset()
        match action:
            case AwaitStore(reason):
                place.enter(place.cursor.state, Unavailable(reason))
                await place.signal.wait(TICK_S)
            case BeginSync() | BeginResync() if not place.gate.is_open():
                # Not yet: from its beginning on a copy keeps the journal in the spool.
                place.enter("waiting")
                await place.signal.wait(TICK_S)
            case BeginSync(reason):
                log.info("%s: the first copy begins: %s", place.config.name, reason)
                await begin_sync(place)
                place.lost = 0
                forget_request(self._parts.disk, place.directory)  # This is all that there is.
            case BeginResync(reason, whole):
                self._check_rule()
                differs = None if whole else await session.differs()
                await self._begin_resync(reason, is_whole=whole, differs=differs)
            case ContinueSync(index, start):
                self._check_rule()
                await Copying(session, checkpoint.group, index, start).run()
            case Ship(first, behind_copy):
                self._check_rule()
                if not behind_copy:
                    sweep(place)
                await session.ship(checkpoint.group, first, behind_copy=behind_copy)

    def _wanted(self, action: Action) -> Action:
        """Return *action*, or the copy that an operator asked for instead of shipping."""
        if not isinstance(action, Ship) or action.behind_copy:
            return action
        request = read_request(self._parts.disk, self.place.directory)
        if request is None:
            if self.place.is_copy_wanted():  # Unreadable: not asked for.
                forget_request(self._parts.disk, self.place.directory)
            return action
        return BeginResync(request.why, request.is_whole)

    async def _begin_resync(self, reason: str, *, is_whole: bool, differs: DirtyMap | None) -> None:
        """Begin a staged copy as soon as there is a checkpoint where it can."""
        place, disk = self.place, self._parts.disk
        request = read_request(disk, place.directory)
        if request is not None and request.is_whole:  # Also where less would do.
            is_whole = True
        try:
            await begin_resync(place, reason, is_whole=is_whole, request=request, differs=differs)
        except Unavailable as exc:
            place.enter("syncing", exc)
            await place.signal.wait(TICK_S)
        else:
            log.info("%s: a resync begins: %s", place.config.name, reason)
            place.lost = 0
            forget_request(disk, place.directory)

    def _check_rule(self) -> None:
        """Refuse to go on under another rule than the one that the mirror was begun with."""
        if self.place.cursor.is_new or self.place.cursor.rule == rule_of(self.place.config):
            return
        raise Halt(
            "`volumes` or `exclude` changed: the mirror was begun with others",
            hint="Put them back, or move the store away: the next contact begins a first sync.",
        )

    async def _after(self, failure: Failure) -> None:
        """Wait as long as this failure asks for."""
        place, name = self.place, self.place.config.name
        if isinstance(failure, Promoted) and self._parts.ending.is_older(failure):
            failure = older(place.config)
        if isinstance(failure, Promoted):
            try:
                self._parts.ending.take(place.config, failure)
            except OSError as exc:
                log.warning("%s: what its store says cannot be noted: %s", name, exc)
                await trio.sleep(self._backoff.next_s())
        elif isinstance(failure, Refused | UsageError):
            log.error("%s refused: %s", name, failure)
            place.enter("refused", failure, REFUSED_RETRY_S)
            await self._wait_for_operator(REFUSED_RETRY_S)
        elif isinstance(failure, AimfuseError) and not isinstance(failure, Unavailable):
            log.error("%s halted: %s", name, failure)
            place.cursor = replace(place.cursor, halted=str(failure))
            place.enter("halted", failure, HALTED_RETRY_S)
            await self._wait_for_operator(HALTED_RETRY_S)
        else:
            wait_s = self._backoff.next_s()
            log.info("%s: %s; again in %.1f s", name, failure, wait_s)
            place.enter("retrying", failure, wait_s)
            await self._wait_for_news(wait_s)

    async def _wait_for_operator(self, ceiling_s: float) -> None:
        await self._wait_for_news(ceiling_s * self._parts.tools.dice.uniform(1.0, 1.2))

    async def _wait_for_news(self, ceiling_s: float) -> None:
        """Wait so long, or until somebody has asked for another try since the last one began."""
        with trio.move_on_after(ceiling_s):
            await self._retry.wait()

    async def _keep_books(self) -> None:
        while True:
            await self._write_books()
            await trio.sleep(REPORT_S)

    async def _write_books(self) -> None:
        """Save the cursor and the status; what fails is tried again, nothing depends on it."""
        problem: OSError | AimfuseError | None = None
        try:
            await self.place.save_cursor()
        except (OSError, Unavailable) as exc:
            problem = exc
        try:
            self.place.look_at_fold(now=False)
            self._report.write_status()
            await self._repairs.look()
        except (OSError, StateLost) as exc:
            problem = problem or exc
        self._books_complaint.note(problem)


def _block_bytes(config: DestinationConfig) -> int:
    return block_bytes_max(config.bandwidth_bytes_s) or BLOCK_BYTES_MAX


def _worst(group: BaseExceptionGroup[Failure]) -> Failure:
    """Return the failure that says most: one that needs its operator before the others."""
    leaves = _leaves(group)
    for kind in (Promoted, Halt, Refused):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    lasting = (leaf for leaf in leaves if not isinstance(leaf, Unavailable | OSError))
    return next(lasting, leaves[0])


def _leaves(group: BaseExceptionGroup[E]) -> list[E]:
    found: list[E] = []
    for one in group.exceptions:
        found += _leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found
