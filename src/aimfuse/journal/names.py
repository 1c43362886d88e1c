"""The names of AIM files: one strict form each, sorting in the order of the journal."""

import re
from dataclasses import dataclass

from aimfuse.units import Epoch, FileNumber

SEALED = ".aim"
OPEN = ".open"
PART = ".part"
UNDO = ".undo"
GONE = ".gone"

EPOCH_MAX = 10**8 - 1
NUMBER_MAX = 10**12 - 1
"""The highest that a name has digits for."""

STEM_CHARACTERS = 21
"""Of every name that belongs to one journal file."""

_JOURNAL = re.compile(r"([0-9]{8})-([0-9]{12})")
_PARTED = re.compile(r"([0-9]{8}-[0-9]{12})-([0-9]{8})")
_SYNC = re.compile(r"sync-([0-9a-f]{16})-([0-9]{8})")


@dataclass(frozen=True, slots=True, order=True)
class JournalName:
    """Names journal file *number*, written in *epoch*."""

    epoch: Epoch
    number: FileNumber

    def __str__(self) -> str:
        """Return the name without its suffix."""
        return f"{self.epoch:08d}-{self.number:012d}"

    @property
    def sealed(self) -> str:
        """Return the name of the finished file, the only form that ever leaves the spool."""
        return f"{self}{SEALED}"

    @property
    def open(self) -> str:
        """Return the name while the file is being made ready or written."""
        return f"{self}{OPEN}"


@dataclass(frozen=True, slots=True, order=True)
class SyncName:
    """Names file *index* (from 0) of the sync *sync_id*."""

    sync_id: int
    index: int

    def __str__(self) -> str:
        """Return the name without its suffix."""
        return f"sync-{self.sync_id:016x}-{self.index:08d}"

    @property
    def sealed(self) -> str:
        """Return the file's name in an inbox."""
        return f"{self}{SEALED}"


@dataclass(frozen=True, slots=True, order=True)
class UndoName:
    """Names part *part* (from 0) of what undoes journal file *file*."""

    file: JournalName
    part: int = 0

    def __str__(self) -> str:
        """Return the undo file's name in a history."""
        return f"{self.file}-{self.part:08d}{UNDO}"


@dataclass(frozen=True, slots=True, order=True)
class GoneName:
    """Names the data of the volume with id *volume*, which journal file *file* removed."""

    file: JournalName
    volume: int

    def __str__(self) -> str:
        """Return the data's name in a history."""
        return f"{self.file}-{self.volume:08d}{GONE}"


def parse_kept(name: str) -> JournalName | UndoName | GoneName | None:
    """Return what a name in a history says, or None when it is not one of ours."""
    for suffix in (UNDO, GONE):
        if name.endswith(suffix) and (match := _PARTED.fullmatch(name[: -len(suffix)])):
            file = parse(match[1] + SEALED)
            assert isinstance(file, JournalName)
            kind = UndoName if suffix == UNDO else GoneName
            return kind(file, int(match[2]))
    found = parse(name)
    return found if isinstance(found, JournalName) else None


def parse(name: str, suffix: str = SEALED) -> JournalName | SyncName | None:
    """Return what a file name says, or None when it is not one of ours."""
    if not name.endswith(suffix):
        return None
    stem = name[: -len(suffix)]
    if match := _JOURNAL.fullmatch(stem):
        return JournalName(Epoch(int(match[1])), FileNumber(int(match[2])))
    if match := _SYNC.fullmatch(stem):
        return SyncName(int(match[1], 16), int(match[2]))
    return None
