"""What is in a store's history, and how far back it reaches. Changes nothing.

A *set* is what there is of one journal file: the file itself, its undo file, data of volumes
that it removed. States behind file n-1 can be had with set n: undo takes the mirror back, the
file goes forward again to the record. Sets count in one unbroken run that ends at the mirror.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from aimfuse.disk import Disk
from aimfuse.errors import StateLost
from aimfuse.journal.names import (
    SEALED,
    STEM_CHARACTERS,
    UNDO,
    GoneName,
    JournalName,
    UndoName,
    parse,
    parse_kept,
)
from aimfuse.journal.slots import Slots
from aimfuse.replay.look import Look
from aimfuse.replay.state import Json, Phase, StoreState
from aimfuse.units import natural

HISTORY = "history"
FLOOR = "floor"
PRUNED = "what was older has been pruned"
_NUMBER = slice(9, STEM_CHARACTERS)
"""Where in a name the number of its file is."""

_FIRST_UNDO = f"-{0:08d}{UNDO}"
WHY_CHARACTERS_MAX = 500
"""So that a slot never grows beyond the block that it has."""


class KeptSet(NamedTuple):
    """One set; `extra` are the names of its further parts and of removed volumes' data.

    A named tuple: a store that makes a file every second has 600,000 of them in a week.
    """

    name: JournalName
    size_bytes: int = 0
    has_undo: bool = False
    has_redo: bool = False
    extra: tuple[str, ...] = ()

    def files(self) -> tuple[str, ...]:
        """Return the names of all its files, part 0 first."""
        undo = (str(UndoName(self.name)),) if self.has_undo else ()
        redo = (self.name.sealed,) if self.has_redo else ()
        return undo + redo + self.extra

    def gone(self) -> dict[int, str]:
        """Return the data that is kept of removed volumes: its name by volume id."""
        found = {text: parse_kept(text) for text in self.extra}
        return {one.volume: text for text, one in found.items() if isinstance(one, GoneName)}


def list_names(look: Look, history: Path, behind: int = 0) -> dict[int, KeptSet]:
    """Return what `list_kept` does, by one list of the directory, for sets behind file *behind*.

    Where a list of names says no sizes, as on this host, what the files hold counts as nothing.

    Raises:
        OSError: the directory could not be read.
    """
    low = f"{behind:0{_NUMBER.stop - _NUMBER.start}d}"
    if look.tells_sizes:
        sizes = {text: size for text, size in look.sized(history) if text[_NUMBER] > low}
        return _grouped(sorted(sizes), sizes)
    return _grouped(sorted(text for text in look.scan(history) if text[_NUMBER] > low), {})


def list_kept(look: Look, history: Path) -> dict[int, KeptSet]:
    """Return the sets in *history*, also incomplete ones, by the number of their file.

    Every file is looked at, for its size.

    Raises:
        OSError: the directory could not be read.
    """
    sizes = dict(look.sized(history))
    return _grouped(sorted(sizes), sizes)


def _grouped(names: list[str], sizes: Mapping[str, int]) -> dict[int, KeptSet]:
    """Return the sets that *names*, which are in order, belong to."""
    sets: dict[int, KeptSet] = {}
    for stem, group in groupby(names, key=_stem):
        sealed, undo = stem + SEALED, stem + _FIRST_UNDO
        file = parse(sealed)
        if not isinstance(file, JournalName):
            continue
        known = sets.get(file.number)
        if known is not None and known.name.epoch > file.epoch:  # It is of a branch left.
            continue
        texts = list(group)
        if texts == [undo, sealed]:  # As nearly all are.
            held = sizes[undo] + sizes[sealed] if sizes else 0
            sets[file.number] = KeptSet(file, held, has_undo=True, has_redo=True)
            continue
        extra = [text for text in texts if text not in {sealed, undo} and parse_kept(text)]
        if extra or undo in texts or sealed in texts:
            one = KeptSet(file, 0, undo in texts, sealed in texts, tuple(extra))
            held = sum(sizes.get(name, 0) for name in one.files())
            sets[file.number] = one._replace(size_bytes=held)
    return dict(sorted(sets.items()))


def measured(look: Look, history: Path, sets: Iterable[KeptSet]) -> list[KeptSet]:
    """Return *sets* with the sizes of their files, of which those that are gone count as nothing.

    Only those are looked at that the list did not say.

    Raises:
        OSError: the directory could not be read.
    """
    files = [(one, () if one.size_bytes else one.files()) for one in sets]
    sizes = look.sizes(history, [name for _one, names in files for name in names])
    return [
        one._replace(size_bytes=one.size_bytes or sum(sizes.get(name, 0) for name in names))
        for one, names in files
    ]


def _stem(text: str) -> str:
    """Return the part of a name that those of one set have in common."""
    return text[:STEM_CHARACTERS]


def with_file(one: KeptSet, name: JournalName | UndoName | GoneName, size: int) -> KeptSet:
    """Return the set with one more file of *size* bytes in it."""
    held = one.size_bytes + size
    if isinstance(name, JournalName):
        return one._replace(size_bytes=held, has_redo=True)
    if isinstance(name, UndoName) and name.part == 0:
        return one._replace(size_bytes=held, has_undo=True)
    return one._replace(size_bytes=held, extra=(*one.extra, str(name)))


@dataclass(frozen=True, slots=True)
class Floor:
    """Files up to `number` were applied without an undo file, or may have been; and why.

    While `number` is above the mirror's position such a file may be half applied. With `is_off`
    every file is applied without one.
    """

    number: int = 0
    why: str = ""
    is_off: bool = False

    def to_json(self) -> Json:
        """Return the form that the slots carry."""
        return {"number": self.number, "why": self.why[:WHY_CHARACTERS_MAX], "off": self.is_off}


def floor_slots(disk: Disk, history: Path) -> Slots:
    """Return where the floor is kept."""
    return Slots(disk, history / FLOOR, "floor")


def read_floor(slots: Slots, state: StoreState) -> Floor:
    """Return the floor; where it is lost the next file may have been applied without undo.

    Raises:
        OSError: it could not be read.
    """
    try:
        data = slots.read()
        if data is None:
            return Floor()
        return Floor(natural(data["number"]), str(data["why"]), bool(data["off"]))
    except (StateLost, KeyError, TypeError, ValueError):
        number = state.head.number + 1 if state.head else 0
        return Floor(number, "what was known of it was damaged")


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a store's history goes: to the end of file `base`, and why no further.

    `sets` lead back there from the mirror, newest first. `open_set` is there while the
    next file is being applied, or was when somebody was interrupted: the mirror may be in it.
    """

    base: int
    why: str
    sets: tuple[KeptSet, ...]
    open_set: KeptSet | None


