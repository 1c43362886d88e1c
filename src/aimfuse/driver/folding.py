"""Fold journal files that one destination has not got into what it will have to copy instead.

Durable before the files go. A file that cannot be read, or is gone, or says that the history is
broken, breaks the row: what is known begins behind it, and a mirror in front of it will need a
copy of everything.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import JournalError, StateLost
from aimfuse.journal.contents import fold_into, read_contents
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.fold import Fold, FoldFile, FoldMaps, advance
from aimfuse.journal.journal import Head
from aimfuse.journal.names import JournalName
from aimfuse.journal.records import VolumeEntry
from aimfuse.units import FileNumber

log = logging.getLogger(__name__)


def fold_files(
    disk: Disk, spool: Path, directory: Path, pin: int, names: Sequence[JournalName]
) -> Fold:
    """Add *names*, in order, to the fold in a destination's *directory*; durable, blocks.

    The caller holds the retention lock. *pin* is up to where the destination has everything,
    or its copy has taken everything over; the names are those behind it, and behind what is
    folded already, that are to go.

    Raises:
        OSError: the disk failed; what was folded before still counts, and no file may go.
    """
    file = FoldFile(disk, directory)
    fold, maps, known = _read(file, directory)
    row = base = max(pin, known)
    begins: int | None = None
    added = DirtyMap()
    end: tuple[Head, tuple[VolumeEntry, ...]] | None = None
    for name in names:
        if name.number != row + 1:
            begins, added = name.number - 1, DirtyMap()
        row = name.number
        try:
            contents = read_contents(disk, spool / name.sealed)
            end = fold_into(added, [contents])
            if contents.is_broken:  # In front of it the image was another one.
                begins, added = name.number, DirtyMap()
        except (JournalError, FileNotFoundError) as exc:
            log.error("%s: what %s changed is not known: %s", directory.name, name, exc)  # noqa: TRY400
            begins, added, end = name.number, DirtyMap(), None
    if begins is not None:
        fold, maps = Fold(generation=fold.generation), FoldMaps()
    if end is None:
        at = FileNumber(row)
        fold = Fold(at, at, at, generation=fold.generation)
    else:
        pin = pin if fold.through else base
        fold = advance(fold, maps, pin if begins is None else begins, added, end)
    return file.write(fold, maps)


def folded_through(disk: Disk, directory: Path) -> int:
    """Return up to which file a destination's files were folded, 0 for none or unknown."""
    try:
        return int(FoldFile(disk, directory).read().through)
    except (StateLost, OSError):
        return 0


def forget_fold(disk: Disk, directory: Path, pin: int) -> None:
    """Forget a fold that a destination, which has everything up to *pin*, does not need.

    The caller holds the retention lock, and knows that no copy is under way.

    Raises:
        OSError: it stays; calling again tries again.
    """
    file = FoldFile(disk, directory)
    try:
        fold = file.read()
    except StateLost:
        return
    if 0 < fold.through <= pin:
        file.clear(fold)


def _read(file: FoldFile, directory: Path) -> tuple[Fold, FoldMaps, int]:
    """Return the fold so far, and up to where it reached, whether its maps are sound or not."""
    try:
        fold = file.read()
    except StateLost as exc:
        log.error("%s: its fold begins anew: %s", directory.name, exc)  # noqa: TRY400
        return Fold(), FoldMaps(), 0
    try:
        return fold, file.read_maps(fold), int(fold.through)
    except (JournalError, FileNotFoundError) as exc:
        log.error("%s: its fold begins anew: %s", directory.name, exc)  # noqa: TRY400
        return Fold(generation=fold.generation), FoldMaps(), int(fold.through)
