"""Read the files of a sync, and apply those of a first one as they arrive.

The first one (index 0) makes the volumes; each says where it starts and ends, so a file that
does not continue exactly where the one before ended is not used. Until the journal has been
replayed through the position that the last one names, the mirror is a mixture of times, and
the phase says so.
"""

import json
from dataclasses import dataclass, replace
from enum import Enum

from aimfuse.journal.names import EPOCH_MAX, NUMBER_MAX
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import Iocb, RecordType, VolumeEntry
from aimfuse.replay.apply import write_volume
from aimfuse.replay.plan import VOLUME_BYTES_MAX, check_extent
from aimfuse.replay.state import Head, Phase, StoreState, SyncProgress, UnfitFile
from aimfuse.replay.store import Store
from aimfuse.units import VolumeId, natural


@dataclass(frozen=True, slots=True)
class SyncMark:
    """What a SYNC file says about itself; `to` and `next_volume` are not in every one.

    `round` rises each time the copy starts over for what was overtaken. A `staged` one is for
    a mirror that exists.
    """

    sync_id: int
    index: int
    origin: Head
    start: tuple[int, int]
    end: tuple[int, int]
    last: bool
    to: int | None
    next_volume: int | None
    round: int = 0
    staged: bool = False


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
    if mark.origin.epoch > EPOCH_MAX or mark.origin.number > NUMBER_MAX:
        raise UnfitFile("the SYNC mark names a position that no file's name could")
    if mark.last and mark.to is None:
        raise UnfitFile("the last file of a sync does not say when the mirror is consistent")
    return mark


def turn(state: StoreState, mark: SyncMark) -> Turn:
    """Tell when the file with this *mark* is to be applied, or taken into ``staging/``.

    Raises:
        UnfitFile: it belongs to a sync that this store cannot take.
    """
    sync = state.sync
    if mark.staged:
        return _staged_turn(state, mark)
    if sync is not None and sync.sync_id == mark.sync_id:
        return Turn.NEVER if sync.done else next_turn(sync, mark)
    if state.phase not in {Phase.EMPTY, Phase.SYNCING}:
        raise UnfitFile("the store has its first sync behind it and takes no other")
    return Turn.NOW if mark.index == 0 else Turn.LATER


def next_turn(progress: SyncProgress, mark: SyncMark) -> Turn:
    """Tell when another file of the sync under way is to be used."""
    if mark.index != progress.next_index:
        return Turn.NEVER if mark.index < progress.next_index else Turn.LATER
    if mark.round == progress.round and not progress.done:
        return Turn.NOW if mark.index == 0 or mark.start == progress.next_at else Turn.NEVER
    return Turn.NOW if mark.round > progress.round and mark.start == (0, 0) else Turn.NEVER


def _staged_turn(state: StoreState, mark: SyncMark) -> Turn:
    if state.phase is Phase.SWITCHING or (state.sync and state.sync.sync_id == mark.sync_id):
        return Turn.NEVER
    if state.phase not in {Phase.CATCHING_UP, Phase.CONSISTENT} or state.head is None:
        raise UnfitFile("a copy for a mirror that exists, but there is none")
    if state.staging and state.staging.progress.sync_id == mark.sync_id:
        return next_turn(state.staging.progress, mark)
    if mark.index > 0:
        return Turn.LATER
    # Files that were on their way have come after all: the source sees it by the ack, too.
    return Turn.NEVER if mark.origin.number < state.head.number else Turn.NOW


