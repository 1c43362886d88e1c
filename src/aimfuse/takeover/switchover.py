"""Switch over: hand a group to one of its mirrors, by plan and without loss.

The mount ends, everything is shipped and applied, and the store is asked to go on from exactly
that position; it does so only there. ``superseded.json`` says *switching* from before the
request is sent until the store has said that it is promoted: until then nobody may write here,
for both sides could be sources. Whatever is interrupted goes on when it is repeated.
"""

import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from aimfuse.config import DestinationConfig, GroupConfig
from aimfuse.coordinator.acks import Ack
from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import Checkpoint, CheckpointFile
from aimfuse.driver.group_lock import GroupLock
from aimfuse.errors import StoreError, SupersededError, Unavailable, UsageError
from aimfuse.journal.locks import SHIP_LOCK
from aimfuse.journal.superseded import (
    Promotion,
    Step,
    Superseded,
    read_superseded,
    write_superseded,
)
from aimfuse.manager.control_client import NotMounted
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import lock_holder, read_json, read_slots
from aimfuse.manager.held import Held, read_held
from aimfuse.manager.seeding import progress_line
from aimfuse.manager.wait import HOPELESS, Stage, flush, unmount
from aimfuse.supervisor import Supervisor
from aimfuse.takeover.far_side import connected, read_ack
from aimfuse.takeover.rejoin import recovered, run_in_trio
from aimfuse.transport.base import Transport

REQUEST = "switchover.json"
VERSION = 1
POLL_S = 0.1
SAY_S = 5.0
USERS_S_MAX = 10.0
"""How long programs and loop devices that use the mount get to let go of it."""

GIVE_UP_S = 120.0
"""How long nothing may move before it is given up, to be repeated."""

Say = Callable[[str], None]
Json = dict[str, Any]


def switchover(disk: Disk, config: GroupConfig, name: str, say: Say) -> Json:
    """Make the destination *name* the source of the group; return what was done.

    Raises:
        UsageError: that destination cannot be one. Nothing was changed.
        BusyError: the mount is in use. Nothing was changed.
        Unavailable, Refused, StoreError: it lacks something, or cannot be reached; the group is
            not mounted any more.
        SupersededError: another one is the source already, or is being made it.
    """
    destination = _checked(config.destination(name))
    note = read_superseded(disk, config.state_dir)
    if note is not None and (note.destination != name or note.is_final):
        raise note.error(str(config.image))
    if note is not None and note.promotion is not None:
        return _done(config, destination, note.promotion)
    _end_mount(config, name, say)
    lock = GroupLock(config.image, config.state_dir)
    try:
        checkpoint = _settled(disk, config, say)
        run_in_trio(lambda: _drain(config, name, int(checkpoint.head.number), say))
        promotion = run_in_trio(lambda: _hand_over(disk, config, destination, checkpoint, say))
    finally:
        lock.release()
    write_superseded(
        disk, config.state_dir, Superseded(name, destination.url, promotion, Step.SUPERSEDED)
    )
    _check_nothing_lost(promotion, checkpoint)
    return _done(config, destination, promotion)


def describe(done: Json) -> list[str]:
    """Return the lines of what was done, for people."""
    return [
        f"{done['destination']} is the source now, from {done['position']} on; nothing was lost.",
        f"On its host: aimfuse mount STORE MOUNTPOINT  ({done['url']})",
        f"To make this side its mirror: aimfuse rejoin {done['image']} {done['url']}",
    ]


# Its steps.


def _checked(destination: DestinationConfig) -> DestinationConfig:
    name = destination.name
    if destination.is_reserved:
        raise UsageError(
            f"{name} is a mirror that joins later",
            hint=f"Say where it is: aimfuse destination url IMAGE {name} URL",
        )
    if destination.paused:
        hint = f"Run `aimfuse destination resume IMAGE {name}`, and wait until it is up to date."
        raise UsageError(f"{name} is paused", hint=hint)
    if destination.volumes or destination.exclude:
        raise UsageError(
            f"{name} gets some of the volumes only: the others would be lost",
            hint="Switch over to a mirror of all of them.",
        )
    return destination


def _end_mount(config: GroupConfig, name: str, say: Say) -> None:
    """Let the mirror come close while the volume is in use, then end the mount."""
    try:
        say(f"Waiting until {name} has what was written so far.")
        flush(config.state_dir, Stage.APPLIED, GIVE_UP_S, [name], say)
        say("Ending the mount.")
        unmount(config.state_dir, USERS_S_MAX)
    except NotMounted:
        return


def _settled(disk: Disk, config: GroupConfig, say: Say) -> Checkpoint:
    """Return the end of the journal, which has to be a known one."""
    checkpoint = CheckpointFile(disk, config.state_dir).read()
    if checkpoint is None:
        raise UsageError(f"{config.image} was never initialised", hint="There is nothing to hand.")
    if not checkpoint.clean:
        checkpoint, problem = recovered(disk, config, checkpoint, say)
        if problem:
            raise StoreError(
                f"{config.image}: {problem}", hint="Mount it, and let the mirror catch up first."
            )
    return checkpoint


async def _drain(config: GroupConfig, name: str, number: int, say: Say) -> None:
    """Ship until the destination has applied file *number* and is consistent.

    Raises:
        StoreError, Unavailable: it will not come there before somebody acts.
    """
    directory, url = config.destination_dir(name), config.destination(name).url
    if _is_there(directory, number, url):
        return
    async with _shipping(config):
        moved, moved_s, said, said_s = "", time.monotonic(), "", 0.0
        while not _is_there(directory, number, url):
            status = Fields(read_json(directory / "status.json"))
            line = ", ".join(filter(None, (progress_line(status), _held(status).describe())))
            now_s = time.monotonic()
            if line != moved:
                moved, moved_s = line, now_s
            is_held = status.text("state") in {"held", "delayed"}
            if now_s - said_s >= SAY_S or (is_held and line != said):
                said, said_s = line, now_s
                say(f"{name}: {line}")
            _check_hope(config, name, status, now_s - moved_s)
            await trio.sleep(POLL_S)


