"""Change ``group.toml`` by command: one editor at a time, whole or not at all."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aimfuse.config import CONFIG_NAME, GroupConfig, check_places, load, save, setting_values
from aimfuse.config.keys import DESTINATION
from aimfuse.disk import Disk, try_lock
from aimfuse.errors import BusyError

SETTINGS_LOCK = "settings.lock"
LOCK_S_MAX = 10.0
_LOCK_POLL_S = 0.02

Change = Callable[[GroupConfig], GroupConfig]


def edit(state_dir: Path, change: Change) -> GroupConfig:
    """Replace the settings in *state_dir* by what *change* makes of them, and return those.

    Raises:
        ConfigError, UsageError: the settings are wrong as they are, or *change* said no;
            nothing was written.
        BusyError: another command holds them.
    """
    disk = Disk()
    with _locked(disk, state_dir):
        before = load(state_dir, disk)
        after = change(before)
        check_places(state_dir / CONFIG_NAME, after.destinations, before.destinations)
        if after != before:
            save(after, disk)
        return after


def parse_destination(state_dir: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `DestinationConfig` for values as they stand in the file.

    Raises:
        ConfigError: one of them is wrong.
    """
    return setting_values(state_dir / CONFIG_NAME, "destination.", DESTINATION, dict(given))


def change_destination(config: GroupConfig, name: str, **changes: Any) -> GroupConfig:  # noqa: ANN401 - checked by the dataclass
    """Return *config* with other values in one destination.

    Raises:
        UsageError: there is none of that name.
    """
    wanted = replace(config.destination(name), **changes)
    found = tuple(wanted if one.name == name else one for one in config.destinations)
    return replace(config, destinations=found)


def drop_destination(config: GroupConfig, name: str) -> GroupConfig:
    """Return *config* without the destination *name*; one that is not there is no error."""
    found = tuple(one for one in config.destinations if one.name != name)
    return replace(config, destinations=found)


@contextmanager
def _locked(disk: Disk, state_dir: Path) -> Iterator[None]:
    load(state_dir, disk)  # Says better than the lock what is wrong with the place.
    fd = disk.open("settings:lock", state_dir / SETTINGS_LOCK, os.O_RDWR | os.O_CREAT)
    try:
        end_s = time.monotonic() + LOCK_S_MAX
        while not try_lock(fd):
            if time.monotonic() > end_s:
                raise BusyError(
                    f"{state_dir / CONFIG_NAME} is being changed by another command",
                    hint="Try again.",
                )
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        disk.close(fd)
