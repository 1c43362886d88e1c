"""How much of a journal lies in a spool behind a position, seen from outside."""

from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError
from aimfuse.journal.header import Seal
from aimfuse.journal.names import JournalName
from aimfuse.journal.reader import read_header
from aimfuse.journal.spool import open_names, sealed_names


@dataclass(frozen=True, slots=True)
class SpoolFiles:
    """The sealed files of a spool in their order, with their sizes in bytes."""

    directory: Path
    sealed: tuple[tuple[JournalName, int], ...]
    open: tuple[JournalName, ...]

    @property
    def newest(self) -> JournalName | None:
        """Return the name of the newest sealed file."""
        return self.sealed[-1][0] if self.sealed else None

    @property
    def bytes(self) -> int:
        """Return what the sealed files measure together."""
        return sum(size for _, size in self.sealed)

    def behind(self, number: int) -> tuple[int, int]:
        """Return how many sealed files come after file *number*, and their bytes."""
        sizes = [size for name, size in self.sealed if name.number > number]
        return len(sizes), sum(sizes)

    def oldest_time_ns(self, number: int) -> int | None:
        """Return when the oldest record after file *number* was made, None without one."""
        for name, _ in self.sealed:
            if name.number > number and (seal := self.seal(name)) and seal.record_count:
                return seal.first_time_ns
        return None

    def seal(self, name: JournalName) -> Seal | None:
        """Return what a file's header says it holds, None where it cannot be read."""
        try:
            return read_header(Disk(), self.directory / name.sealed)[1]
        except (OSError, AimfuseError):
            return None


def list_spool(directory: Path) -> SpoolFiles:
    """Look at a spool; one that cannot be listed counts as empty."""
    disk = Disk()
    try:
        names = sealed_names(disk, directory)
        unfinished = open_names(disk, directory)
    except OSError:
        return SpoolFiles(directory, (), ())
    sized = [(name, _size(directory / name.sealed)) for name in names]
    return SpoolFiles(directory, tuple(sized), tuple(unfinished))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # Released since it was listed.
        return 0