def find_reach(state: StoreState, kept: Mapping[int, KeptSet], floor: Floor) -> Reach:
    """Return how far back the states of a store that has a mirror reach."""
    assert state.head is not None
    number: int = state.head.number
    first, why = find_first(state, floor)
    sets: list[KeptSet] = []
    while number > first and not floor.is_off:
        one = kept.get(number)
        if one is None or not (one.has_undo and one.has_redo):
            why = PRUNED if one is None else "a file of it is gone"
            break
        sets.append(one)
        number -= 1
    open_set = kept.get(state.head.number + 1)
    if open_set is not None and not open_set.has_undo:
        open_set = None
    return Reach(number, why, tuple(sets), open_set)


def find_first(state: StoreState, floor: Floor) -> tuple[int, str]:
    """Return the file behind which there can be states at the earliest, and why not before."""
    sync = state.sync
    first = max(sync.to or 0, sync.origin.number) if sync else 0
    if floor.number > first or floor.is_off:
        return max(first, floor.number), floor.why
    return first, "a copy made the mirror what it was there; in front of it there is no state"


def is_whole(state: StoreState) -> bool:
    """Tell whether the mirror is at one position, but for a file that is being applied."""
    if state.head is None or state.phase not in {Phase.CONSISTENT, Phase.HALTED} or state.doubt:
        return False
    sync = state.sync
    if state.phase is Phase.HALTED:  # Halting changes no data: look where it was.
        return bool(sync and sync.to is not None and state.head.number >= sync.to)
    return True
