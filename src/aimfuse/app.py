"""The composition root: builds the parts of a mount and fixes the order of their end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from aimfuse import config as configuration
from aimfuse.config import GroupConfig
from aimfuse.disk import Disk
from aimfuse.driver.group import (
    GroupLimits,
    GroupLock,
    GroupPaths,
    init_group,
    open_group,
)
from aimfuse.driver.mount import Mount, MountOptions, check_mountpoint
from aimfuse.driver.pins import Pins
from aimfuse.driver.process import become_part_of_the_io_path
from aimfuse.driver.pump import Pump, PumpLimits
from aimfuse.driver.status import SourceStatus


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What the operator asked for."""

    image: Path
    options: MountOptions
    state_dir: Path
    resync: bool = False


def paths_of(config: GroupConfig) -> GroupPaths:
    """Return where the parts of a configured group lie."""
    return GroupPaths(config.image, config.state_dir, config.spool)


def initialise(config: GroupConfig, disk: Disk) -> None:
    """Make a new group and write its settings.

    Raises:
        UsageError: the image is missing, or the group exists.
    """
    init_group(disk, paths_of(config))
    configuration.save(config, disk)


def run_mount(request: MountRequest, disk: Disk, mounted: Callable[[], None]) -> None:
    """Serve a group until it is unmounted. *mounted* is called when the volume can be used.

    Raises:
        AimfuseError: as recovery, the locks or the end of the mount give it.
    """
    config = configuration.load(request.state_dir)
    paths = paths_of(config)
    check_mountpoint(request.options.mountpoint, paths.image, [paths.state_dir, paths.spool])
    lock = GroupLock(paths)
    try:
        become_part_of_the_io_path()
        journal = config.journal
        engine = open_group(
            disk,
            paths,
            GroupLimits(journal.file_bytes, journal.memory_bytes_max, journal.size_bytes_max),
            resync=request.resync,
        )
        destinations = [config.destination_dir(one.name) for one in config.destinations]
        pins = Pins(disk, config.state_dir, lambda: destinations)
        pump = Pump(disk, engine, paths.spool, _pump_limits(config), pins)
        status = SourceStatus(
            engine, pump, paths.image, request.options.mountpoint, destinations
        )
        mount = Mount(disk, engine, pump, status, request.options)
        trio.run(mount.run, config.state_dir, [], mounted)
    finally:
        lock.release()


def _pump_limits(config: GroupConfig) -> PumpLimits:
    journal = config.journal
    return PumpLimits(
        commit_interval_s=journal.commit_interval_s,
        file_age_s=journal.file_age_s,
        checkpoint_interval_s=journal.checkpoint_interval_s,
        spool_bytes_max=journal.spool_bytes_max,
        spool_reserve_bytes=journal.spool_reserve_bytes,
        when_full=journal.when_full,
        file_bytes=journal.file_bytes,
    )
