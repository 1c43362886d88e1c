"""A SYNC file that an earlier session built and sent in part: its bytes go on where they were.

Built anew it would have the same name and, with writes in between, another content: behind the
part that the store has of the old one it would be damaged. An older reading of the image is as
good as a new one: the journal from the copy's origin on goes over both.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from aimfuse.coordinator.acks import Position
from aimfuse.coordinator.cursor import SyncState
from aimfuse.disk import Disk
from aimfuse.errors import JournalError
from aimfuse.journal.header import FileKind
from aimfuse.journal.reader import read_sealed
from aimfuse.journal.records import RecordType


@dataclass(frozen=True, slots=True)
class Kept:
    """Where such a file ends, what it covers, and `to` if it is the last one of its copy."""

    end: Position
    covered_bytes: int
    to: int | None


def read_kept(
    disk: Disk, path: Path, group: bytes, sync: SyncState, index: int, start: Position
) -> Kept | None:
    """Return what is to be known of the file at *path*, None if it has to be built anew.

    So it is when there is none, it is damaged, or is not file *index* of this round of the
    copy from *start* on.

    Raises:
        OSError: it could not be read.
    """
    try:
        aim = read_sealed(disk, path)
    except (FileNotFoundError, JournalError):
        return None
    identity = aim.identity
    said = (identity.kind, identity.group, identity.sync_id, int(identity.number))
    if said != (FileKind.SYNC, group, sync.sync_id, index + 1):
        return None
    mark = json.loads(bytes(aim.payload(aim.iocbs[1])))
    if (mark["round"], tuple(mark["start"])) != (sync.round, start):
        return None
    kinds = {RecordType.WRITE, RecordType.ZERO}
    covered = sum(one.length for one in aim.records() if one.type in kinds)
    volume, offset = mark["end"]
    return Kept((volume, offset), covered, mark.get("to"))
