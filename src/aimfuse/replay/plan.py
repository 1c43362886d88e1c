"""Check every record of a file before the first byte of the mirror changes.

The result says, per volume, which records change its data, and what the volume table looks
like afterwards. Order within a volume is kept; between volumes it does not matter, since the
mirror is promised at file boundaries only.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import VOLUMES_MAX, Iocb, RecordType, VolumeEntry, check_name
from aimfuse.replay.state import HistoryBroken, HistoryGap, StoreState
from aimfuse.units import VolumeId

VOLUME_BYTES_MAX = (1 << 63) - 1
"""No volume is larger: a file's offset is a signed 64-bit number."""

_REASON_CHARACTERS_MAX = 200
_HARMLESS = {RecordType.FLUSH, RecordType.BOOKMARK}
_MARKS = {RecordType.COMMIT, RecordType.TABLE}
_WRITE = RecordType.WRITE


@dataclass(slots=True)
class Plan:
    """What applying a file will do. `changes` holds WRITE, ZERO and TRUNCATE in order.

    `checks` are the VERIFY records: they change nothing, and only the mirror is held to them.
    """

    sizes: dict[VolumeId, int]
    names: dict[VolumeId, str]
    id_max: int
    ids_exact: bool
    changes: dict[VolumeId, list[Iocb]] = field(default_factory=dict)
    checks: dict[VolumeId, list[Iocb]] = field(default_factory=dict)
    created: set[VolumeId] = field(default_factory=set)
    gone: set[VolumeId] = field(default_factory=set)

    def table(self) -> tuple[VolumeEntry, ...]:
        """Return the volumes after the file, by id."""
        return tuple(
            VolumeEntry(volume, name, self.sizes[volume])
            for volume, name in sorted(self.names.items())
        )


def start(state: StoreState) -> Plan:
    """Return the plan that changes nothing."""
    return Plan(
        {entry.volume: entry.size_bytes for entry in state.volumes},
        {entry.volume: entry.name for entry in state.volumes},
        state.volume_id_max,
        state.volume_ids_exact,
    )


def plan_journal(state: StoreState, aim: AimFile) -> Plan:
    """Return what the journal file *aim* does to the store.

    Raises:
        HistoryBroken: a record cannot be, or contradicts what the store knows. The whole
            file is refused; nothing was changed.
    """
    try:
        _check_table(state, aim)
        return _plan(start(state), aim, aim.iocbs)
    except (ValueError, UnicodeDecodeError) as exc:
        raise HistoryBroken(f"{aim.path.name}: {exc}") from exc


def plan_until(state: StoreState, aim: AimFile, seq: int) -> Plan:
    """Return what the records of *aim* up to number *seq* do; errors as for `plan_journal`."""
    try:
        _check_table(state, aim)
        return _plan(start(state), aim, (iocb for iocb in aim.iocbs if iocb.seq <= seq))
    except (ValueError, UnicodeDecodeError) as exc:
        raise HistoryBroken(f"{aim.path.name}: {exc}") from exc


def check_extent(offset: int, length: int) -> int:
    """Return where the extent ends.

    Raises:
        ValueError: beyond what any volume can hold.
    """
    end = offset + length  # Python's numbers do not wrap around.
    if end > VOLUME_BYTES_MAX:
        raise ValueError(f"{length} bytes at offset {offset} end beyond any volume")
    return end


def _check_table(state: StoreState, aim: AimFile) -> None:
    table = aim.table()
    if table is None:
        raise ValueError("it does not begin with the table of volumes")
    if table != state.volumes:
        raise ValueError(
            f"it begins with the volumes {_list(table)}, the store has {_list(state.volumes)}"
        )


def _list(table: Iterable[VolumeEntry]) -> str:
    shown = [f"{entry.volume} {entry.name!r} {entry.size_bytes}" for entry in table]
    return f"[{', '.join(shown[:8])}{', …' if len(shown) > 8 else ''}]"  # noqa: PLR2004 - a line


