"""The composition root: builds the parts of a mount and fixes the order of their end."""

import contextlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from aimfuse import config as configuration
from aimfuse import heap
from aimfuse.config import GroupConfig
from aimfuse.disk import Disk, process_disk, weakness
from aimfuse.driver.engine import Engine
from aimfuse.driver.group import GroupLimits, GroupPaths, init_group, open_group
from aimfuse.driver.group_lock import GroupLock
from aimfuse.driver.image_place import size_limit
from aimfuse.driver.keeper import SpoolKeeper, SpoolLimits
from aimfuse.driver.ladder import Policy
from aimfuse.driver.mount import Companion, Mount, MountOptions
from aimfuse.driver.pins import ACCOUNTS, Pins
from aimfuse.driver.pump import Pump, PumpLimits
from aimfuse.driver.scrub import Scrub
from aimfuse.driver.status import SourceStatus
from aimfuse.driver.verifier import Verifier, VerifyRequests
from aimfuse.errors import AimfuseError, ConfigError, StateLost, SupersededError
from aimfuse.io_path import become_part_of_the_io_path
from aimfuse.journal.journal import Journal
from aimfuse.journal.superseded import read_superseded
from aimfuse.mountpoint import check_mountpoint
from aimfuse.supervisor import Supervisor

log = logging.getLogger(__name__)

