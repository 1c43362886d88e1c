"""Begin a copy, or a further round of one: choose its origin, pin the journal behind it.

Under the retention lock, so that nothing is folded or released in between. The cursor that
says all this is durable before the first byte of the image is read.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import trio

from aimfuse.coordinator.acks import Position
from aimfuse.coordinator.cursor import Cursor, SyncState, SyncVolume
from aimfuse.coordinator.decide import Halt
from aimfuse.coordinator.extents import ImageReader
from aimfuse.coordinator.place import Place
from aimfuse.coordinator.request import Request
from aimfuse.coordinator.retention import retention_lock
from aimfuse.coordinator.route import rule_of
from aimfuse.coordinator.todo import (
    CheckpointAwaited,
    Membership,
    NotCovered,
    add_ranges,
    begun,
    behind,
    checked_checkpoint,
    limited,
    next_round,
    placed,
    whole,
)
from aimfuse.errors import Unavailable
from aimfuse.journal.dirty import DirtyMap, Extent

Also = Callable[[Iterable[SyncVolume]], Iterable[Extent]]
"""Gives what is to be copied beside what the mirror lacks, of the volumes at the origin."""


async def begin_sync(place: Place) -> None:
    """Note a new first copy in the cursor; the journal stays from the present checkpoint on.

    Raises:
        Unavailable: no checkpoint yet, or the lock stayed taken.
        CheckpointAwaited: history is broken right behind the newest one.
        Halt: the destination's rule takes none of the volumes.
        StateLost: the checkpoint is unreadable.
    """
    await _set_behind_checkpoint(place, lambda: _first_cursor(place))
    sync = place.cursor.sync
    assert sync is not None
    reader = ImageReader(place.parts.disk, place.parts.config.image, sync)
    total = await trio.to_thread.run_sync(reader.data_bytes)
    place.cursor = replace(place.cursor, sync=replace(sync, total_bytes=total))


async def begin_resync(
    place: Place, why: str, *, is_whole: bool, request: Request | None = None,
    differs: DirtyMap | None = None,
) -> None:  # fmt: skip
    """Note a new staged copy in the cursor: of the fold, of all the image, or as requested.

    With *differs*, of that and of all that the mirror lacks besides.

    Raises:
        CheckpointAwaited: the newest checkpoint is not yet where such a copy could begin.
        Unavailable: nor is the mirror.
        StateLost, OSError: the fold, the checkpoint or a map is unreadable.
    """
    also: Also | None = request.extents if request else None
    if differs is not None:
        also = partial(_all_of, differs)
    make = partial(_resync_cursor, place, why, is_whole=is_whole, also=also)
    await _set_behind_checkpoint(place, make)
    place.todo.forget_others(place.cursor.sync)


async def begin_round(place: Place, at: Position, index: int) -> bool:
    """Let the copy go on from a later origin, with file *index*, for what was overtaken.

    *at* is the place before which the store has everything of the round so far.

    Returns:
        False if what was overtaken is not known: only another copy, of everything, helps.
    """
    try:
        await _set(place, partial(_round_cursor, place, at, index))
    except NotCovered:
        return False
    place.todo.forget_others(place.cursor.sync)
    return True


def membership(place: Place) -> Membership:
    """Return which volumes the destination gets."""
    return Membership(rule_of(place.config), place.cursor.members)


async def _set_behind_checkpoint(place: Place, make: Callable[[], Cursor]) -> None:
    """Do as `_set`; where the checkpoint is too old, have the driver take one at once.

    Until then nothing is sent, or the mirror would go beyond that, too.
    """
    try:
        await _set(place, make)
    except CheckpointAwaited:
        if not await place.parts.source.bring_checkpoint():
            raise
        await _set(place, make)


async def _set(place: Place, make: Callable[[], Cursor]) -> None:
    async with retention_lock(place.parts.disk, place.parts.config.state_dir):
        await place.set_cursor(make)
    place.look_at_fold()
    sync = place.cursor.sync
    assert sync is not None
    place.delivery.rewind(sync.head.number, sync.head.number)
    place.open_route()


def _first_cursor(place: Place) -> Cursor:
    checkpoint = checked_checkpoint(place.parts.checkpoint(), 0)
    everybody = Membership(rule_of(place.config), frozenset())
    entries = [one.entry for one in checkpoint.volumes]
    volumes = placed(entries, checkpoint, everybody)
    if checkpoint.volumes and not volumes and not place.parts.config.image.is_dir():
        raise Halt(
            "its rule takes none of the group's volumes",
            hint="Correct `volumes` or `exclude` in group.toml.",
        )
    sync = SyncState(_new_id(place), checkpoint.head, volumes, checkpoint.next_volume)
    return _cursor(place, sync)


def _resync_cursor(place: Place, why: str, *, is_whole: bool, also: Also | None) -> Cursor:
    ack = place.ack
    assert ack is not None
    if not is_whole and ack.applied_number < ack.confirmed:
        # A copy of a part counts on these. The store may switch it in before it applies them.
        raise Unavailable("the copy waits until the mirror has applied what was received")
    before = place.cursor.sync
    is_older = before is not None and before.staged and before.head.number < ack.applied_number
    try:
        if is_whole:
            sync, todo = _of_all(place, why)
        elif also is not None or is_older:
            sync, todo = _with_more(place, why, also, ack.confirmed)
        else:
            sync, todo = _of_fold(place, why, ack.confirmed)
    except NotCovered:
        sync, todo = _of_all(place, why)
    sync = replace(sync, total_bytes=todo.dirty_bytes())
    place.todo.write(sync, todo)
    return _cursor(place, sync)


def _of_fold(place: Place, why: str, confirmed: int) -> tuple[SyncState, DirtyMap]:
    checkpoint = place.parts.checkpoint()
    fold, todo = place.todo.of_fold(confirmed)
    if fold.head is None:
        raise NotCovered("its end is not known")
    if fold.through < confirmed:
        raise NotCovered("the mirror is beyond it")
    who = membership(place)
    volumes = placed(fold.volumes, checkpoint, who)
    return begun(_new_id(place), fold.head, volumes, 0, why), limited(todo, fold.volumes, who)


def _of_all(place: Place, why: str) -> tuple[SyncState, DirtyMap]:
    assert place.ack is not None
    # Not before anything that was sent: once it is applied, the mirror would be ahead of the copy.
    least = max(place.ack.confirmed, place.delivery.next - 1, place.lost)
    checkpoint = checked_checkpoint(place.parts.checkpoint(), least)
    volumes = placed([one.entry for one in checkpoint.volumes], checkpoint, membership(place))
    sync = begun(_new_id(place), checkpoint.head, volumes, checkpoint.next_volume, why)
    return sync, whole(one.entry for one in volumes)


def _all_of(differs: DirtyMap, _volumes: Iterable[SyncVolume]) -> Iterable[Extent]:
    return differs.extents()


def _with_more(
    place: Place, why: str, also: Also | None, confirmed: int
) -> tuple[SyncState, DirtyMap]:
    """Choose what was named, and what the mirror lacks anyway up to the present checkpoint.

    Also what a copy should have brought that the mirror went beyond: it may be a repair.
    """
    sync, _ = _of_all(place, why)
    found, at = DirtyMap(), confirmed
    if place.fold.through > confirmed:
        fold, found = place.todo.of_fold(confirmed)
        at = int(fold.through)
    found.add_all(behind(place.parts.backlog, place.parts.disk, at, sync.head.number))
    if also is not None:
        add_ranges(found, sync.volumes, also(sync.volumes))
    before = place.cursor.sync
    if before is not None and before.staged:
        left = place.todo.read(before)
        if left is None or before.round:  # Its earlier rounds are lost with it.
            raise NotCovered("what it had brought before is not known")
        found.add_all(left)
    return sync, limited(found, [one.entry for one in sync.volumes], membership(place))


def _round_cursor(place: Place, at: Position, index: int) -> Cursor:
    before = place.cursor.sync
    assert before is not None
    who = membership(place)
    fold, todo = place.todo.overtaken(before, at, who)
    volumes = placed(fold.volumes, place.parts.checkpoint(), who)
    sync = next_round(replace(before, next_index=index), fold, volumes, todo.dirty_bytes())
    place.todo.write(sync, todo)
    return _cursor(place, sync)


def _cursor(place: Place, sync: SyncState) -> Cursor:
    """Return the cursor that a sync begins with; its pin keeps all behind the sync's origin."""
    rule, head = rule_of(place.config), sync.head
    members = frozenset(int(one.entry.volume) for one in sync.volumes) if rule else frozenset[int]()
    applied = place.cursor.applied if sync.staged else head.number
    return Cursor(
        place.config.url, place.parts.checkpoint().group, head.number, head.epoch, head.number,
        head.digest, applied, sync, None, rule, members,
    )  # fmt: skip


def _new_id(place: Place) -> int:
    return place.parts.tools.dice.getrandbits(64) or 1
