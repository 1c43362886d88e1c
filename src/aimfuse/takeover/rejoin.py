"""Rejoin: an old source, whose mirror was promoted meanwhile, becomes a mirror of that one.

In this order, each step durable, and each found done when a killed attempt is repeated:
the journal's end is recovered into the images; ``superseded.json`` says that they belong to a
mirror from now on, so that nobody writes to them; a branch keeps what only this side has; the
images become a store; the spool goes; the note says that it is done. The copy itself comes
from the new source, when its replayer and its settings know of each other.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from aimfuse.config import GroupConfig
from aimfuse.disk import Disk, publish, read_file, try_lock
from aimfuse.driver.checkpoint import Checkpoint, CheckpointFile
from aimfuse.driver.group import GroupLimits, GroupPaths, close_group, open_group
from aimfuse.driver.group_lock import GroupLock
from aimfuse.driver.image_place import size_limit
from aimfuse.errors import (
    BusyError,
    ImageMismatch,
    JournalError,
    StateLost,
    StoreError,
    Unavailable,
    UsageError,
)
from aimfuse.journal.locks import SHIP_LOCK
from aimfuse.journal.rewound import REWOUND, REWOUND_BYTES_MAX, Rewound
from aimfuse.journal.spool import sealed_names
from aimfuse.journal.superseded import (
    Promotion,
    Step,
    Superseded,
    read_superseded,
    write_superseded,
)
from aimfuse.takeover.branches import branch_name, check_room, count_writes, keep, remove_tree
from aimfuse.takeover.far_side import connected, destination_at, read_ack
from aimfuse.takeover.mirror import (
    Wanted,
    check_unread,
    is_made,
    make_known,
    make_store,
    return_store,
)
from aimfuse.takeover.tail import Tail, survey
from aimfuse.units import VolumeId, format_bytes

STORE = "store"
SOURCE = "source"
OLD_SOURCE = "source.old"

T = TypeVar("T")
Say = Callable[[str], None]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What the operator asked for: where the promoted store lies, and what to do with the rest.

    `store` is where the mirror is to be, None for its usual place.
    """

    url: str
    store: Path | None = None
    discard: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Side:
    """This side: its disk, its settings, and whom to tell what takes time.

    `rewound` is what the other side noted of its going back, unread, empty if it did not.
    """

    disk: Disk
    config: GroupConfig
    say: Say
    rewound: bytes


def rejoin(disk: Disk, config: GroupConfig, request: Request, say: Say) -> Json:
    """Make the group a mirror of the source at the request's URL; return what was done.

    Interrupted anywhere, it goes on when it is called again.

    Raises:
        UsageError: the image is a device, or there is no place or room. Nothing was changed.
        BusyError: it is mounted or being shipped. Nothing was changed.
        StoreError: the store at the URL was not promoted, or is another group's.
        Unavailable, Refused: it could not be asked.
        OSError: a disk failed.
    """
    note = read_superseded(disk, config.state_dir)
    if note is not None and note.step is Step.REJOINED:
        return _done(config, note, Path(note.store), None, None)
    _refuse_device(config.image)
    rewound = b""
    if note is None or note.step is not Step.REJOINING:  # Begun is begun, whatever is there now.
        promotion, rewound = _ask(config, request.url, _checkpoint(disk, config).group, say)
        note = _first_note(config, request, promotion)
    with _alone(disk, config):
        meanwhile = read_superseded(disk, config.state_dir)
        if meanwhile is not None and meanwhile.is_final:  # Another one was faster.
            note = meanwhile
        if note.step is Step.REJOINED:
            return _done(config, note, Path(note.store), None, None)
        before = _checkpoint(disk, config)
        return _rejoin(_Side(disk, config, say, rewound), request, before, note)


def _rejoin(side: _Side, request: Request, before: Checkpoint, note: Superseded) -> Json:
    disk, config, store = side.disk, side.config, Path(note.store)
    assert note.promotion is not None
    is_begun = note.step is Step.REJOINING
    if is_begun and is_made(disk, store, before.group, _images(disk, config, before)):
        make_known(disk, store)
        return _finish(disk, config, note, None, None)
    checkpoint, problem = before, note.problem
    if not (is_begun or request.dry_run):  # Links to the images would look like a change.
        checkpoint, problem = recovered(disk, config, before, side.say)
    rewound = _rewound(side, is_begun=is_begun)
    tail = survey(disk, config, checkpoint, note.promotion.fork, problem, rewound)
    is_kept = not (request.discard or tail.is_empty)
    if request.dry_run:
        return _plan(config, note, tail, is_kept=is_kept, is_recovered=checkpoint.clean)
    images = _images(disk, config, checkpoint)
    _check_place(disk, store, config, images)
    named = {path.name: path for path in images.values()}
    if is_kept:
        check_room(disk, home_of(config), named)
    if side.rewound and not is_begun:  # Whoever goes on with it asks nobody any more.
        publish(disk, "rejoin:rewound_map", config.state_dir / REWOUND, side.rewound)
    note = replace(note, step=Step.REJOINING, problem=problem)
    write_superseded(disk, config.state_dir, note)
    branch = keep(disk, home_of(config), named, tail, side.say) if is_kept else None
    wanted = Wanted(checkpoint.group, images, tuple(checkpoint.entries()), tail)
    if _is_promoted_store(config):
        return_store(disk, store, wanted)
    else:
        make_store(disk, store, wanted)
    return _finish(disk, config, note, tail, branch)


