"""What an old source has written behind the fork: how much, and which extents it touched.

The spool's files behind the fork say it exactly; of what left a full spool the fold of some
destination does. Where the promoted store went back over files that have left the spool, it
noted what those touched (journal/rewound.py), and only what lies behind its newest file has to
be known here. Where nothing goes back to the fork, or the fork is not in this history, all of
the image has to be taken as different: that is always right, only slower.
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
from aimfuse.journal.names import JournalName
from aimfuse.journal.records import RecordType, VolumeEntry
from aimfuse.journal.rewound import Rewound
from aimfuse.journal.spool import sealed_names

_CHANGING = {
    RecordType.WRITE, RecordType.ZERO, RecordType.TRUNCATE, RecordType.CREATE,
    RecordType.RENAME, RecordType.UNLINK,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tail:
    """What lies behind the fork on this side; `writes` are the records that change something.

    `volumes` are those that the mirror to be begins with; `differs` is what they may have
    otherwise than at the fork, None for all of it, and `why_all` says why. `size_bytes` is that of
    all volumes at the end. `is_cut`: the first files behind the fork have left the spool, so there
    are more writes than are counted.
    """

    fork: Head
    end: Head
    volumes: tuple[VolumeEntry, ...]
    files: tuple[Path, ...]
    writes: int
    bytes: int
    first_ns: int
    last_ns: int
    size_bytes: int
    differs: DirtyMap | None
    why_all: str = ""
    is_cut: bool = False

    @property
    def is_empty(self) -> bool:
        """Tell whether the images are exactly as they were at the fork."""
        if self.differs is None or self.differs:
            return False
        return not (self.writes or self.is_cut)

    @property
    def is_counted(self) -> bool:
        """Tell whether `writes` are all that there were behind the fork."""
        return self.differs is not None and not self.is_cut

    @property
    def differing_bytes(self) -> int:
        """Return how much may differ, at most."""
        return self.size_bytes if self.differs is None else self.differs.dirty_bytes()


class _Unknown(Exception):
    """It cannot be told what this side has touched: all of it may differ."""


Touched = tuple[tuple[VolumeEntry, ...], DirtyMap]
"""The volumes to begin with, and what they may have otherwise than at the fork."""


@dataclass(frozen=True, slots=True)
class _History:
    """What this side knows of its own past: *found* is in the spool behind the fork."""

    disk: Disk
    config: GroupConfig
    checkpoint: Checkpoint
    found: list[Contents]

    def behind(self, head: Head) -> list[Contents]:
        """Return the files behind *head* that are in the spool."""
        return [one for one in self.found if one.identity.number > head.number]

    def first_behind(self, head: Head) -> int:
        """Return the number of the first of them; that of the next file if there is none."""
        behind = self.behind(head)
        return int(behind[0].identity.number if behind else self.checkpoint.head.number + 1)


def survey(
    disk: Disk, config: GroupConfig, checkpoint: Checkpoint, fork: Head, problem: str = "",
    rewound: Rewound | None = None,
) -> Tail:  # fmt: skip
    """Return what the group has written behind *fork*, with *checkpoint* at its end.

    *problem*: why the images cannot be trusted to be at that end, if so. *rewound*: what the
    promoted store noted of the files that it went back over.

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
        if problem or damage:
            raise _Unknown(problem or damage)  # noqa: TRY301 - as all that stands against it
        history = _History(disk, config, checkpoint, found)
        volumes, differs = _touched(history, fork, rewound)
    except _Unknown as exc:
        why_all = str(exc)
    stamps = [ns for one in found for ns in (one.seal.first_time_ns, one.seal.last_time_ns) if ns]
    return Tail(
        fork,
        found[-1].head() if found else checkpoint.head,
        tuple(sorted(volumes, key=lambda one: one.volume)),  # As journal and stores list them.
        files,
        sum(one.count(_CHANGING) for one in found),
        sum(one.seal.payload_bytes for one in found),
        min(stamps, default=0),
        max(stamps, default=0),
        sum(one.size_bytes for one in checkpoint.entries()),
        differs,
        why_all,
        _is_cut(names, checkpoint, fork),
    )