def apply_sync(store: Store, aim: AimFile, mark: SyncMark) -> None:
    """Write the extents of one SYNC file whose turn it is.

    Raises:
        UnfitFile: its records or its table are not those of a sync. Nothing changed.
        OSError: the disk failed. The file is to be applied again, from a copy read anew.
    """
    progress = store.state.sync if mark.index else None
    table = check_table(aim, mark, store.state.volumes, progress)
    changes = plan_sync(aim, {entry.volume for entry in table})
    state = _begin(store, aim, mark, table) if progress is None else store.state
    assert state.sync is not None
    known = {entry.volume: entry.size_bytes for entry in state.volumes} if progress else {}
    created = {entry.volume for entry in table} - known.keys()
    for entry in table:
        sizes = (known.get(entry.volume, 0), entry.size_bytes)
        if entry.volume in changes or entry.volume in created or sizes[0] != sizes[1]:
            write_volume(store, aim, entry.volume, changes.get(entry.volume, ()), sizes, created)
    if created:
        store.disk.sync_dir("sync:sync_dir", store.volumes)
    progress = replace(
        state.sync,
        origin=mark.origin, round=mark.round, next_index=mark.index + 1, next_at=mark.end,
    )  # fmt: skip
    phase = Phase.SYNCING
    if mark.last:
        assert mark.to is not None
        progress = replace(progress, to=mark.to)
        phase = Phase.CATCHING_UP if mark.origin.number < mark.to else Phase.CONSISTENT
    if phase is Phase.CONSISTENT:
        store.derive_links((), table)
    id_max, exact = volume_ids(table, mark.next_volume)
    store.save(
        replace(
            state,
            head=mark.origin,
            volumes=table,
            sync=progress,
            phase=phase,
            volume_id_max=id_max,
            volume_ids_exact=exact,
        )
    )
    store.remove_volumes(known.keys() - {entry.volume for entry in table})


def volume_ids(table: tuple[VolumeEntry, ...], next_volume: int | None) -> tuple[int, bool]:
    """Return the highest volume id that was used up, and whether there surely is no higher."""
    id_max = max((entry.volume for entry in table), default=0)
    if next_volume is None:
        return id_max, False
    return max(id_max, next_volume - 1), True


def _begin(
    store: Store, aim: AimFile, mark: SyncMark, table: tuple[VolumeEntry, ...]
) -> StoreState:
    """Make this the store's sync, durably, before the data of an earlier one is touched."""
    known = store.state.volumes
    id_max, exact = volume_ids(table, mark.next_volume)
    progress = SyncProgress(mark.sync_id, mark.origin, 0, mark.start, round=mark.round)
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


def check_table(
    aim: AimFile, mark: SyncMark, known: tuple[VolumeEntry, ...], progress: SyncProgress | None
) -> tuple[VolumeEntry, ...]:
    """Return the volumes of a SYNC file's table, the *known* ones unless a round begins.

    Raises:
        UnfitFile: there is none, or it is damaged, or another one.
    """
    try:
        table = aim.table()
    except ValueError as exc:
        raise UnfitFile(f"its table of volumes is damaged: {exc}") from exc
    if table is None:
        raise UnfitFile("it does not begin with the table of volumes")
    if any(entry.size_bytes > VOLUME_BYTES_MAX for entry in table):
        raise UnfitFile("a volume of its table is larger than any volume")
    if progress is not None and mark.round == progress.round and table != known:
        raise UnfitFile("its table of volumes differs from that of the sync's first file")
    return table


def plan_sync(aim: AimFile, known: set[VolumeId]) -> dict[VolumeId, list[Iocb]]:
    """Return what a SYNC file writes, by volume, in order.

    Raises:
        UnfitFile: a record in it has no place in a sync, or not in that volume.
    """
    changes: dict[VolumeId, list[Iocb]] = {}
    for iocb in aim.records():
        if iocb.type is RecordType.GAP:  # Says why this copy is needed.
            continue
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
        natural(data.get("round", 0)),
        bool(data.get("staged", False)),
    )


def _second(iocbs: tuple[Iocb, ...]) -> Iocb:
    if len(iocbs) < 2 or iocbs[1].type is not RecordType.SYNC:  # noqa: PLR2004 - the second
        raise ValueError("the second frame is no SYNC mark")
    return iocbs[1]