@asynccontextmanager
async def _shipping(config: GroupConfig) -> AsyncIterator[None]:
    """Have a coordinator run for the block, if nobody ships already."""
    command = (sys.executable, "-m", "aimfuse", "ship", str(config.image))
    ship = Supervisor("shipping", (*command, "--state", str(config.state_dir)))
    async with trio.open_nursery() as nursery:
        if lock_holder(config.state_dir / SHIP_LOCK) is None:
            nursery.start_soon(ship.run)
        yield
        nursery.cancel_scope.cancel()


def _is_there(directory: Path, number: int, url: str) -> bool:
    """Tell whether the store has it all; one that rejoined may need a copy before it is met."""
    cursor, _problem = read_slots(directory / "cursor")
    at = Fields(cursor)
    is_met = at.text("state") == "shipping" and at.text("url") == url
    return is_met and at.count("applied") >= number


def _check_hope(config: GroupConfig, name: str, status: Fields, unmoved_s: float) -> None:
    held = _held(status)
    error = status.text("error") or held.describe()
    hint = status.text("hint") or held.remedy
    again = f"It is not mounted any more: mount it again, or repeat this. {hint}".rstrip()
    if status.text("state") in HOPELESS:
        raise StoreError(f"{name} does not get there: {error or status.text('state')}", hint=again)
    if unmoved_s >= GIVE_UP_S:
        raise Unavailable(f"{name} does not get there: {error or 'nothing moves'}", hint=again)
    note = read_superseded(Disk(), config.state_dir)
    if note is not None and note.promotion is not None:
        raise SupersededError(f"{name} was promoted meanwhile", hint="See `aimfuse status`.")


def _held(status: Fields) -> Held:
    """Return what the destination's store holds back on purpose."""
    return read_held(status.part("ack"))


async def _hand_over(
    disk: Disk, config: GroupConfig, destination: DestinationConfig, checkpoint: Checkpoint,
    say: Say,
) -> Promotion:  # fmt: skip
    """Ask the store to go on from the end of our journal, and wait until it does.

    Raises:
        StoreError: it is not exactly there; it was not asked.
        Unavailable: it has not answered yet. It may still: repeat it.
    """
    name, group = destination.name, checkpoint.group
    async with connected(destination) as transport:
        ack = await read_ack(transport, destination, group)
        if ack is not None and ack.promoted is not None:
            return ack.promoted
        _check_position(name, ack, checkpoint)
        switching = Superseded(name, destination.url, None, Step.SWITCHING)
        write_superseded(disk, config.state_dir, switching)
        say(f"Asking {name} to go on from {_position(checkpoint)}.")
        await transport.put_bytes(_request(checkpoint), REQUEST)
        return await _answer(transport, destination, group)


async def _answer(transport: Transport, destination: DestinationConfig, group: bytes) -> Promotion:
    end_s = time.monotonic() + GIVE_UP_S
    while True:
        ack = await read_ack(transport, destination, group)
        if ack is not None and ack.promoted is not None:
            return ack.promoted
        if time.monotonic() >= end_s:
            raise Unavailable(
                f"{destination.name} has not taken over yet: "
                f"{(ack and ack.error) or 'it does not answer'}",
                hint="Is `aimfuse replay` running there, of this release? Repeat this: it goes on. "
                "Until then nobody may write to the image.",
            )
        await trio.sleep(POLL_S)


def _check_position(name: str, ack: Ack | None, checkpoint: Checkpoint) -> None:
    head = checkpoint.head
    problem = ""
    if ack is None or ack.applied is None:
        problem = "it has no mirror yet"
    elif ack.phase != "consistent" or ack.needs_sync:
        problem = ack.needs_sync or f"it is {ack.phase}"
    elif (ack.applied.number, ack.applied.digest) != (head.number, head.digest):
        problem = f"it is at file {ack.applied.number}, and the journal ends at file {head.number}"
    if problem:
        raise StoreError(
            f"{name} lacks something: {problem}",
            hint="Mount the image again, let the mirror catch up, and repeat this.",
        )


def _check_nothing_lost(promotion: Promotion, checkpoint: Checkpoint) -> None:
    if promotion.fork.number >= checkpoint.head.number:
        return
    raise StoreError(
        f"the store was promoted at file {promotion.fork.number}, and the journal ends at file "
        f"{checkpoint.head.number}: somebody else promoted it",
        hint="What it lacks is here still: aimfuse branch list IMAGE.",
    )


def _request(checkpoint: Checkpoint) -> bytes:
    return json.dumps({
        "version": VERSION,
        "group": checkpoint.group.hex(),
        "position": checkpoint.head.to_json(),
        "asked_ns": time.time_ns(),
    }).encode()  # fmt: skip


def _position(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.head.epoch}:{checkpoint.head.seq}"


def _done(config: GroupConfig, destination: DestinationConfig, promotion: Promotion) -> Json:
    fork = promotion.fork
    return {
        "version": VERSION,
        "state": "promoted",
        "image": str(config.image),
        "destination": destination.name,
        "url": destination.url,
        "position": f"{fork.epoch}:{fork.seq}",
        "epoch": promotion.epoch,
    }
