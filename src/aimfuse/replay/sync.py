"""Apply the files of a first sync, as they arrive.

The first one (index 0) makes the volumes; each says where it starts and ends, so a file that
does not continue exactly where the one before ended is not used. Until the journal has been
replayed through the position that the last one names, the mirror is a mixture of times, and
the phase says so.
"""

import json
from dataclasses import dataclass, replace
from enum import Enum

from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import Iocb, RecordType, VolumeEntry
from aimfuse.replay.apply import write_volume
from aimfuse.replay.plan import VOLUME_BYTES_MAX, check_extent
from aimfuse.replay.state import Head, Phase, StoreState, SyncProgress, UnfitFile, natural
from aimfuse.replay.store import Store
from aimfuse.units import VolumeId


@dataclass(frozen=True, slots=True)
class SyncMark:
    """What a SYNC file says about itself; `to` and `next_volume` are not in every one."""

    sync_id: int
    index: int
    origin: Head
    start: tuple[int, int]
    end: tuple[int, int]
    last: bool
    to: int | None
    next_volume: int | None


class Turn(Enum):
    """When a SYNC file is to be applied."""

    NOW = "now"
    LATER = "later"
    NEVER = "never"


def read_mark(aim: AimFile) -> SyncMark:
    """Return the mark of a SYNC file.

    Raises:
        UnfitFile: there is none, or it contradicts the header.
    """
    try:
        mark = _parse_mark(aim)
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise UnfitFile(f"no usable SYNC mark: {exc!r}") from exc
    identity = aim.identity
    said = (mark.sync_id, mark.index + 1, mark.origin.epoch)
    if said != (identity.sync_id, identity.number, identity.epoch):
        raise UnfitFile("the SYNC mark contradicts the header")
    if mark.last and mark.to is None:
        raise UnfitFile("the last file of a sync does not say when the mirror is consistent")
    return mark


def turn(state: StoreState, sync_id: int, index: int, start: tuple[int, int]) -> Turn:
    """Tell when file *index* of sync *sync_id*, which begins at *start*, is to be applied.

    Raises:
        UnfitFile: it belongs to a sync that this store cannot take any more.
    """
    sync = state.sync
    if sync is not None and sync.sync_id == sync_id:
        if sync.done or index < sync.next_index:
            return Turn.NEVER
        if index > sync.next_index:
            return Turn.LATER
        return Turn.NOW if index == 0 or start == sync.next_at else Turn.NEVER
    if state.phase not in {Phase.EMPTY, Phase.SYNCING}:
        raise UnfitFile("the store has its first sync behind it and takes no other")
    return Turn.NOW if index == 0 else Turn.LATER


def apply_sync(store: Store, aim: AimFile, mark: SyncMark) -> None:
    """Write the extents of one SYNC file whose turn it is.

    Raises:
        UnfitFile: its records or its table are not those of a sync. Nothing changed.
        OSError: the disk failed. The file is to be applied again, from a copy read anew.
    """
    table = _check_table(store.state, aim, mark)
    changes = _plan(aim, {entry.volume for entry in table})
    state = _begin(store, aim, mark, table) if mark.index == 0 else store.state
    assert state.sync is not None
    created = {entry.volume for entry in table} if mark.index == 0 else set[VolumeId]()
    for entry in table:
        if entry.volume in changes or entry.volume in created:
            before = 0 if entry.volume in created else entry.size_bytes
            sizes = (before, entry.size_bytes)
            write_volume(store, aim, entry.volume, changes.get(entry.volume, ()), sizes, created)
    if created:
        store.disk.sync_dir("sync:sync_dir", store.volumes)
    progress = replace(state.sync, next_index=mark.index + 1, next_at=mark.end)
    phase = Phase.SYNCING
    if mark.last:
        assert mark.to is not None
        progress = replace(progress, to=mark.to)
        phase = Phase.CATCHING_UP if mark.origin.number < mark.to else Phase.CONSISTENT
    if phase is Phase.CONSISTENT:
        store.derive_links((), table)
    store.save(replace(state, sync=progress, phase=phase))


def _begin(
    store: Store, aim: AimFile, mark: SyncMark, table: tuple[VolumeEntry, ...]
) -> StoreState:
    """Make this the store's sync, durably, before the data of an earlier one is touched."""
    known = store.state.volumes
    id_max = max((entry.volume for entry in table), default=0)
    exact = mark.next_volume is not None
    if mark.next_volume is not None:
        id_max = max(id_max, mark.next_volume - 1)
    progress = SyncProgress(mark.sync_id, mark.origin, 0, mark.start)
    store.save(
        StoreState(
            aim.identity.group,
            mark.origin,
            table,
            Phase.SYNCING,
            progress,
            volume_id_max=id_max,
            volume_ids_exact=exact,
        )
    )
    store.remove_volumes({e.volume for e in known} - {e.volume for e in table})
    return store.state


def _check_table(state: StoreState, aim: AimFile, mark: SyncMark) -> tuple[VolumeEntry, ...]:
    try:
        table = aim.table()
    except ValueError as exc:
        raise UnfitFile(f"its table of volumes is damaged: {exc}") from exc
    if table is None:
        raise UnfitFile("it does not begin with the table of volumes")
    if any(entry.size_bytes > VOLUME_BYTES_MAX for entry in table):
        raise UnfitFile("a volume of its table is larger than any volume")
    if mark.index > 0 and table != state.volumes:
        raise UnfitFile("its table of volumes differs from that of the sync's first file")
    return table


def _plan(aim: AimFile, known: set[VolumeId]) -> dict[VolumeId, list[Iocb]]:
    changes: dict[VolumeId, list[Iocb]] = {}
    for iocb in aim.records():
        if iocb.type not in {RecordType.WRITE, RecordType.ZERO} or iocb.volume not in known:
            raise UnfitFile(f"record {iocb.seq} has no place in a sync")
        length = iocb.payload_bytes if iocb.type is RecordType.WRITE else iocb.length
        try:
            check_extent(iocb.offset, length)
        except ValueError as exc:
            raise UnfitFile(f"record {iocb.seq}: {exc}") from exc
        changes.setdefault(iocb.volume, []).append(iocb)
    return changes


def _parse_mark(aim: AimFile) -> SyncMark:
    mark = _second(aim.iocbs)
    data = json.loads(bytes(aim.payload(mark)))
    start, end = data["start"], data["end"]
    to, next_volume = data.get("to"), data.get("next_volume")
    return SyncMark(
        natural(int(data["id"], 16)),
        natural(data["index"]),
        Head.from_json(data["from"]),
        (natural(start[0]), natural(start[1])),
        (natural(end[0]), natural(end[1])),
        bool(data["last"]),
        None if to is None else natural(to),
        None if next_volume is None else natural(next_volume),
    )


def _second(iocbs: tuple[Iocb, ...]) -> Iocb:
    if len(iocbs) < 2 or iocbs[1].type is not RecordType.SYNC:  # noqa: PLR2004 - the second
        raise ValueError("the second frame is no SYNC mark")
    return iocbs[1]
