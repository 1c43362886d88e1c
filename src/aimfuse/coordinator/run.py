"""The coordinator as a whole: its lock, its destinations, the settings while they change.

A destination's task runs under a scope of its own; settings that change restart only what
they concern. SIGTERM and SIGINT end it cleanly, SIGHUP tries again at once what waits.
"""

import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import trio

from aimfuse.config import CONFIG_NAME, DestinationConfig, GroupConfig, changed_keys, load
from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.bandwidth import block_bytes_max
from aimfuse.coordinator.complaint import Complaint
from aimfuse.coordinator.destination import Destination
from aimfuse.coordinator.drain import excuse, gravity, interrupted, is_finished, unclean_end
from aimfuse.coordinator.ending import Ending
from aimfuse.coordinator.leftovers import leftovers
from aimfuse.coordinator.parts import Parts, Tools
from aimfuse.coordinator.report import REPORT_NAME, ShipReport, write_report
from aimfuse.coordinator.source import Source
from aimfuse.disk import note_owner, read_file, try_lock
from aimfuse.errors import AimfuseError, BusyError, ConfigError
from aimfuse.journal.locks import GROUP_LOCK, RETENTION_LOCK, SHIP_LOCK
from aimfuse.journal.spool import release
from aimfuse.transport import Transport, TransportSettings, open_transport
from aimfuse.units import FileNumber

SETTINGS_POLL_S = 0.5
LET_GO_S_MAX = 8.0
HOUSEKEEPING_S = 2.0
DRAIN_POLL_S = 0.05
NICENESS = 10

log = logging.getLogger(__name__)


async def run_ship(
    state_dir: Path, *, until_empty: bool = False, tools: Tools | None = None
) -> None:
    """Ship the group's sealed files to all its destinations until a signal ends it.

    Args:
        state_dir: the group's state directory.
        until_empty: end as soon as every destination has confirmed everything sealed.
        tools: the outside world, if not the real one.

    Raises:
        BusyError: another coordinator serves this group.
        ConfigError: the settings are wrong.
        AimfuseError: with *until_empty*, what kept a destination from getting everything.
    """
    tools = tools or Tools(connect_as_configured)
    await Coordinator(tools, state_dir).run(until_empty=until_empty)


def yield_to_applications() -> None:
    """Lower this process's priority: the application's own I/O goes first."""
    os.nice(NICENESS)


def connect_as_configured(config: DestinationConfig, *, makes_store: bool = True) -> Transport:
    """Return the transport that a destination's settings ask for, not yet connected."""
    return open_transport(
        config.url,
        TransportSettings(
            known_hosts=config.known_hosts,
            identity_files=config.identity_files,
            ssh_config=config.ssh_config,
            use_agent=config.use_agent,
            stall_s_max=config.stall_s_max,
            block_bytes_max=block_bytes_max(config.bandwidth_bytes_s),
            makes_store=makes_store,
        ),
    )


