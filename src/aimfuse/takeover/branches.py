"""Branches: what an old source wrote behind the fork, kept when its image became a mirror.

``branches/EPOCH-SEQ/`` in the state directory, named by the last record: ``branch.json``, the
images as they were in ``volumes/``, and the journal files behind the fork in ``tail/``. It is
built as ``EPOCH-SEQ.part`` and gets its name once it is whole and durable.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimfuse.disk import Disk, publish, read_file
from aimfuse.errors import StateLost, UsageError
from aimfuse.mountpoint import check_takes_directory
from aimfuse.takeover.tail import Tail
from aimfuse.units import MIB, format_bytes

BRANCHES = "branches"
PART = ".part"
NOTE = "branch.json"
VERSION = 1
_NAME = re.compile(r"\d+-\d+")
_NOTE_BYTES_MAX = 16 * MIB
_COPY_BYTES = 64 * MIB
_RESERVE_BYTES = 64 * MIB

Say = Callable[[str], None]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Branch:
    """A kept branch: where it lies, and what its note says."""

    name: str
    path: Path
    about: Json

    @property
    def volumes(self) -> list[Path]:
        """Return the kept images."""
        return [self.path / "volumes" / str(name) for name in self.about["volumes"]]


def branch_name(tail: Tail) -> str:
    """Return the name of the branch that ends where *tail* does."""
    return f"{tail.end.epoch}-{tail.end.seq}"


def about(tail: Tail, names: list[str]) -> Json:
    """Return what is to be known of a branch; times in Unix ns, sizes in bytes."""
    return {
        "version": VERSION,
        "name": branch_name(tail),
        "fork": tail.fork.to_json(),
        "end": tail.end.to_json(),
        "writes": tail.writes,
        "bytes": tail.bytes,
        "differing_bytes": tail.differing_bytes,
        "is_whole": tail.differs is None,
        "is_counted": tail.is_counted,
        "files": len(tail.files),
        "first_ns": tail.first_ns,
        "last_ns": tail.last_ns,
        "volumes": names,
    }


def count_writes(writes: int, *, is_counted: object = True) -> str:
    """Return how many writes a branch has, for people; not *is_counted*: there may be more."""
    if not (is_counted or writes):
        return "an unknown number of writes"
    return f"{'' if is_counted else 'at least '}{writes:,} write{'s' * (writes != 1)}"


def written(about: Json) -> str:
    """Return how many writes the branch has that *about* tells of, for people."""
    is_counted = about.get("is_counted", not about.get("is_whole"))
    return count_writes(int(about["writes"]), is_counted=is_counted)


def list_branches(disk: Disk, state_dir: Path) -> list[Branch]:
    """Return the kept branches, oldest first.

    Raises:
        StateLost: the note of one is damaged.
        OSError: the disk failed.
    """
    place = state_dir / BRANCHES
    names = disk.listdir(place) if disk.exists(place) else []
    found = [_read(disk, place / name) for name in names if _NAME.fullmatch(name)]
    return sorted(found, key=lambda one: (one.about["last_ns"], one.name))


def find_branch(disk: Disk, state_dir: Path, name: str | None) -> Branch:
    """Return the branch *name*, or the only one if there is no *name*.

    Raises:
        UsageError: there is none of that name, or none at all, or one has to be named.
    """
    found = list_branches(disk, state_dir)
    chosen = [one for one in found if name in {None, one.name}]
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(one.name for one in found) or "none"
    problem = f"no branch is called {name!r}" if name else "which branch?"
    raise UsageError(problem if found else "no branch is kept here", hint=f"Known: {known}.")


def keep(disk: Disk, state_dir: Path, images: dict[str, Path], tail: Tail, say: Say) -> Path:
    """Keep the *images* by name and the journal files behind the fork; return where; blocks.

    Raises:
        OSError: a disk failed, or is full; calling again begins the branch anew.
    """
    place = state_dir / BRANCHES
    target = place / branch_name(tail)
    if disk.exists(target):
        return target
    part = target.with_name(target.name + PART)
    _make(disk, place)
    remove_tree(disk, part)
    for path in (part, part / "volumes", part / "tail"):
        _make(disk, path)
    for name, image in images.items():
        say(f"{name}: keeping it as it is, {format_bytes(image.stat().st_size)}")
        copy_image(disk, image, part / "volumes" / name)
    for path in tail.files:
        _take(disk, path, part / "tail" / path.name)
    for path in (part / "volumes", part / "tail"):
        disk.sync_dir("branch:sync_dir", path)
    publish(disk, "branch", part / NOTE, json.dumps(about(tail, list(images))).encode())
    disk.rename("branch:rename", part, target)
    disk.sync_dir("branch:sync_dir", place)
    return target


def export(disk: Disk, branch: Branch, output: Path) -> list[Path]:
    """Copy the images of *branch* to *output*: a file for one, else a directory; blocks.

    Raises:
        UsageError: there is something already, or no place for it.
        OSError: the disk failed; what is left is ``OUTPUT.part``.
    """
    if disk.exists(output):
        raise UsageError(f"{output} is there already", hint="Choose another --output.")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output.parent} is not there", hint="Make the directory first.")
    part = output.with_name(output.name + PART)
    remove_tree(disk, part)
    volumes = branch.volumes
    if len(volumes) == 1 and not branch.about.get("is_directory"):
        copy_image(disk, volumes[0], part)
        found = [output]
    else:
        check_takes_directory(output)
        _make(disk, part)
        for one in volumes:
            copy_image(disk, one, part / one.name)
        disk.sync_dir("branch:sync_dir", part)
        found = [output / one.name for one in volumes]
    disk.rename("branch:rename", part, output)
    disk.sync_dir("branch:sync_dir", output.absolute().parent)
    return found


def discard(disk: Disk, branch: Branch) -> None:
    """Remove *branch*; a crash leaves what the next removal takes along."""
    gone = branch.path.with_name(branch.path.name + PART)
    remove_tree(disk, gone)
    disk.rename("branch:discard", branch.path, gone)
    disk.sync_dir("branch:sync_dir", gone.parent)
    remove_tree(disk, gone)


def copy_image(disk: Disk, source: Path, target: Path) -> None:
    """Copy an image so that holes stay holes, sharing its blocks where that can be; durable."""
    reader = disk.open("branch:read", source, os.O_RDONLY)
    try:
        mode = stat.S_IMODE(os.fstat(reader).st_mode) & 0o666
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        writer = disk.open("branch:create", target, flags, mode or 0o600)
        try:
            if not disk.clone("branch:clone", reader, writer):
                _copy(disk, reader, writer)
            disk.fsync("branch:sync", writer)
        finally:
            disk.close(writer)
    finally:
        disk.close(reader)


def remove_tree(disk: Disk, path: Path) -> None:
    """Remove a directory with all that is in it, or a file; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        for name in disk.listdir(path):
            remove_tree(disk, path / name)
        disk.rmdir("branch:rmdir", path)
    elif disk.exists(path):
        disk.unlink("branch:unlink", path)