def _finish(
    disk: Disk, config: GroupConfig, note: Superseded, tail: Tail | None, branch: Path | None
) -> Json:
    """Let go of the spool, whose files are kept as a branch or given up, and note the end."""
    for name in sealed_names(disk, config.spool) if disk.exists(config.spool) else []:
        disk.unlink("rejoin:spool", config.spool / name.sealed)
    if disk.exists(config.state_dir / REWOUND):
        disk.unlink("rejoin:unlink_rewound", config.state_dir / REWOUND)
    note = replace(note, step=Step.REJOINED)
    write_superseded(disk, config.state_dir, note)
    done = _done(config, note, Path(note.store), tail, branch)
    if _is_promoted_store(config):  # It is no source any more; its settings stay to be read.
        old = config.state_dir.with_name(OLD_SOURCE)
        remove_tree(disk, old)
        disk.rename("rejoin:retire", config.state_dir, old)
        disk.sync_dir("rejoin:sync_dir", old.parent)
    return done


# Before.


def _ask(config: GroupConfig, url: str, group: bytes, say: Say) -> tuple[Promotion, bytes]:
    """Return at which point the store at *url* was promoted, and what it noted of going back."""
    destination = destination_at(config, url)

    async def ask() -> tuple[Promotion, bytes]:
        async with connected(destination) as transport:
            ack = await read_ack(transport, destination, group)
            try:
                rewound = await transport.get(REWOUND, REWOUND_BYTES_MAX)
            except Unavailable as exc:
                ack = await read_ack(transport, destination, group)  # Else the line is gone.
                rewound = None
                say(f"More may be copied than differs: {exc}")
        if ack is None or ack.promoted is None:
            said = f"it is {ack.phase}" if ack else "it has not said anything yet"
            raise StoreError(
                f"{url} was not promoted: {said}",
                hint="This image is the source still. To hand over without loss: aimfuse "
                f"switchover {config.image} NAME",
            )
        return ack.promoted, rewound or b""

    return run_in_trio(ask)


def _rewound(side: _Side, *, is_begun: bool) -> Rewound | None:
    """Return what the other side went back over; None, for all that is known, if it is damaged."""
    data = side.rewound
    if is_begun:
        with contextlib.suppress(FileNotFoundError):
            data = read_file(side.disk, side.config.state_dir / REWOUND, REWOUND_BYTES_MAX)
    try:
        return Rewound.decode(data) if data else None
    except ValueError as exc:
        side.say(f"What the other side went back over cannot be read: {exc}")
        return None


def run_in_trio(work: Callable[[], Awaitable[T]]) -> T:
    """Run *work* in a trio loop of its own; of several failures the first is raised."""
    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        raise _leaf(group) from None


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first


def _checkpoint(disk: Disk, config: GroupConfig) -> Checkpoint:
    found = CheckpointFile(disk, config.state_dir).read()
    if found is None:
        raise UsageError(f"{config.image} was never initialised", hint="There is nothing to keep.")
    return found


def _first_note(config: GroupConfig, request: Request, promotion: Promotion) -> Superseded:
    usual = config.state_dir.parent if _is_promoted_store(config) else config.state_dir / STORE
    store = request.store.absolute() if request.store else usual
    name = destination_at(config, request.url).name
    return Superseded(name, request.url, promotion, Step.SUPERSEDED, str(store))


def _is_promoted_store(config: GroupConfig) -> bool:
    """Tell whether the group is a promoted store that serves as a source."""
    store = config.state_dir.parent
    return config.state_dir.name == SOURCE and (store / "state.0").exists()


def home_of(config: GroupConfig) -> Path:
    """Return where branches are kept: with a store, whose source goes, in the store."""
    return config.state_dir.parent if _is_promoted_store(config) else config.state_dir


def _refuse_device(image: Path) -> None:
    if stat.S_ISBLK(image.stat().st_mode):
        raise UsageError(
            f"{image} is a device, and a mirror in place needs files",
            hint="Run `aimfuse replay` for a new store on a file system here, and add it at the "
            "new source: aimfuse destination add. It begins with a first copy.",
        )


def _check_place(
    disk: Disk, store: Path, config: GroupConfig, images: dict[VolumeId, Path]
) -> None:
    """Refuse a store that could not be made, or is being read, before anything is changed."""
    if _is_promoted_store(config):
        if store != config.state_dir.parent:
            raise UsageError(
                f"{config.image} lies in the store {config.state_dir.parent}",
                hint="Leave --store out: that store becomes the mirror.",
            )
        check_unread(disk, store)
        return
    if not store.parent.is_dir():
        raise UsageError(f"{store.parent} is not there", hint="Make the directory first.")
    if any(one.stat().st_dev != store.parent.stat().st_dev for one in images.values()):
        raise UsageError(
            f"{store.parent} is not on the file system of {config.image}",
            hint="The mirror is made of the image itself: name a place beside it with --store.",
        )
    if disk.exists(store):
        raise UsageError(f"{store} is there already", hint="Name another place with --store.")


