"""The composition root: builds the parts of a mount and fixes the order of their end."""

import contextlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from aimfuse import config as configuration
from aimfuse.config import GroupConfig
from aimfuse.disk import process_disk
from aimfuse.driver.group import (
    GroupLimits,
    GroupLock,
    GroupPaths,
    init_group,
    open_group,
    size_limit,
)
from aimfuse.driver.keeper import SpoolKeeper, SpoolLimits
from aimfuse.driver.mount import Companion, Mount, MountOptions, check_mountpoint
from aimfuse.driver.pins import Pins
from aimfuse.driver.process import become_part_of_the_io_path
from aimfuse.driver.pump import Pump, PumpLimits
from aimfuse.driver.status import SourceStatus
from aimfuse.errors import AimfuseError, ConfigError
from aimfuse.supervisor import Supervisor

log = logging.getLogger(__name__)

DESTINATIONS_POLL_S = 2.0


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What the operator asked for."""

    state_dir: Path
    mountpoint: Path
    allow_other: bool = False
    writeback: bool = False
    resync: bool = False


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
    lock = GroupLock(paths)  # First: who serves the image already says more than where.
    try:
        check_mountpoint(request.mountpoint, paths.image, [paths.state_dir, paths.spool])
        become_part_of_the_io_path()
        journal = config.journal
        limits = GroupLimits(
            journal.file_bytes,
            journal.memory_bytes_max,
            size_limit(disk, paths, journal.size_bytes_max),
        )
        try:
            engine = open_group(disk, paths, limits, resync=request.resync)
        except OSError as exc:
            raise AimfuseError(
                f"{paths.image} cannot be brought to life: {exc.strerror or exc}",
                hint=f"Look at the disks of {paths.image} and {paths.state_dir}, and at the space "
                "left there, then mount again: nothing that was durable is lost.",
            ) from exc
        destinations = Destinations(config)
        pins = Pins(disk, config.state_dir, destinations.now)
        keeper = SpoolKeeper(disk, engine, paths.spool, _spool_limits(config), pins)
        pump = Pump(engine, keeper, _pump_limits(config))
        supervisor = _coordinator(config)
        status = SourceStatus(
            engine,
            pump,
            paths.image,
            paths.state_dir,
            request.mountpoint,
            destinations.now,
            lambda: {"pid": supervisor.pid, "restarts": supervisor.restarts},
        )
        options = MountOptions(request.mountpoint, request.allow_other, request.writeback)
        mount = Mount(disk, engine, pump, status, options)

        async def coordinate() -> None:
            await destinations.some()
            while True:
                try:
                    await supervisor.run()
                except OSError as exc:  # Such as too many open files: the volume goes on.
                    log.warning("the coordinator cannot be supervised: %s", exc)
                await trio.sleep(DESTINATIONS_POLL_S)

        companions: list[Companion] = [coordinate]
        trio.run(mount.run, config.state_dir, companions, mounted)
    finally:
        lock.release()


class Destinations:
    """The destinations that the settings name at this moment: they may change while mounted.

    While the settings cannot be read, those of the last time count: forgetting one would give
    its files away.
    """

    def __init__(self, config: GroupConfig) -> None:
        """Begin with *config*."""
        self._config = config

    def now(self) -> dict[Path, str]:
        """Return each destination's directory and URL; reads the settings anew."""
        with contextlib.suppress(ConfigError):
            self._config = configuration.load(self._config.state_dir)
        config = self._config
        return {config.destination_dir(one.name): one.url for one in config.destinations}

    async def some(self) -> None:
        """Wait until there is a destination."""
        while not self.now():  # noqa: ASYNC110 - it waits for a file that somebody edits
            await trio.sleep(DESTINATIONS_POLL_S)


def _coordinator(config: GroupConfig) -> Supervisor:
    command = [sys.executable, "-m", "aimfuse", "ship", str(config.image)]
    return Supervisor("coordinator", [*command, "--state", str(config.state_dir)])


def _pump_limits(config: GroupConfig) -> PumpLimits:
    journal = config.journal
    return PumpLimits(
        commit_interval_s=journal.commit_interval_s,
        file_age_s=journal.file_age_s,
        checkpoint_interval_s=journal.checkpoint_interval_s,
        when_full=journal.when_full,
    )


def _spool_limits(config: GroupConfig) -> SpoolLimits:
    journal = config.journal
    return SpoolLimits(journal.spool_bytes_max, journal.spool_reserve_bytes, journal.file_bytes)
