"""Fill a seed: a store on a disk that is carried to where the destination will be.

A seed is a store like any other, at a path instead of the destination's URL: while it is filled
the destination leads there, then it gets its URL and is paused until the seed has been carried.
So the cursor goes on from where the seed ends, and nothing else knows of seeds.
"""

import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from aimfuse import config as configuration
from aimfuse.config import GroupConfig, add_destination, destination_name
from aimfuse.config.edit import change_destination, edit
from aimfuse.disk import Disk
from aimfuse.errors import StoreError, Unavailable, UsageError
from aimfuse.journal.locks import SHIP_LOCK
from aimfuse.manager import control_client
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import lock_holder, read_json, read_slots
from aimfuse.manager.reload import follow
from aimfuse.mountpoint import check_takes_directory
from aimfuse.supervisor import Supervisor
from aimfuse.units import counted, format_bytes

POLL_S = 0.1
SAY_S = 5.0
GIVE_UP_S = 120.0
_HOPELESS = {"halted", "refused"}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Filling:
    """A seed that is being filled: for which destination of which group, and where it lies."""

    state_dir: Path
    name: str
    url: str
    directory: Path

    def number(self) -> int:
        """Return the newest file that the source counts as being in the seed."""
        cursor, _problem = read_slots(self.state_dir / "destinations" / self.name / "cursor")
        return Fields(cursor).count("number")


def begin(state_dir: Path, directory: Path, url: str, name: str | None) -> Filling:
    """Let a destination lead to the seed in *directory*, as an interrupted one did before.

    Raises:
        UsageError: the destination is in use already, or another one has the name or place.
        ConfigError, BusyError: as the settings gave it.
        OSError: the directory cannot be made.
    """
    directory = directory.absolute()
    disk = Disk()
    if not directory.parent.is_dir():
        hint = "Is the disk mounted that it is to be carried on?"
        raise UsageError(f"{directory.parent} is not there", hint=hint)
    check_takes_directory(directory)
    found = name or destination_name(url)
    _towards(
        configuration.load(state_dir), found, url, str(directory)
    )  # Refused, it leaves nothing.
    for path in (directory, directory / "inbox"):
        disk.mkdir("seed:mkdir", path, 0o750)
    edit(state_dir, lambda config: _towards(config, found, url, str(directory)))
    follow(state_dir)
    return Filling(state_dir, found, url, directory)


def _towards(config: GroupConfig, name: str, url: str, path: str) -> GroupConfig:
    for one in config.destinations:
        if one.name != name:
            continue
        if one.url not in {url, path}:
            raise UsageError(
                f"{name} leads to {one.url}", hint="Choose another --name, or correct --to."
            )
        if one.url == url and not one.paused and not _is_unused(config, name):
            raise UsageError(
                f"{name} is mirrored already", hint="It needs no seed: look at `aimfuse status`."
            )
        return change_destination(config, name, url=path, paused=False)
    add_destination(config, url, name=name)  # Is it a URL at all? Before anything is copied.
    return add_destination(config, path, name=name)


def _is_unused(config: GroupConfig, name: str) -> bool:
    cursor, problem = read_slots(config.destination_dir(name) / "cursor")
    return not problem and Fields(cursor).maybe("pin") is None


async def fill(filling: Filling, replay: Callable[[], Awaitable[None]], say: Say) -> None:
    """Ship into the seed until it holds all that was written before; then let it be carried.

    *replay* works on the seed until it is cancelled. If nobody ships, a coordinator is started
    for as long as this takes. Cancelled or killed, it goes on when it is called again.

    Raises:
        StoreError, Unavailable: it cannot go on before somebody acts.
    """
    state_dir = filling.state_dir
    command = (sys.executable, "-m", "aimfuse", "ship", str(configuration.load(state_dir).image))
    ship = Supervisor("shipping", (*command, "--state", str(state_dir)))
    wanted = _newest(state_dir)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replay)
        nursery.start_soon(_ship_if_nobody_does, state_dir, ship)
        await _until_there(filling, wanted, say)
        let_go(filling)
        await trio.to_thread.run_sync(follow, state_dir)
        nursery.cancel_scope.cancel()


async def _ship_if_nobody_does(state_dir: Path, ship: Supervisor) -> None:
    while lock_holder(state_dir / SHIP_LOCK) is not None:  # noqa: ASYNC110 - a file's lock
        await trio.sleep(POLL_S)
    await ship.run()


def let_go(filling: Filling) -> None:
    """Give the destination its own URL, paused until the seed is where it belongs."""

    def change(config: GroupConfig) -> GroupConfig:
        return change_destination(config, filling.name, url=filling.url, paused=True)

    edit(filling.state_dir, change)


def _newest(state_dir: Path) -> int:
    """Return the file up to which the seed has to go: of all that was written by now."""
    try:
        return Fields(control_client.call(state_dir, {"cmd": "roll"})).count("number")
    except control_client.NotMounted:
        checkpoint, problem = read_slots(state_dir / "checkpoint")
        if not Fields(checkpoint).flag("clean"):
            raise StoreError(
                f"the group was not unmounted cleanly{problem and ': ' + problem}",
                hint="Mount it: recovery finds the end of its journal. Then run this again.",
            ) from None
        return Fields(checkpoint).count("number")


async def _until_there(filling: Filling, wanted: int, say: Say) -> None:
    place = filling.state_dir / "destinations" / filling.name
    old = Fields(read_json(place / "status.json")).count("updated_ns")
    said, said_s, moved, moved_s = "", time.monotonic(), "", time.monotonic()
    while True:
        status = Fields(read_json(place / "status.json"))
        cursor, _problem = read_slots(place / "cursor")
        if status.count("updated_ns") != old:
            at = Fields(cursor)
            phase = status.part("ack").text("phase")
            is_there = at.text("state") == "shipping" and at.count("applied") >= wanted
            if is_there and phase == "consistent":
                return
            line = progress_line(status)
            if line != moved:
                moved, moved_s = line, time.monotonic()
            _check(filling.name, status, time.monotonic() - moved_s)
            if line != said and time.monotonic() - said_s >= SAY_S:
                said, said_s = line, time.monotonic()
                say(line)
        await trio.sleep(POLL_S)


def _check(name: str, status: Fields, unmoved_s: float) -> None:
    """Raise what no waiting ends."""
    error, hint = status.text("error"), status.text("hint")
    if status.text("state") in _HOPELESS:
        raise StoreError(f"{name}: {error}", hint=hint)
    if error and unmoved_s >= GIVE_UP_S:
        raise Unavailable(f"{name}: {error}", hint=hint or "Run this again: it goes on.")


def progress_line(status: Fields) -> str:
    """Return how far the seed is, for people."""
    sync = status.part("sync")
    if not sync:
        return f"{status.text('state')}, {counted(status.part('lag').count('files'), 'file')} to go"
    done, total, eta_s = sync.count("done_bytes"), sync.count("total_bytes"), sync.seconds("eta_s")
    left = f", {eta_s:.0f} s to go" if eta_s is not None else ""
    return f"{format_bytes(done)} of {format_bytes(max(done, total))}{left}"