@contextmanager
def _alone(disk: Disk, config: GroupConfig) -> Iterator[None]:
    """Keep drivers and coordinators off the group.

    Raises:
        BusyError: it is served or being shipped.
    """
    lock = GroupLock(config.image, config.state_dir)
    try:
        fd = disk.open("rejoin:ship_lock", config.state_dir / SHIP_LOCK, os.O_RDWR | os.O_CREAT)
        try:
            if not try_lock(fd):
                raise BusyError(
                    f"{config.image} is being shipped", hint="End that `aimfuse ship` first."
                )
            yield
        finally:
            disk.close(fd)
    finally:
        lock.release()


def recovered(
    disk: Disk, config: GroupConfig, before: Checkpoint, say: Say
) -> tuple[Checkpoint, str]:
    """Bring the images to the journal's end; return where that is, and why it is not known.

    The caller holds the group's lock.
    """
    journal, paths = config.journal, GroupPaths(config.image, config.state_dir, config.spool)
    limits = GroupLimits(
        journal.file_bytes, journal.memory_bytes_max,
        size_limit(disk, paths.image, journal.size_bytes_max),
    )  # fmt: skip
    if not before.clean:
        say(f"{config.image}: bringing in what its journal holds")
    try:
        close_group(disk, open_group(disk, paths, limits))
    except (JournalError, StateLost, ImageMismatch) as exc:
        return before, f"it is not as its journal says: {exc}"
    return _checkpoint(disk, config), ""


def _images(disk: Disk, config: GroupConfig, checkpoint: Checkpoint) -> dict[VolumeId, Path]:
    """Return where the data of each volume lies; by inode, whatever its name is."""
    if not config.image.is_dir():
        return {one.entry.volume: config.image for one in checkpoint.volumes}
    here = {}
    for name in disk.listdir(config.image):
        path = config.image / name
        if path.is_file() and not path.is_symlink():
            here[path.stat().st_ino] = path
    return {one.entry.volume: here[one.inode] for one in checkpoint.volumes if one.inode in here}


# What is said.


def _plan(
    config: GroupConfig, note: Superseded, tail: Tail, *, is_kept: bool, is_recovered: bool
) -> Json:
    branch = home_of(config) / "branches" / branch_name(tail) if is_kept else None
    return {
        **_done(config, note, Path(note.store), tail, branch),
        "state": "planned",
        "is_recovered": is_recovered,
    }


def _done(
    config: GroupConfig, note: Superseded, store: Path, tail: Tail | None, branch: Path | None
) -> Json:
    fork = note.promotion.fork if note.promotion else None
    why_whole = _why_whole(note, tail) if tail else ""
    return {
        "version": 1,
        "state": note.step.value,
        "image": str(config.image),
        "url": note.url,
        "store": str(store),
        "fork": fork.to_json() if fork else None,
        "end": tail.end.to_json() if tail else None,
        "writes": tail.writes if tail else None,
        "differing_bytes": _differing_bytes(tail, is_whole=bool(why_whole)),
        "is_whole": bool(why_whole),
        "is_counted": tail is None or tail.is_counted,
        "why_whole": why_whole or None,
        "branch": str(branch) if branch else None,
        "host": socket.gethostname(),
    }


def _why_whole(note: Superseded, tail: Tail) -> str:
    """Return why everything will be copied, or ""."""
    if tail.differs is None:
        return tail.why_all
    return note.promotion.gap if note.promotion else ""


def _differing_bytes(tail: Tail | None, *, is_whole: bool) -> int | None:
    if tail is None:
        return None
    return tail.size_bytes if is_whole else tail.differing_bytes


def describe(done: Json) -> list[str]:
    """Return the lines of what was done, or is planned, for people."""
    fork, lines = done["fork"], []
    if done["writes"] is not None and fork:
        at = f"{fork['epoch']}:{fork['seq']}"
        writes = count_writes(done["writes"], is_counted=done["is_counted"])
        lines.append(
            f"This side has {writes} behind {at}, "
            f"where the other side went on; {format_bytes(done['differing_bytes'])} may differ."
            if done["writes"] or done["differing_bytes"]
            else f"This side is exactly at {at}, where the other side went on."
        )
    if not done.get("is_recovered", True):
        lines.append("It was not unmounted cleanly: what its journal holds besides is not counted.")
    if done["is_whole"]:
        lines.append(f"Everything will be copied: {done['why_whole']}.")
    if done["branch"]:
        lines.append(f"What only this side has is kept in {done['branch']}.")
    lines.append(f"The mirror is {done['store']}.")
    return lines


def next_commands(done: Json) -> list[str]:
    """Return what is to be run next, here and at the new source."""
    store = done["store"]
    return [
        f"Here, unless one runs already: aimfuse replay {store}",
        "At the new source, with the URL by which that store is reached from there:",
        f"  aimfuse destination url STORE former sftp://{done['host']}{store}",
    ]
