"""The names of AIM files: one strict form each, sorting in the order of the journal."""

import re
from dataclasses import dataclass

from aimfuse.units import Epoch, FileNumber

SEALED = ".aim"
OPEN = ".open"
PART = ".part"

_JOURNAL = re.compile(r"([0-9]{8})-([0-9]{12})")
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
