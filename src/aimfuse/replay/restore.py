"""Restore: a point of the past as new files, whole under their name or not there at all."""

import contextlib
import errno
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import (
    BusyError,
    JournalError,
    OutOfReach,
    StoreError,
    TransportError,
    UsageError,
)
from aimfuse.journal.excerpt import Excerpts
from aimfuse.journal.reader import OwnReader
from aimfuse.mountpoint import (
    VIEW_FSTYPE,
    check_takes_directory,
    is_volumes_alone,
    mount_above,
    serving_mount,
)
from aimfuse.replay.access import Access
from aimfuse.replay.hold import pinned, readable
from aimfuse.replay.look import Look
from aimfuse.replay.onward import find_steps
from aimfuse.replay.past import TRIES_MAX, look_at
from aimfuse.replay.point import Finder, Point, Wanted
from aimfuse.replay.rebuild import HELD_MAX, Piece, Reads, Rebuild, Report
from aimfuse.replay.resume import Resume
from aimfuse.replay.state import Json

PART = ".part"
STAGE = ".stage"


@dataclass(frozen=True, slots=True)
class Request:
    """What to restore: the volume of that name or all of them, *at* a point, to *output*.

    Several volumes, or *as_directory*, make a directory of it. With *force* an existing file
    is replaced.
    """

    output: Path
    at: Wanted
    volume: str | None = None
    as_directory: bool = False
    force: bool = False


def restore(
    disk: Disk,
    store: Path,
    request: Request,
    report: Report,
    *,
    dry_run: bool = False,
    look: Look | None = None,
) -> Json:
    """Restore from a store of this host, also while it is replayed; as for `restore_from`."""
    access = Access(disk, look or Look(), store, str(store), pinned)
    return restore_from(access, request, report, dry_run=dry_run)


def restore_from(
    access: Access, request: Request, report: Report, *, dry_run: bool = False
) -> Json:
    """Restore from a store, also while it is replayed; return what was done, as JSON.

    Raises:
        UsageError: the output is there already or cannot be, or no such volume was there.
        OutOfReach: the past does not go back to that point.
        BusyError: the replayer is at something that cannot be read past; try again.
        StoreError: the store has no consistent mirror.
        JournalError: a file of the history is damaged.
        OSError: a disk failed or is full. In all cases there is nothing at the output.
    """
    disk, look, store = access.disk, access.look, access.path
    _check_output(disk, look, store, request)
    with access.hold(disk, store) as pin, contextlib.ExitStack() as held:
        for tries in range(TRIES_MAX):
            past = readable(disk, store, look, held)
            assert past.state.head is not None
            onward = find_steps(disk, store, past.state.head)
            point = Finder(disk, past, onward).find(request.at)
            if pin:
                pin.move(point.base)
            reading = _read_excerpts if access.is_far else _read_own
            rebuild = Rebuild(disk, past, point, look, copiers=access.copiers, reading=reading)
            try:
                pieces = _chosen(rebuild, request)
                if _is_directory(request, pieces):
                    check_takes_directory(request.output)
                said = _describe(store, request, rebuild, pieces)
                if not dry_run:
                    with _naming_what_is_full(request.output):
                        _write(access, request, rebuild, pieces, report)
            except FileNotFoundError:  # A volume was removed right now: it is in the history.
                if tries == TRIES_MAX - 1:
                    raise
                continue
            except (JournalError, StoreError):
                if pin is None or access.is_far:
                    _check_pruned(access, point, is_held=pin is not None)
                raise
            finally:
                rebuild.close()
            return said | {"dry_run": dry_run}
    raise AssertionError


@contextlib.contextmanager
def _naming_what_is_full(output: Path) -> Iterator[None]:
    """Have an error say where there is no room: what was written to was a descriptor."""
    try:
        yield
    except OSError as exc:
        if exc.filename is None and exc.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            exc.filename = str(output)
        raise


