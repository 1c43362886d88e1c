"""What an old source has written behind the fork: how much, and which extents it touched.

The spool's files behind the fork say it exactly; of what left a full spool the fold of some
destination does. Where neither goes back to the fork, or the fork is not in this history, all
of the image has to be taken as different: that is always right, only slower.
"""

import contextlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from aimfuse.config import GroupConfig
from aimfuse.coordinator.cursor import CursorFile
from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import Checkpoint
from aimfuse.errors import JournalError, StateLost
from aimfuse.journal.contents import Contents, fold_into, read_contents
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.fold import Fold, FoldFile
from aimfuse.journal.journal import Head
from aimfuse.journal.records import RecordType, VolumeEntry
from aimfuse.journal.spool import sealed_names

_CHANGING = {
    RecordType.WRITE, RecordType.ZERO, RecordType.TRUNCATE, RecordType.CREATE,
    RecordType.RENAME, RecordType.UNLINK,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tail:
    """What lies behind the fork on this side; `writes` are the records that change something.

    `volumes` are those that the mirror to be begins with; `differs` is what they may have
    otherwise than at the fork, None for all of it, and `why_all` says why.
    """

    fork: Head
    end: Head
    volumes: tuple[VolumeEntry, ...]
    files: tuple[Path, ...]
    writes: int
    bytes: int
    first_ns: int
    last_ns: int
    differs: DirtyMap | None
    why_all: str = ""

    @property
    def is_empty(self) -> bool:
        """Tell whether the images are exactly as they were at the fork."""
        return self.differs is not None and not self.differs and not self.writes

    @property
    def differing_bytes(self) -> int:
        """Return how much may differ, at most."""
        if self.differs is None:
            return sum(one.size_bytes for one in self.volumes)
        return self.differs.dirty_bytes()


class _Unknown(Exception):
    """It cannot be told what this side has touched: all of it may differ."""


def survey(
    disk: Disk, config: GroupConfig, checkpoint: Checkpoint, fork: Head, problem: str = ""
) -> Tail:
    """Return what the group has written behind *fork*, with *checkpoint* at its end.

    *problem*: why the images cannot be trusted to be at that end, if so.

    Raises:
        OSError: the spool could not be read.
    """
    names = sealed_names(disk, config.spool) if disk.exists(config.spool) else []
    names = [one for one in names if one.number > fork.number]
    files = tuple(config.spool / one.sealed for one in names)
    found, damage = _read(disk, files)
    volumes = tuple(checkpoint.entries())
    differs: DirtyMap | None = None
    why_all = ""
    try:
        volumes, differs = _touched(disk, config, checkpoint, fork, found, problem or damage)
    except _Unknown as exc:
        why_all = str(exc)
    stamps = [ns for one in found for ns in (one.seal.first_time_ns, one.seal.last_time_ns) if ns]
    return Tail(
        fork,
        found[-1].head() if found else checkpoint.head,
        tuple(sorted(volumes, key=lambda one: one.volume)),  # As journal and stores list them.
        files,
        sum(iocb.type in _CHANGING for one in found for iocb in one.iocbs),
        sum(one.seal.payload_bytes for one in found),
        min(stamps, default=0),
        max(stamps, default=0),
        differs,
        why_all,
    )


def _read(disk: Disk, files: tuple[Path, ...]) -> tuple[list[Contents], str]:
    """Return what the files change, and what is wrong with the first that cannot be read."""
    found: list[Contents] = []
    for path in files:
        try:
            found.append(read_contents(disk, path))
        except JournalError as exc:
            return found, str(exc)
    return found, ""


def _touched(
    disk: Disk,
    config: GroupConfig,
    checkpoint: Checkpoint,
    fork: Head,
    found: list[Contents],
    problem: str,
) -> tuple[tuple[VolumeEntry, ...], DirtyMap]:
    """Return the volumes to begin with, and what they may have otherwise than at the fork.

    Raises:
        _Unknown: it cannot be told.
    """
    if problem:
        raise _Unknown(problem)
    if checkpoint.gap is not None:
        raise _Unknown(f"its history is broken: {checkpoint.gap}")
    if fork.number > checkpoint.head.number:
        raise _Unknown(f"its history ends at file {checkpoint.head.number}, before the fork")
    present = tuple(checkpoint.entries())
    first = int(found[0].identity.number) if found else checkpoint.head.number + 1
    _check_row(found, checkpoint)
    dirty = DirtyMap()
    if first == fork.number + 1:
        _check_fork(fork, found[0].seal.prev_digest if found else checkpoint.head.digest)
        volumes = found[0].table if found else present
    else:
        dirty, volumes = _folded(disk, config, fork, first)
    fold_into(dirty, found)
    kept = {one.volume for one in present}
    for one in volumes:
        if one.volume not in kept:  # Removed since: the mirror to be begins it as an empty file.
            dirty.add(one.volume, 0, one.size_bytes)
    for volume in dirty.volumes() - {int(one.volume) for one in volumes}:
        dirty.forget(volume)
    return volumes, dirty


def _check_row(found: list[Contents], checkpoint: Checkpoint) -> None:
    if any(one.type is RecordType.GAP for file in found for one in file.iocbs):
        raise _Unknown("its image was taken as it is behind the fork, by --resync")
    for before, after in pairwise(found):
        if after.seal.prev_digest != before.seal.digest:
            raise _Unknown(f"file {after.identity.number - 1} of its journal is missing")
    if found and found[-1].identity.number < checkpoint.head.number:
        raise _Unknown(f"file {checkpoint.head.number} of its journal is missing")


def _check_fork(fork: Head, digest: bytes) -> None:
    if digest != fork.digest:
        raise _Unknown(f"its file {fork.number} is not the one that the other side went on from")


def _folded(
    disk: Disk, config: GroupConfig, fork: Head, first: int
) -> tuple[DirtyMap, tuple[VolumeEntry, ...]]:
    """Return what changed from the fork on in the files that left the spool in front of *first*.

    Not for a directory: a volume's id may have been given away since the fork, on either side.
    """
    if config.image.is_dir():
        raise _Unknown(f"files {fork.number + 1} to {first - 1} have left its spool")
    for directory in _accounts(disk, config):
        try:
            file = FoldFile(disk, directory)
            fold = file.read()
            reaches = fold.covers(fork.number) and fold.through + 1 >= first
            if not reaches or fork.number > fold.through:
                continue
            _check_ours(disk, config, fork, fold)
            maps = file.read_maps(fold)
        except (StateLost, JournalError, FileNotFoundError):
            continue
        if fork.number < fold.mid:
            maps.recent.add_all(maps.old)
        return maps.recent, fold.volumes
    raise _Unknown(f"what files {fork.number + 1} to {first - 1} changed is not known any more")


def _check_ours(disk: Disk, config: GroupConfig, fork: Head, fold: Fold) -> None:
    """Make sure that the fork is in this history, though its file has left the spool.

    A mirror of a mirror that was promoted may have forked at a file that only bears a number of
    ours. A boundary of which this side kept the digest says it, or else the epoch: that a mirror
    goes on with is higher than any that it had got from here.

    Raises:
        _Unknown: it is not, or nobody can tell.
    """
    assert fold.head is not None
    known = [(int(fold.head.epoch), int(fold.head.number), fold.head.digest)]
    for directory in _accounts(disk, config):
        with contextlib.suppress(StateLost):
            cursor = CursorFile(disk, directory, "").read()
            if cursor.rule is None and not cursor.is_new:
                known.append((cursor.epoch, cursor.number, cursor.digest))
    at_fork = {digest for _epoch, number, digest in known if number == fork.number}
    is_ours = any(epoch == fork.epoch and number < fork.number for epoch, number, _digest in known)
    if fork.digest not in at_fork and (at_fork or not is_ours or fork.epoch > fold.head.epoch):
        raise _Unknown(f"nobody can tell whether file {fork.number} was this side's")


def _accounts(disk: Disk, config: GroupConfig) -> list[Path]:
    place = config.state_dir / "destinations"
    return [place / name for name in disk.listdir(place)] if disk.exists(place) else []
