"""The directories of a simulated disk: names as programs see them, and as the disk has them.

Every change of names is one unit that a power cut may lose, whatever becomes of the others:
also a rename whose file's creation is lost, or a removal that overtakes a creation. Only the
promise of rename holds: a file that moves between directories is never in neither. On request
changes of the same name keep their order, as on every file system that journals its metadata.
"""

import errno
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.disks.cuts import Choose, Unit

ROOT = 1

Directories = dict[int, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Change:
    """Sets names of one directory to inodes; None removes a name."""

    number: int
    directory: int
    names: tuple[tuple[str, int | None], ...]
    needs: int = 0

    @property
    def unit(self) -> Unit:
        what = ", ".join(f"{name}={inode}" for name, inode in self.names)
        return Unit("name", f"directory {self.directory}: {what}", 2)

    @property
    def touches(self) -> set[str]:
        return {name for name, _inode in self.names}

    def apply(self, directories: Directories) -> None:
        for name, inode in self.names:
            if inode is None:
                directories[self.directory].pop(name, None)
            else:
                directories[self.directory][name] = inode


class SimNames:
    """A tree of directories; inode numbers are never used twice."""

    def __init__(self, durable: Directories | None = None, first_number: int = ROOT + 1) -> None:
        self._durable: Directories = durable or {ROOT: {}}
        self._now: Directories = {inode: dict(names) for inode, names in self._durable.items()}
        self._pending: list[Change] = []
        self._numbers = count(first_number)

    def copy(self) -> "SimNames":
        durable = {inode: dict(names) for inode, names in self._durable.items()}
        other = SimNames(durable, next(self._numbers) + 1)
        other._now = {inode: dict(names) for inode, names in self._now.items()}
        other._pending = list(self._pending)
        return other

    def new_number(self) -> int:
        return next(self._numbers)

    # What programs see.

    def find(self, path: Path) -> int | None:
        """Return the inode at *path*, None if only the last name is missing.

        Raises:
            OSError: a directory on the way is missing or is none.
        """
        return self._walk(self._now, path)

    def find_durable(self, path: Path) -> int | None:
        try:
            return self._walk(self._durable, path)
        except OSError:
            return None

    def is_directory(self, inode: int) -> bool:
        return inode in self._now

    def listdir(self, path: Path) -> list[str]:
        return sorted(self._now[self._directory(path)])

    def reachable(self) -> set[int]:
        """Return the inodes that have a name, now or on the disk."""
        found = self.named()
        for names in self._durable.values():
            found.update(names.values())
        for change in self._pending:
            found.update(inode for _name, inode in change.names if inode)
        return found

    def named(self) -> set[int]:
        """Return the inodes that have a name now."""
        return {inode for names in self._now.values() for inode in names.values()}

    # Changes.

    def set_name(self, path: Path, inode: int | None) -> None:
        self._change(self._directory(path.parent), ((path.name, inode),))

    def make_directory(self, path: Path) -> None:
        inode = self.new_number()
        self.set_name(path, inode)
        self._now[inode] = {}
        self._durable[inode] = {}

    def rename(self, old: Path, new: Path) -> None:
        inode = self.find(old)
        if inode is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(old))
        if self.find(new) == inode:
            return  # Two names of one file: POSIX leaves both.
        source, target = self._directory(old.parent), self._directory(new.parent)
        if source == target:
            self._change(source, ((old.name, None), (new.name, inode)))
            return
        added = self._change(target, ((new.name, inode),))
        self._change(source, ((old.name, None),), needs=added)

    def sync(self, path: Path) -> None:
        """Make the names in one directory durable."""
        directory = self._directory(path)
        mine = [change for change in self._pending if change.directory == directory]
        needed = {change.needs for change in mine}
        for change in [c for c in self._pending if c.directory == directory or c.number in needed]:
            change.apply(self._durable)
            self._pending.remove(change)
            if change.directory != directory:
                self._drop_superseded(change)

    # What the disk holds.

    def units(self) -> Iterator[Unit]:
        for change in self._pending:
            yield change.unit

    def settle(self, choose: Choose, *, in_order: bool) -> "SimNames":
        """Return the tree as a power cut leaves it.

        With *in_order* a change is lost with any earlier one that touched one of its names.
        """
        durable = {inode: dict(names) for inode, names in self._durable.items()}
        waiting = {change.number for change in self._pending}
        touched: defaultdict[int, set[str]] = defaultdict(set)  # By changes that are lost.
        for change in self._pending:
            # Asked in any case, so that the units are always as many as `units` says.
            kept = choose(change.unit) and change.needs not in waiting
            if kept and not (in_order and touched[change.directory].intersection(change.touches)):
                change.apply(durable)
                waiting.discard(change.number)
            else:
                touched[change.directory].update(change.touches)
        return SimNames(durable, next(self._numbers) + 1)

    def _change(
        self, directory: int, names: tuple[tuple[str, int | None], ...], needs: int = 0
    ) -> int:
        change = Change(self.new_number(), directory, names, needs)
        change.apply(self._now)
        self._pending.append(change)
        return change.number

    def _drop_superseded(self, applied: Change) -> None:
        names = {name for name, _inode in applied.names}
        self._pending = [
            change
            for change in self._pending
            if change.directory != applied.directory
            or change.number > applied.number
            or not names.issuperset(name for name, _inode in change.names)
        ]

    def _directory(self, path: Path) -> int:
        inode = self.find(path)
        if inode is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if inode not in self._now:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return inode

    @staticmethod
    def _walk(directories: Directories, path: Path) -> int | None:
        inode: int | None = ROOT
        for name in path.parts[1:]:
            if inode is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            if inode not in directories:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            inode = directories[inode].get(name)
        return inode