def _read_own(_volumes: Collection[int]) -> Reads:
    """Read undo files whole, by their digest: that is the fastest where they are on this host."""
    return Reads(OwnReader(HELD_MAX).read)


def _read_excerpts(volumes: Collection[int]) -> Reads:
    """Read only what is needed of them, for all of it has to come over a line."""
    read = Excerpts(volumes).read
    return Reads(read, read)


def _check_pruned(access: Access, point: Point, *, is_held: bool) -> None:
    """Say it, if what was read has been pruned meanwhile, and what would have kept it."""
    past = look_at(access.disk, access.path, access.look)
    if past.reach is None or past.reach.base <= point.base:
        return
    what = "what was needed has been pruned while it was read"
    if not is_held:
        raise OutOfReach(
            f"{what}: this account cannot hold it",
            hint="Let it write into the store's inbox/, or ask for a later point.",
        )
    raise OutOfReach(
        f"{what}: the store keeps no more for who reads it from afar",
        hint="Ask for a later point. What it allows is in its store.toml: keep, keep_size and "
        "reader_max; where its disk is short of room, nothing.",
    )


def _check_output(disk: Disk, look: Look, store: Path, request: Request) -> None:
    output = request.output
    parent = look.entry(output.parent.resolve())
    if parent is None or parent.kind != "directory":
        raise UsageError(f"{output.parent} is no directory", hint="Make it first.")
    if output.resolve().is_relative_to(store.resolve()) or _is_in_mirror(output):
        raise UsageError(f"{output} is in the store", hint="Restore to somewhere else.")
    _check_not_served(output)
    entry = look.entry(output)
    if entry is None:
        return
    if entry.kind == "directory" and not disk.listdir(output):
        return
    if not entry.is_file:
        raise UsageError(f"{output} is a {entry.kind}", hint="Name a place that is not there yet.")
    if not request.force:
        raise UsageError(f"{output} exists", hint="Choose another name, or --force to replace it.")


def _is_in_mirror(output: Path) -> bool:
    """Tell whether *output* would lie among what another store replays, or serves as a source."""
    return any(
        one.name == "mirror"
        and ((one.parent / "state.0").exists() or (one.parent / "state.1").exists())
        for one in output.resolve().parents
    )


def _check_not_served(output: Path) -> None:
    """Refuse an image under a mount: its driver would go on with a file that has no name."""
    where = serving_mount(output)
    if where is not None:
        raise BusyError(
            f"{output} is served at {where}",
            hint="Restore to another name. To put that back into use, copy it through the mount: "
            "mirrors get it in order, and their history lasts.",
        )
    if (view := mount_above(output, VIEW_FSTYPE)) is not None:
        raise UsageError(
            f"{output} is in the view at {view}, where nothing lasts",
            hint="Restore to somewhere else.",
        )
    if is_volumes_alone(output.parent):
        raise UsageError(
            f"{output} is in the mount of an image, where no file can be made",
            hint="Restore to another directory, and copy it to the volume from there.",
        )


def _chosen(rebuild: Rebuild, request: Request) -> list[Piece]:
    pieces = rebuild.pieces(request.volume)
    if pieces:
        return pieces
    if request.volume is None:
        raise OutOfReach("no volume was there at that point")
    known = ", ".join(rebuild.names()) or "none"
    raise UsageError(f"no volume {request.volume!r} was there", hint=f"There were: {known}.")


def _is_directory(request: Request, pieces: list[Piece]) -> bool:
    return request.volume is None and (request.as_directory or len(pieces) > 1)