DESTINATIONS_POLL_S = 2.0
IDLE_S = 5.0
SUPERSEDED_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What the operator asked for."""

    state_dir: Path
    mountpoint: Path
    allow_other: bool = False
    writeback: bool = False
    resync: bool = False
    diverge: bool = False

    @property
    def options(self) -> MountOptions:
        """Return how to mount."""
        return MountOptions(self.mountpoint, self.allow_other, self.writeback)


def paths_of(config: GroupConfig) -> GroupPaths:
    """Return where the parts of a configured group lie."""
    return GroupPaths(config.image, config.state_dir, config.spool)


def initialise(config: GroupConfig) -> None:
    """Make a new group and write its settings.

    Raises:
        UsageError: the image is missing, or the group exists.
    """
    disk = process_disk()
    init_group(disk, paths_of(config))
    configuration.save(config, disk)


def run_mount(request: MountRequest, mounted: Callable[[], None]) -> None:
    """Serve a group until it is unmounted. *mounted* is called when the volume can be used.

    Raises:
        AimfuseError: as recovery, the locks or the end of the mount give it.
    """
    disk = process_disk()
    config = configuration.load(request.state_dir)
    paths = paths_of(config)
    # First: who serves the image already says more than where.
    lock = GroupLock(paths.image, paths.state_dir)
    try:
        _refuse_superseded(disk, config, diverge=request.diverge)
        check_mountpoint(request.mountpoint, paths.image, [paths.state_dir, paths.spool])
        _warn_of_weak_storage(paths)
        become_part_of_the_io_path()
        heap.keep_for_the_next_request(config.journal.memory_bytes_max)
        _serve(disk, config, request, mounted)
    finally:
        lock.release()


def _serve(
    disk: Disk, config: GroupConfig, request: MountRequest, mounted: Callable[[], None]
) -> None:
    """Build the parts of a mount whose locks are held, and run them until it ends."""
    paths, journal = paths_of(config), config.journal
    limits = GroupLimits(
        journal.file_bytes,
        journal.memory_bytes_max,
        size_limit(disk, paths.image, journal.size_bytes_max),
    )
    engine = _brought_to_life(disk, paths, limits, resync=request.resync)
    destinations = Destinations(config)
    pins = Pins(disk, config.state_dir)
    keeper = SpoolKeeper(disk, engine, paths.spool, _spool_limits(config), pins)
    keeper.policies = _policies(config)
    pump = Pump(engine, keeper, _pump_limits(config))
    supervisor = _coordinator(config)
    status = SourceStatus(
        engine,
        pump,
        paths.image,
        paths.state_dir,
        request.mountpoint,
        destinations.told,
        lambda: {"pid": supervisor.pid, "restarts": supervisor.restarts},
    )
    reload = Reload(config, keeper, pump, destinations)
    verifier = Verifier(engine, pump)
    scrub = reload.scrub = Scrub(disk, config.state_dir, engine, verifier, journal.scrub_s)
    status.scrub = scrub.status
    verifying = VerifyRequests(engine, verifier)
    mount = Mount(disk, engine, pump, status, request.options, reload, {"verify": verifying})
    companions: list[Companion] = [
        partial(_coordinate, destinations, supervisor),
        partial(_give_back_memory, engine.journal),
        partial(scrub.run, lambda: bool(destinations.now())),
        partial(_heed_ending, disk, config, engine, diverge=request.diverge),
    ]
    trio.run(mount.run, config.state_dir, companions, mounted)


async def _coordinate(destinations: "Destinations", supervisor: Supervisor) -> None:
    """Keep a coordinator running as soon as there is a destination."""
    await destinations.some()
    while True:
        try:
            await supervisor.run()
        except OSError as exc:  # Such as too many open files: the volume goes on.
            log.warning("the coordinator cannot be supervised: %s", exc)
        await trio.sleep(DESTINATIONS_POLL_S)


def _refuse_superseded(disk: Disk, config: GroupConfig, *, diverge: bool) -> None:
    """Refuse to serve an image while another source goes on, unless it is to *diverge*.

    Raises:
        SupersededError: it says where the source is now, and the ways out.
    """
    note = read_superseded(disk, config.state_dir)
    if note is None or (diverge and not note.is_final):
        return
    error = note.error(str(config.image))
    if not note.is_final:
        error.hint += " To serve it here all the same, as a branch: `mount` with --diverge."
    raise error


async def _heed_ending(disk: Disk, config: GroupConfig, engine: Engine, *, diverge: bool) -> None:
    """Accept nothing more from the moment on at which a mirror turns out to be promoted."""
    engine.is_diverging = diverge
    while engine.superseded is None:
        try:
            note = read_superseded(disk, config.state_dir)
            engine.superseded = note.error(str(config.image)) if note else None
        except StateLost as exc:
            engine.superseded = SupersededError(str(exc), hint=exc.hint)
        except OSError as exc:
            log.debug("%s: %s", config.state_dir, exc)  # The next look may tell.
        await trio.sleep(SUPERSEDED_POLL_S)
    if not diverge:
        log.error("writes are refused from now on: %s", engine.superseded)


def _brought_to_life(disk: Disk, paths: GroupPaths, limits: GroupLimits, *, resync: bool) -> Engine:
    try:
        return open_group(disk, paths, limits, resync=resync)
    except OSError as exc:
        raise AimfuseError(
            f"{paths.image} cannot be brought to life: {exc.strerror or exc}",
            hint=f"Look at the disks of {paths.image} and {paths.state_dir}, and at the space "
            "left there, then mount again: nothing that was durable is lost.",
        ) from exc


async def _give_back_memory(journal: Journal) -> None:
    """Hand back what a burst has left, once nothing was written for a while."""
    seen = given_back = journal.last_seq
    while True:
        await trio.sleep(IDLE_S)
        before, seen = seen, journal.last_seq
        if before == seen != given_back:
            await trio.to_thread.run_sync(heap.give_back)
            given_back = seen


class Destinations:
    """The destinations that the settings name at this moment: they may change while mounted.

    While the settings cannot be read, those of the last time count: forgetting one would give
    its files away.
    """

    def __init__(self, config: GroupConfig) -> None:
        """Begin with *config*."""
        self._config = config
        self._settings_changed = trio.Event()

    def look_again(self) -> None:
        """Have `some` look at once; call it on trio's thread."""
        self._settings_changed.set()

    def now(self) -> dict[Path, str]:
        """Return each destination's directory and URL; reads the settings anew."""
        with contextlib.suppress(ConfigError):
            self._config = configuration.load(self._config.state_dir)
        config = self._config
        return {config.destination_dir(one.name): one.url for one in config.destinations}

    def told(self) -> dict[Path, str]:
        """Return the same, and with an empty URL those of which only their account is left."""
        found = self.now()
        with contextlib.suppress(OSError):
            for path in sorted((self._config.state_dir / ACCOUNTS).iterdir()):
                if not path.name.startswith(".") and any(path.glob("cursor.[01]")):
                    found.setdefault(path, "")
        return found

    async def some(self) -> None:
        """Wait until there is a destination."""
        while not self.now():
            self._settings_changed = trio.Event()
            with trio.move_on_after(DESTINATIONS_POLL_S):  # Who edits the file may tell nobody.
                await self._settings_changed.wait()


