"""Go back in a store's history in memory, one file at a time, as the format page says."""

from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import RecordType
from aimfuse.replay.kept import KeptSet
from aimfuse.replay.look import Look
from aimfuse.replay.past import Past, look_at
from aimfuse.replay.undo import parts_of, read_undo
from tests.disks.simdisk import SimDisk

Snapshot = dict[str, bytes]


def states_of(
    store: Path, disk: Disk | None = None, look: Look | None = None
) -> dict[int, Snapshot]:
    """Return every state that the store can go back to, by the number of the file behind it."""
    disk = disk or Disk()
    past = look_at(disk, store, look)
    if past.reach is None or past.state.head is None:
        return {}
    contents: dict[int, bytearray] = {
        entry.volume: bytearray(_contents(disk, store / "volumes" / f"{entry.volume:08d}"))
        for entry in past.state.volumes
    }
    sizes: dict[int, int] = {entry.volume: entry.size_bytes for entry in past.state.volumes}
    names: dict[int, str] = {entry.volume: entry.name for entry in past.state.volumes}
    found: dict[int, Snapshot] = {}
    number: int = past.state.head.number
    if past.reach.open_set is None:
        found[number] = {names[v]: bytes(contents[v][: sizes[v]]) for v in names}
    else:
        _take_back(disk, past, past.reach.open_set, contents)
        found[number] = {names[v]: bytes(contents[v]) for v in names}
    for one in past.reach.sets:
        names = _take_back(disk, past, one, contents)
        found[one.name.number - 1] = {names[v]: bytes(contents[v]) for v in names}
    return found


def _take_back(
    disk: Disk, past: Past, one: KeptSet, contents: dict[int, bytearray]
) -> dict[int, str]:
    undo = read_undo(disk, past.history, one.name)
    for volume, name in one.gone().items():
        contents[volume] = bytearray(_contents(disk, past.history / name))
    for entry in undo.table:
        held = contents[entry.volume]
        del held[entry.size_bytes :]
        held.extend(bytes(entry.size_bytes - len(held)))
    for part in parts_of(disk, past.history, undo):
        _lay_over(part, contents)
    for entry in undo.table:
        assert len(contents[entry.volume]) == entry.size_bytes
    return {entry.volume: entry.name for entry in undo.table}


def _lay_over(part: AimFile, contents: dict[int, bytearray]) -> None:
    for iocb in part.records():
        data = bytes(part.payload(iocb)) if iocb.type is RecordType.WRITE else bytes(iocb.length)
        contents[iocb.volume][iocb.offset : iocb.offset + len(data)] = data


def _contents(disk: Disk, path: Path) -> bytes:
    return disk.contents(path) if isinstance(disk, SimDisk) else path.read_bytes()