def _describe(store: Path, request: Request, rebuild: Rebuild, pieces: list[Piece]) -> Json:
    point, sets = rebuild.point, rebuild.undo_sets()
    epoch, seq = point.position
    return {
        "store": str(store),
        "output": str(request.output),
        "position": f"{epoch}:{seq}",
        "file": point.base + len(point.onward) + bool(point.redo),
        "time_ns": point.time_ns or None,
        "newest": rebuild.is_newest,
        "promoted": rebuild.is_promoted,
        "ahead": bool(point.onward),
        "directory": _is_directory(request, pieces),
        "volumes": [{"name": one.name, "size": one.size_bytes} for one in pieces],
        "reads": {
            "mirror_bytes": sum(one.source_bytes for one in pieces),
            "undo_files": len(sets),
            "undo_bytes": sum(one.size_bytes for one in sets),
            "redo_files": len(point.onward) or int(bool(point.redo)),
        },
    }


def _write(
    access: Access,
    request: Request,
    rebuild: Rebuild,
    pieces: list[Piece],
    report: Report,
) -> None:
    """Build beside the output, make it durable, then give it its name."""
    disk, output = access.disk, request.output
    part = output.with_name(output.name + PART)
    is_directory = _is_directory(request, pieces)
    entry = access.look.entry(output)
    if entry is not None and is_directory != (entry.kind == "directory"):
        raise UsageError(f"{output} exists as a {entry.kind}", hint="Choose another name.")
    with contextlib.ExitStack() as held:
        if is_directory:
            disk.mkdir("restore:mkdir", part, 0o750)
            flags = os.O_RDONLY | os.O_DIRECTORY
            _lock(disk, part, _opened(disk, held, part, flags))
            for left in sorted({*disk.listdir(part)} - {one.name for one in pieces}):
                disk.unlink("restore:unlink_left", part / left)
        paths = [part / one.name for one in pieces] if is_directory else [part]
        resume = Resume(disk, part.with_name(part.name + STAGE))
        if not (access.is_far and all(map(disk.exists, paths))):
            resume.drop()  # It tells of other files than those that are written now.
        fds = [_opened(disk, held, path, os.O_RDWR | os.O_CREAT) for path in paths]
        if not is_directory:
            _lock(disk, part, fds[0])
        try:
            rebuild.build(pieces, fds, report, resume if access.is_far else None)
            for fd in fds:
                disk.fsync("restore:sync", fd)
            if is_directory:
                disk.sync_dir("restore:sync_dir", part)
            resume.drop()
            _publish(disk, part, output, request)
        except BaseException as exc:
            if not _goes_on(access, exc, part):
                _remove(disk, part, paths if is_directory else [])
                resume.drop()
            raise
        disk.sync_dir("restore:sync_dir", output.parent)


def _goes_on(access: Access, exc: BaseException, part: Path) -> bool:
    """Tell whether the next attempt can go on with what has come, and say so."""
    if isinstance(exc, TransportError):
        exc.hint = f"What has come is in {part}: the same command goes on from there."
    return access.is_far and isinstance(exc, (TransportError, KeyboardInterrupt))


def _publish(disk: Disk, part: Path, output: Path, request: Request) -> None:
    """Give what is whole its name; only with force, or an empty directory, replace another."""
    if request.force:
        disk.rename("restore:rename", part, output)
        return
    try:
        disk.link("restore:link", part, output)
    except FileExistsError as exc:
        raise UsageError(f"{output} has come into being meanwhile") from exc
    except OSError:  # A directory, or a file system without links.
        disk.rename("restore:rename", part, output)
    else:
        disk.unlink("restore:unlink_part", part)


def _opened(disk: Disk, held: contextlib.ExitStack, path: Path, flags: int) -> int:
    fd = disk.open("restore:create", path, flags | os.O_NOFOLLOW)
    held.callback(disk.close, fd)
    return fd


def _lock(disk: Disk, part: Path, fd: int) -> None:
    if not disk.take_lock(fd):
        raise BusyError(f"somebody else writes {part}", hint="Wait for it, or choose another name.")


def _remove(disk: Disk, part: Path, inside: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for path in inside:
            disk.unlink("restore:unlink", path)
        if inside:
            disk.rmdir("restore:unlink", part)
        else:
            disk.unlink("restore:unlink", part)