def _take(disk: Disk, path: Path, target: Path) -> None:
    """Give a journal file a second name, or copy it where the spool is on another disk."""
    try:
        disk.link("branch:link", path, target)
    except OSError as exc:
        if exc.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK}:
            raise
        copy_image(disk, path, target)


def _copy(disk: Disk, reader: int, writer: int) -> None:
    size = disk.size(reader)
    disk.truncate("branch:truncate", writer, size)
    for low, high in disk.data_ranges(reader, 0, size):
        at = low
        while at < high:
            count = disk.copy_range("branch:copy", reader, writer, at, min(_COPY_BYTES, high - at))
            if not count:
                return
            at += count


def check_room(disk: Disk, state_dir: Path, images: dict[str, Path]) -> None:
    """Refuse what `keep` could not do for want of room.

    Raises:
        UsageError: there is none. Nothing was changed.
    """
    place, need = state_dir / BRANCHES, 0
    _make(disk, place)
    for path in images.values():
        fd = disk.open("branch:look", path, os.O_RDONLY)
        try:
            need += disk.allocated(fd)
        finally:
            disk.close(fd)
    free = disk.free_bytes(place)
    if free < need + _RESERVE_BYTES and not _can_clone(disk, place, images):
        raise UsageError(
            f"keeping what this side wrote takes up to {format_bytes(need)}; {place} has "
            f"{format_bytes(free)} free",
            hint="Make room there, or give it up with --discard.",
        )


def _can_clone(disk: Disk, place: Path, images: dict[str, Path]) -> bool:
    """Try whether the file system shares blocks, with the first image."""
    trial = place / f"trial{PART}"
    for path in images.values():
        reader = disk.open("branch:read", path, os.O_RDONLY)
        try:
            writer = disk.open("branch:create", trial, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                return disk.clone("branch:clone", reader, writer)
            finally:
                disk.close(writer)
                disk.unlink("branch:unlink", trial)
        finally:
            disk.close(reader)
    return True


def _make(disk: Disk, path: Path) -> None:
    if not disk.exists(path):
        disk.mkdir("branch:mkdir", path)


def _read(disk: Disk, path: Path) -> Branch:
    try:
        found = json.loads(read_file(disk, path / NOTE, _NOTE_BYTES_MAX))
        found["volumes"], found["last_ns"] = list(found["volumes"]), int(found["last_ns"])
    except FileNotFoundError as exc:
        raise StateLost(path, f"{NOTE} is missing") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise StateLost(path, f"{NOTE} is damaged: {exc!r}") from exc
    return Branch(path.name, path, found)