def _plan(plan: Plan, aim: AimFile, iocbs: Iterable[Iocb]) -> Plan:
    sizes, changes = plan.sizes, plan.changes
    for iocb in iocbs:
        size = sizes.get(iocb.volume)
        if iocb.type is _WRITE and size is not None:  # The hot path: nothing else in it.
            end = iocb.offset + iocb.payload_bytes
            if end > size:
                sizes[iocb.volume] = check_extent(iocb.offset, iocb.payload_bytes)
            try:
                changes[iocb.volume].append(iocb)
            except KeyError:
                changes[iocb.volume] = [iocb]
        else:
            _plan_other(plan, aim, iocb)
    return plan


def _plan_other(plan: Plan, aim: AimFile, iocb: Iocb) -> None:
    kind = iocb.type
    if kind in _HARMLESS or kind in _MARKS:
        return
    if kind is RecordType.VERIFY:
        if iocb.volume in plan.names:
            plan.checks.setdefault(iocb.volume, []).append(iocb)
        return
    if kind is RecordType.GAP:
        raise HistoryGap(
            f"gap: the journal is broken at record {iocb.seq} of {aim.path.name}: {_why(aim, iocb)}"
        )
    if kind in {RecordType.SYNC, RecordType.UNDO}:
        raise ValueError(f"a {kind.name} mark in a journal file")
    if kind is RecordType.CREATE:
        _create(plan, iocb, check_name(bytes(aim.payload(iocb))))
    elif iocb.volume in plan.names:
        _plan_change(plan, aim, iocb)
    else:
        _check_gone(plan, iocb)


def _why(aim: AimFile, gap: Iocb) -> str:
    try:
        return str(json.loads(bytes(aim.payload(gap)))["reason"])[:_REASON_CHARACTERS_MAX]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "no reason given"


def _plan_change(plan: Plan, aim: AimFile, iocb: Iocb) -> None:
    volume = iocb.volume
    if iocb.type is RecordType.RENAME:
        _rename(plan, iocb, check_name(bytes(aim.payload(iocb))))
    elif iocb.type is RecordType.UNLINK:
        _remove(plan, volume)
    elif iocb.type is RecordType.TRUNCATE:
        plan.sizes[volume] = check_extent(0, iocb.length)
        plan.changes.setdefault(volume, []).append(iocb)
    else:
        assert iocb.type is RecordType.ZERO
        plan.sizes[volume] = max(plan.sizes[volume], check_extent(iocb.offset, iocb.length))
        plan.changes.setdefault(volume, []).append(iocb)


def _create(plan: Plan, iocb: Iocb, name: str) -> None:
    volume = iocb.volume
    if volume <= plan.id_max:
        raise ValueError(f"record {iocb.seq} creates volume {volume}, an id used before")
    if name in plan.names.values():
        raise ValueError(f"record {iocb.seq} creates {name!r}, which exists")
    if len(plan.names) >= VOLUMES_MAX:
        raise ValueError(f"record {iocb.seq} creates one volume too many")
    plan.names[volume] = name
    plan.sizes[volume] = 0
    plan.created.add(volume)
    plan.id_max = volume
    plan.ids_exact = True


def _rename(plan: Plan, iocb: Iocb, name: str) -> None:
    holder = next((volume for volume, held in plan.names.items() if held == name), None)
    if holder == iocb.volume:
        return
    if (holder or 0) != iocb.offset:
        raise ValueError(
            f"record {iocb.seq} renames to {name!r}, said to replace volume {iocb.offset}, "
            f"but here it is {holder or 'free'}"
        )
    if holder is not None:
        _remove(plan, holder)
    plan.names[iocb.volume] = name


def _remove(plan: Plan, volume: VolumeId) -> None:
    del plan.names[volume], plan.sizes[volume]
    plan.changes.pop(volume, None)
    plan.checks.pop(volume, None)
    if volume in plan.created:
        plan.created.remove(volume)
    else:
        plan.gone.add(volume)


def _check_gone(plan: Plan, iocb: Iocb) -> None:
    """Let pass what happens to a volume after its removal; it changes nothing.

    Before the first CREATE after a sync, volumes above any known id may have come and gone.
    Mentioning such an id uses it up, so that a lost CREATE is still noticed.
    """
    if 0 < iocb.volume <= plan.id_max:
        return
    if plan.ids_exact or iocb.volume == 0:
        raise ValueError(f"record {iocb.seq} is of volume {iocb.volume}, which never was")
    plan.id_max = iocb.volume