class Reload:
    """Takes settings over while the group is mounted: all that can be, or none."""

    def __init__(
        self, config: GroupConfig, keeper: SpoolKeeper, pump: Pump, destinations: Destinations
    ) -> None:
        """Begin with *config*, under which the group was mounted."""
        self._config = config
        self._keeper = keeper
        self._pump = pump
        self._destinations = destinations
        self.scrub: Scrub | None = None

    def __call__(self) -> dict[str, Any]:
        """Read the settings once and take them over; destinations are the coordinator's.

        Returns:
            The keys that are ``applied``, those that count ``at_next_mount`` only, and the
            ``digest`` of the file that was read.

        Raises:
            ConfigError: something in the file is wrong; nothing was taken over.
        """
        before, read = self._config, configuration.load(self._config.state_dir)
        changed = configuration.changed_keys(before, read, "journal")
        applied = [key for key in changed if key.removeprefix("journal.") in _LIVE]
        later = [key for key in changed if key not in applied]
        later += configuration.changed_keys(before, read, "mount")
        later += ["image"] * (before.image != read.image)
        values = {name: getattr(read.journal, name) for name in _LIVE.values()}
        self._config = replace(before, journal=replace(before.journal, **values))
        self._keeper.limits = _spool_limits(self._config)
        live = replace(self._config, destinations=read.destinations)
        self._keeper.policies = _policies(live)
        self._pump.limits = _pump_limits(self._config)
        if self.scrub is not None:
            self.scrub.period_s = self._config.journal.scrub_s
        self._destinations.look_again()
        return {"applied": applied, "at_next_mount": later, "digest": read.digest}


_LIVE = {
    "file_age": "file_age_s", "commit_interval": "commit_interval_s",
    "checkpoint_interval": "checkpoint_interval_s", "spool_bytes_max": "spool_bytes_max",
    "spool_reserve": "spool_reserve_bytes", "when_full": "when_full",
    "scrub": "scrub_s", "scrub_repair": "scrub_repair",
}  # fmt: skip
"""Keys of the journal that a mounted group takes over, and their attributes."""


def _warn_of_weak_storage(paths: GroupPaths) -> None:
    found = [(path, weakness(path)) for path in (paths.image, paths.state_dir, paths.spool)]
    for path, problem in found:
        if problem:
            log.warning("%s is %s", path, problem)


def _coordinator(config: GroupConfig) -> Supervisor:
    command = [sys.executable, "-m", "aimfuse", "ship", str(config.image)]
    return Supervisor("coordinator", [*command, "--state", str(config.state_dir)])


def _pump_limits(config: GroupConfig) -> PumpLimits:
    journal = config.journal
    return PumpLimits(
        commit_interval_s=journal.commit_interval_s,
        file_age_s=journal.file_age_s,
        checkpoint_interval_s=journal.checkpoint_interval_s,
    )


def _spool_limits(config: GroupConfig) -> SpoolLimits:
    journal = config.journal
    return SpoolLimits(
        journal.spool_bytes_max, journal.spool_reserve_bytes, journal.file_bytes, journal.when_full
    )


def _policies(config: GroupConfig) -> dict[str, Policy]:
    """Return each destination's own policy for a full spool, or the group's."""
    return {
        one.name: Policy(
            one.when_full or config.journal.when_full,
            one.spool_share_bytes,
            is_awaited=not (one.paused or one.is_reserved),
        )
        for one in config.destinations
    }