def _is_cut(names: list[JournalName], checkpoint: Checkpoint, fork: Head) -> bool:
    first = int(names[0].number) if names else int(checkpoint.head.number) + 1
    return first > fork.number + 1


def _read(disk: Disk, files: tuple[Path, ...]) -> tuple[list[Contents], str]:
    """Return what the files change, and what is wrong with the first that cannot be read."""
    found: list[Contents] = []
    for path in files:
        try:
            found.append(read_contents(disk, path))
        except JournalError as exc:
            return found, str(exc)
    return found, ""


def _touched(history: _History, fork: Head, rewound: Rewound | None) -> Touched:
    """Return the volumes to begin with, and what they may have otherwise than at the fork.

    Raises:
        _Unknown: it cannot be told.
    """
    checkpoint = history.checkpoint
    if checkpoint.gap is not None:
        raise _Unknown(f"its history is broken: {checkpoint.gap}")
    if fork.number > checkpoint.head.number:
        raise _Unknown(f"its history ends at file {checkpoint.head.number}, before the fork")
    present = tuple(checkpoint.entries())
    _check_row(history.found, checkpoint)
    if history.first_behind(fork) == fork.number + 1:
        _check_digest(history, fork)
        volumes, dirty = history.found[0].table if history.found else present, DirtyMap()
    else:
        volumes, dirty = _gone_back_over(history, fork, rewound) or _folded(history, fork)
    fold_into(dirty, history.found)
    kept = {one.volume for one in present}
    for one in volumes:
        if one.volume not in kept:  # Removed since: the mirror to be begins it as an empty file.
            dirty.add(one.volume, 0, one.size_bytes)
    for volume in dirty.volumes() - {int(one.volume) for one in volumes}:
        dirty.forget(volume)
    return volumes, dirty


def _gone_back_over(history: _History, fork: Head, rewound: Rewound | None) -> Touched | None:
    """Return what the store went back over, and what left this side's spool behind that.

    None if that is not known, or not of this history: the file at which the store stood before
    has to be one of ours.
    """
    if rewound is None or rewound.fork != fork:
        return None
    newest, dirty = rewound.newest, DirtyMap()
    if newest.number > history.checkpoint.head.number:
        return None
    try:
        if history.first_behind(newest) == newest.number + 1:
            _check_digest(history, newest)
        else:
            dirty = _find_fold(history, newest)[1]
    except _Unknown:
        return None
    dirty.add_all(rewound.touched)
    return rewound.volumes, dirty


def _check_row(found: list[Contents], checkpoint: Checkpoint) -> None:
    if any(one.is_broken for one in found):
        raise _Unknown("its image was taken as it is behind the fork, by --resync")
    for before, after in pairwise(found):
        if after.seal.prev_digest != before.seal.digest:
            raise _Unknown(f"file {after.identity.number - 1} of its journal is missing")
    if found and found[-1].identity.number < checkpoint.head.number:
        raise _Unknown(f"file {checkpoint.head.number} of its journal is missing")


def _check_digest(history: _History, head: Head) -> None:
    """Make sure that *head*, of which the next file is here, or the end, is in this history."""
    behind = history.behind(head)
    digest = behind[0].seal.prev_digest if behind else history.checkpoint.head.digest
    if digest != head.digest:
        raise _Unknown(f"its file {head.number} is not the one that the other side had")


def _folded(history: _History, fork: Head) -> Touched:
    """Return what changed from the fork on in the files that left the spool.

    Not for a directory: a volume's id may have been given away since the fork, on either side,
    and the volumes at the fork are not known here.
    """
    if history.config.image.is_dir():
        first = history.first_behind(fork)
        raise _Unknown(f"files {fork.number + 1} to {first - 1} have left its spool")
    return _find_fold(history, fork)


def _find_fold(history: _History, fork: Head) -> Touched:
    """Return the volumes at a fold's end, and what it knows behind *fork* up to the spool.

    Raises:
        _Unknown: none goes back as far, or the fork is not in its history.
    """
    disk, config, first = history.disk, history.config, history.first_behind(fork)
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
        return fold.volumes, maps.recent
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