class Coordinator:
    """The one shipping process of a group."""

    def __init__(self, tools: Tools, state_dir: Path) -> None:
        self._disk = tools.disk
        self._seen = _identity(
            state_dir / CONFIG_NAME
        )  # Before loading: what changes later counts.
        self._config = config = load(state_dir, tools.disk)
        self._backlog = Backlog(tools.disk, config.spool)
        self._source = Source(tools.disk, config.state_dir)
        ending = Ending(tools.disk, state_dir, config.image)
        self._parts = Parts(config, tools, self._backlog, self._source, ending)
        self._spool_complaint = Complaint(log, "the spool cannot be read")
        self._release_complaint = Complaint(log, "nothing can be released")
        self._released = 0
        self._ended_by: str | None = None
        self._running: dict[str, tuple[Destination, trio.CancelScope]] = {}

    async def run(self, *, until_empty: bool) -> None:
        """Do what `run_ship` says."""
        fd = self._take_lock()
        try:
            signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            with trio.open_signal_receiver(*signals) as received:
                await self._run(received, until_empty=until_empty)
        finally:
            self._disk.close(fd)

    async def _run(self, signals: AsyncIterator[int], *, until_empty: bool) -> None:
        failure: AimfuseError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed_signals, signals, nursery.cancel_scope)
            await self._list_spool()
            nursery.start_soon(self._backlog.follow, self._spool_complaint.note)
            nursery.start_soon(self._keep_house)
            self._reconcile(nursery)
            self._report()
            if not (self._config.destinations or until_empty):
                log.info("no destinations in %s yet", self._config.state_dir / CONFIG_NAME)
            nursery.start_soon(self._follow_settings, nursery)
            nursery.start_soon(self._heed_ending, nursery)
            if until_empty:
                failure = await self._drain()
                self._ended_by = None
                nursery.cancel_scope.cancel()
        if failure is None and until_empty and self._ended_by is not None:
            failure = interrupted(self._ended_by)
        if failure is not None:
            raise failure

    def _take_lock(self) -> int:
        path = self._config.state_dir / SHIP_LOCK
        fd = self._disk.open("ship:lock", path, os.O_RDWR | os.O_CREAT)
        if not try_lock(fd):
            owner = read_file(self._disk, path, 32).decode("ascii", "replace").strip("\0\n ")
            self._disk.close(fd)
            raise BusyError(
                f"{self._config.image} is being shipped by process {owner or 'unknown'}",
                hint="It goes on by itself; look at `aimfuse status`.",
            )
        note_owner(self._disk, "ship:lock_pid", fd)
        return fd

    async def _heed_signals(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                self._ended_by = signal.Signals(number).name
                scope.cancel()
                return
            self._retry_all()

    async def _list_spool(self) -> None:
        """List the spool once; until that works there is nothing to do."""
        while True:
            try:
                await trio.to_thread.run_sync(self._backlog.load)
                checkpoint = self._source.checkpoint()
            except OSError as exc:
                self._spool_complaint.note(exc)
                await trio.sleep(SETTINGS_POLL_S)
            else:
                if checkpoint is not None:
                    self._backlog.note_head(checkpoint.head.epoch, checkpoint.head.number)
                return

    async def _heed_ending(self, nursery: trio.Nursery) -> None:
        """Once a store was promoted, begin every destination anew: each sees that it rests."""
        await self._parts.ending.came.wait()
        for name, entry in list(self._running.items()):
            entry[1].cancel()
            if (config := self._named(name)) is not None:
                nursery.start_soon(self._run_destination, config, entry)

    def _named(self, name: str) -> DestinationConfig | None:
        return next((one for one in self._config.destinations if one.name == name), None)

    # Settings.

    def _reconcile(self, nursery: trio.Nursery) -> list[tuple[Destination, trio.CancelScope]]:
        """Start, restart and stop destinations so that they are those of the settings.

        Returns:
            Those that go on under their earlier settings until they have ended.
        """
        ending = []
        wanted = {one.name: one for one in self._config.destinations}
        for name, (destination, scope) in list(self._running.items()):
            config = wanted.get(name)
            if config is not None and destination.configure(config):
                wanted.pop(name)
            else:
                scope.cancel()
                ending.append((destination, scope))
        for one in wanted.values():
            nursery.start_soon(self._run_destination, one, self._running.get(one.name))
        return ending

    async def _run_destination(
        self, config: DestinationConfig, before: tuple[Destination, trio.CancelScope] | None
    ) -> None:
        # Two tasks must never write one cursor: wait until the one before has ended.
        while before is not None and self._running.get(config.name) is before:  # noqa: ASYNC110
            await trio.sleep(DRAIN_POLL_S)
        if self._config.destination(config.name) != config:
            return
        destination = Destination(self._parts, config)
        with trio.CancelScope() as scope:
            entry = self._running[config.name] = (destination, scope)
            try:
                await destination.run()
            finally:
                if self._running.get(config.name) is entry:
                    del self._running[config.name]

    async def _follow_settings(self, nursery: trio.Nursery) -> None:
        path = self._config.state_dir / CONFIG_NAME
        looked = self._seen
        while True:
            await trio.sleep(SETTINGS_POLL_S)
            earlier, looked = looked, _identity(path)
            # Twice the same: half a file, as an editor writes it, can be sound and lack a table.
            if looked in {self._seen, None} or looked != earlier:
                continue
            self._seen = looked
            try:
                config = self._take_settings(load(self._config.state_dir, self._disk))
            except ConfigError as exc:
                log.error("the settings before stay in force: %s", exc)  # noqa: TRY400
                self._report(error=exc)
                continue
            before, self._config = self._config, config
            self._parts.config = config
            ending = self._reconcile(nursery)
            self._retry_all()
            await self._let_go(ending)
            self._report(changed_keys(before, config, "destination"))

    async def _let_go(self, ending: Sequence[tuple[Destination, trio.CancelScope]]) -> None:
        """Wait until nothing goes on as it was: what is paused or removed sends nothing more."""
        with trio.move_on_after(LET_GO_S_MAX):
            while any(one in self._running.values() for one in ending):  # noqa: ASYNC110 - several
                await trio.sleep(DRAIN_POLL_S)

    def _take_settings(self, config: GroupConfig) -> GroupConfig:
        """Return *config* with image and spool as they are: those change at a mount only."""
        journal = replace(config.journal, spool=self._config.journal.spool)
        return replace(config, image=self._config.image, journal=journal)

    def _report(self, changed: Sequence[str] = (), error: ConfigError | None = None) -> None:
        """Say which settings are in force; only a command that waits for them reads it."""
        report = ShipReport(os.getpid(), self._config.digest, tuple(changed), error)
        try:
            write_report(self._disk, self._config.state_dir, report)
        except OSError as exc:
            log.warning("%s cannot be written: %s", REPORT_NAME, exc)

    def _retry_all(self) -> None:
        for destination, _ in self._running.values():
            destination.retry_now()

    # Housekeeping.

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            try:
                self._source_head()
                await self._release_when_alone()
                self._forget_applied()
            except (OSError, AimfuseError) as exc:
                self._release_complaint.note(exc)
            else:
                self._release_complaint.note(None)

    def _source_head(self) -> None:
        checkpoint = self._source.checkpoint()
        if checkpoint is not None:
            self._backlog.note_head(checkpoint.head.epoch, checkpoint.head.number)

    def _places_known(self) -> bool:
        return set(self._running) == {one.name for one in self._config.destinations}

    async def _release_when_alone(self) -> None:
        """Release what everybody has, if no driver is there to do it.

        Only behind a clean end: both slots of that checkpoint say the same, so that one of
        them may get lost and recovery still finds its files.
        """
        checkpoint = self._source.checkpoint()
        if checkpoint is None or not checkpoint.clean:
            return
        through = self._releasable()
        if through > self._released and await trio.to_thread.run_sync(self._release_locked):
            self._released = through

    def _releasable(self) -> int:
        """Return the number up to which nobody needs the files any more, durably."""
        checkpoint = self._source.checkpoint()
        if checkpoint is None or not self._places_known():
            return 0
        pins = [destination.place.pin for destination, _ in self._running.values()]
        pins += [one.pin for one in leftovers(self._disk, self._config.state_dir, self._running)]
        return min([int(checkpoint.head.number), *(pin for pin in pins if pin is not None)])

    def _release_locked(self) -> bool:
        state_dir = self._config.state_dir
        fds: list[int] = []
        try:
            for name in (GROUP_LOCK, RETENTION_LOCK):
                fds.append(
                    self._disk.open(f"{name}:open", state_dir / name, os.O_RDWR | os.O_CREAT)
                )
                if not try_lock(fds[-1]):
                    return False
            release(self._disk, self._config.spool, FileNumber(self._releasable()))
            return True
        finally:
            for fd in fds:
                self._disk.close(fd)

    def _forget_applied(self) -> None:
        """Forget files that every mirror has applied and that a new one would not need."""
        applied = [d.place.delivery.applied for d, _ in self._running.values()]
        self._backlog.drop_through(min([self._releasable(), *applied]))

    # Draining.

    async def _drain(self) -> AimfuseError | None:
        """Wait until every destination has everything, or cannot get it; return why."""
        names = [
            one.name for one in self._config.destinations if not (one.paused or one.is_reserved)
        ]
        for one in self._config.destinations:
            if one.paused:
                log.warning("%s is paused and left out", one.name)
        while not all(map(self._is_finished, names)):  # noqa: ASYNC110 - many things
            await trio.sleep(DRAIN_POLL_S)
        await self._release_when_alone()
        places = [self._running[name][0].place for name in names]
        excuses = {one.config.name: excuse(one) for one in places if not one.is_drained}
        for name, error in excuses.items():
            log.warning("%s has not got everything: %s", name, error)
        return max(excuses.values(), key=gravity) if excuses else await self._unsealed()

    def _is_finished(self, name: str) -> bool:
        return name in self._running and is_finished(self._running[name][0].place)

    async def _unsealed(self) -> AimfuseError | None:
        """Return what is wrong if the journal goes on behind what was shipped."""
        checkpoint = self._source.checkpoint()
        is_mounted = await self._source.status() is not None
        if checkpoint is None or checkpoint.clean or is_mounted:
            return None
        return unclean_end(self._config.image)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns
