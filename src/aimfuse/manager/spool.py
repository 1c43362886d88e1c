"""How much of a journal lies in a spool behind a position, seen from outside.

A hundred thousand files may lie there, and a look must not take long. Names are listed once.
Sizes are asked for only where nobody has added them up: sealed files never change, so a sum
over the same names, however old, still holds.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError
from aimfuse.journal.header import Seal
from aimfuse.journal.names import OPEN, SEALED, JournalName, parse
from aimfuse.journal.reader import read_header
from aimfuse.units import Epoch, FileNumber

_STEM = str(JournalName(Epoch(0), FileNumber(0)))
_DASH = _STEM.index("-")


@dataclass(frozen=True, slots=True)
class KnownSum:
    """The *bytes* of *files* files in an unbroken row from number *first* to *last*."""

    first: int
    last: int
    files: int
    bytes: int


class SpoolFiles:
    """The sealed files of a spool, by their names; sizes in bytes."""

    def __init__(
        self,
        directory: Path,
        sealed: Iterable[str] = (),
        *,
        is_open: bool = False,
        known: Iterable[KnownSum] = (),
    ) -> None:
        """Describe *directory* by the names in it; *is_open*: an unfinished file is there."""
        self.directory = directory
        self.is_open = is_open
        self._sealed = list(sealed)
        self._known = tuple(known)

    @property
    def files(self) -> int:
        """Return how many sealed files there are."""
        return len(self._sealed)

    @cached_property
    def newest(self) -> JournalName | None:
        """Return the name of the newest sealed file."""
        return _parsed(max(self._sealed, default=""))

    @cached_property
    def oldest(self) -> JournalName | None:
        """Return the name of the oldest sealed file."""
        return _parsed(min(self._sealed, default=""))

    @cached_property
    def bytes(self) -> int:
        """Return what the sealed files measure together."""
        if self.newest is not None and self.oldest is not None:
            here = (self.oldest.number, self.newest.number, self.files)
            for one in self._known:
                if (one.first, one.last, one.files) == here:
                    return one.bytes
        return self._sizes(self._sealed)

    def behind(self, number: int) -> tuple[int, int]:
        """Return how many sealed files come after file *number*, and their bytes."""
        if self.newest is None or self.oldest is None or number >= self.newest.number:
            return 0, 0
        if number < self.oldest.number:
            return self.files, self.bytes
        names = self._after(number)
        return len(names), self._sizes(names)

    def oldest_time_ns(self, number: int) -> int | None:
        """Return when the oldest record after file *number* was made, None without one."""
        names = self._after(number)
        while names:  # The first one usually tells; only files without records go on.
            name = min(names)
            if (seal := self.seal(name)) and seal.record_count:
                return seal.first_time_ns
            names.remove(name)
        return None

    def seal(self, name: str) -> Seal | None:
        """Return what a file's header says it holds, None where it cannot be read."""
        try:
            return read_header(Disk(), self.directory / name)[1]
        except (OSError, AimfuseError):
            return None

    def _after(self, number: int) -> list[str]:
        lowest = f"{number:0{len(_STEM) - _DASH - 1}d}{SEALED}"
        return [name for name in self._sealed if name[_DASH + 1 :] > lowest]

    def _sizes(self, names: Iterable[str]) -> int:
        try:
            place = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            return sum(_size(name, place) for name in names)
        finally:
            os.close(place)


def list_spool(directory: Path, known: Iterable[KnownSum] = ()) -> SpoolFiles:
    """Look at a spool; one that cannot be listed counts as empty."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - 100,000 names: no Path for each
    except OSError:
        return SpoolFiles(directory)
    length = len(_STEM) + len(SEALED)
    sealed = [one for one in names if len(one) == length and one.endswith(SEALED)]
    is_open = any(isinstance(parse(one, OPEN), JournalName) for one in names if one.endswith(OPEN))
    return SpoolFiles(directory, sealed, is_open=is_open, known=known)


def _parsed(name: str) -> JournalName | None:
    found = parse(name)
    return found if isinstance(found, JournalName) else None


def _size(name: str, place: int) -> int:
    try:
        return os.stat(name, dir_fd=place).st_size
    except OSError:  # Released since it was listed.
        return 0
