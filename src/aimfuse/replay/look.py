"""Look at a directory that others write into, without following or opening anything.

Nothing here changes a byte, so it stands beside `Disk` and not in it; tests with a simulated
disk put a simulated look in its place.
"""

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Entry:
    """What a name is, itself and not what it may point to; size in bytes, time in Unix ns."""

    kind: str
    inode: int
    size: int
    links: int
    owner: int
    mtime_ns: int

    @property
    def is_file(self) -> bool:
        """Tell whether it is a regular file."""
        return self.kind == "file"


NO_INODE = -1
"""Where nobody tells the inode number: of a store that lies elsewhere."""

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}


def kind_of(mode: int) -> str:
    """Return what the mode says that a name is, in a word."""
    return _KINDS.get(stat.S_IFMT(mode), "device")


class Look:
    """The real look; every method raises `OSError` as the kernel gave it."""

    tells_sizes: ClassVar[bool] = False
    """Whether a list of names comes with the sizes, so that they cost nothing."""

    def scan(self, directory: Path) -> Iterator[str]:
        """Yield the names in the directory, in no order, without holding them all."""
        with os.scandir(directory) as entries:
            for entry in entries:
                yield entry.name

    def sized(self, directory: Path) -> Iterator[tuple[str, int]]:
        """Yield the names in the directory and their bytes, without holding them all."""
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # Gone since it was listed.
                    yield entry.name, entry.stat(follow_symlinks=False).st_size

    def entry(self, path: Path) -> Entry | None:
        """Return what *path* is, or None when nothing has that name (any more)."""
        try:
            info = path.lstat()
        except FileNotFoundError:
            return None
        return Entry(
            kind_of(info.st_mode),
            info.st_ino,
            info.st_size,
            info.st_nlink,
            info.st_uid,
            info.st_mtime_ns,
        )

    def sizes(self, directory: Path, names: Collection[str]) -> dict[str, int]:
        """Return the sizes in bytes of those *names* in the directory that are there."""
        found = {name: self.entry(directory / name) for name in names}
        return {name: entry.size for name, entry in found.items() if entry}

    def own_uid(self) -> int:
        """Return the user id that this process acts as."""
        return os.geteuid()
