"""What has left the spool unsent for one destination: up to which file, and what it changed.

Beside the destination's cursor: the slots ``fold.0`` and ``.1``, and the maps that they name.
One writer, the driver; it writes under the retention lock, and whoever reads the maps holds
that too. The maps are durable before the slots name them, and the slots before a file goes.

Two maps, one behind the other: `old` is of the files (since, mid], `recent` of (mid, through].
A copy under way has taken over what lies up to its own start; with `recent` it learns exactly
what came behind that, and `old` is there should it have to begin anew.
"""

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import StateLost
from aimfuse.journal.dirty import DirtyMap, read_map, write_map
from aimfuse.journal.journal import Head
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.slots import Slots, State
from aimfuse.units import FileNumber, VolumeId

FOLD = "fold"
_MAP_SUFFIX = ".map"


@dataclass(frozen=True, slots=True)
class Fold:
    """The numbers, without the maps; all zero when nothing is folded.

    `head` and `volumes` are of the position `through`; None when they could not be read, and
    then no mirror can be brought there by the maps.
    """

    since: FileNumber = FileNumber(0)
    mid: FileNumber = FileNumber(0)
    through: FileNumber = FileNumber(0)
    head: Head | None = None
    volumes: tuple[VolumeEntry, ...] = ()
    old_bytes: int = 0
    recent_bytes: int = 0
    generation: int = 0

    def covers(self, number: int) -> bool:
        """Tell whether the maps hold all that a mirror at file *number* lacks up to `through`."""
        return self.since <= number and self.head is not None

    def dirty_bytes(self, number: int) -> int:
        """Return how much a mirror at file *number* lacks, at most."""
        return self.recent_bytes if number >= self.mid else self.old_bytes + self.recent_bytes


@dataclass(slots=True)
class FoldMaps:
    """The two maps; see the module."""

    old: DirtyMap = field(default_factory=DirtyMap)
    recent: DirtyMap = field(default_factory=DirtyMap)


def advance(
    fold: Fold, maps: FoldMaps, pin: int, added: DirtyMap, end: tuple[Head, tuple[VolumeEntry, ...]]
) -> Fold:
    """Return the fold after the files behind it up to *end* were added; change *maps* so.

    *pin* is up to where the destination has everything, or its copy has taken everything
    over. *added* is of the files from there, or from `through` if that is higher.
    """
    head, volumes = end
    if pin > fold.through or not fold.through:  # Between them lies what no map is of.
        since = mid = FileNumber(pin)
        maps.old, maps.recent = DirtyMap(), added
    elif pin == fold.through:
        since, mid = fold.since, FileNumber(pin)
        maps.old.add_all(maps.recent)
        maps.recent = added
    else:
        since, mid = fold.since, fold.mid
        maps.recent.add_all(added)
    kept = {one.volume for one in volumes}
    for one in (maps.old, maps.recent):
        for volume in one.volumes() - kept:
            one.forget(volume)
    sizes = maps.old.dirty_bytes(), maps.recent.dirty_bytes()
    return Fold(since, mid, head.number, head, volumes, *sizes, fold.generation)


class FoldFile:
    """The fold of one destination on disk."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        """Use the destination's *directory*."""
        self._disk = disk
        self._directory = directory
        self._slots = Slots(disk, directory / FOLD, FOLD)

    def read(self) -> Fold:
        """Return the numbers; all zero if nothing was ever folded.

        Raises:
            StateLost: the slots are unreadable, or hold something else.
            OSError: they could not be read.
        """
        state = self._slots.read() if self._slots.exists() else None
        try:
            return Fold() if state is None else _load(state)
        except (KeyError, ValueError, TypeError) as exc:
            hint = f"The fold lacks or spoils {exc}."
            raise StateLost(self._directory / FOLD, hint=hint) from exc

    def read_maps(self, fold: Fold) -> FoldMaps:
        """Return the maps that *fold* names.

        Raises:
            CorruptRecord: one is damaged.
            OSError: one could not be read.
        """
        if not fold.through:
            return FoldMaps()
        old, recent = self._paths(fold.generation)
        return FoldMaps(read_map(self._disk, old), read_map(self._disk, recent))

    def write(self, fold: Fold, maps: FoldMaps) -> Fold:
        """Make *fold* with *maps* the newest, durable when this returns.

        Raises:
            OSError: the one before still counts; what was left is replaced the next time.
        """
        fold = replace(fold, generation=fold.generation + 1)
        for path, one in zip(self._paths(fold.generation), (maps.old, maps.recent), strict=True):
            write_map(self._disk, path, one)
        self._slots.write(_dump(fold))
        self._forget_others(fold.generation)
        return fold

    def clear(self, fold: Fold) -> None:
        """Forget the fold: its destination has everything by now."""
        self._slots.write(_dump(Fold(generation=fold.generation)))
        self._forget_others(-1)

    def _paths(self, generation: int) -> tuple[Path, Path]:
        old, recent = (f"{FOLD}-{generation}-{which}{_MAP_SUFFIX}" for which in ("old", "recent"))
        return self._directory / old, self._directory / recent

    def _forget_others(self, generation: int) -> None:
        kept = {path.name for path in self._paths(generation)}
        for name in self._disk.listdir(self._directory):
            if name.startswith(f"{FOLD}-") and name not in kept:
                with contextlib.suppress(OSError):  # It is only in the way.
                    self._disk.unlink("fold:unlink", self._directory / name)


def _dump(fold: Fold) -> State:
    head = fold.head
    return {
        "since": fold.since,
        "mid": fold.mid,
        "through": fold.through,
        "head": head.to_json() if head else None,
        "volumes": [[one.volume, one.name, one.size_bytes] for one in fold.volumes],
        "old_bytes": fold.old_bytes,
        "recent_bytes": fold.recent_bytes,
        "maps": fold.generation,
    }  # fmt: skip


def _load(state: State) -> Fold:
    head = state["head"]
    return Fold(
        FileNumber(int(state["since"])),
        FileNumber(int(state["mid"])),
        FileNumber(int(state["through"])),
        Head.from_json(head) if head else None,
        tuple(VolumeEntry(VolumeId(one), name, size) for one, name, size in state["volumes"]),
        int(state["old_bytes"]),
        int(state["recent_bytes"]),
        int(state["maps"]),
    )  # fmt: skip
