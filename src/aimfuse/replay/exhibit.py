"""Open a point of a store's past, hold it, and show it in a mount until that is unmounted."""

import contextlib
import json
import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from aimfuse.disk import Disk, weakness
from aimfuse.errors import JournalError, OutOfReach, UsageError
from aimfuse.io_path import become_part_of_the_io_path
from aimfuse.mountpoint import FSTYPE, VIEW_FSTYPE, check_mountpoint, mount_above
from aimfuse.replay.frozen import Frozen, FrozenVolume, named_as
from aimfuse.replay.hold import pinned, readable
from aimfuse.replay.look import Look
from aimfuse.replay.onward import find_steps
from aimfuse.replay.past import TRIES_MAX
from aimfuse.replay.pins import Pin
from aimfuse.replay.point import Finder, Wanted
from aimfuse.replay.rebuild import DAMAGED_HINT
from aimfuse.replay.state import Json
from aimfuse.replay.store import INBOX
from aimfuse.replay.tree import Tree
from aimfuse.replay.view import FIRST_INODE, ViewOptions, serve
from aimfuse.replay.watch import Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """What to show: the volume of that name or all of them, *at* a point, at *mountpoint*.

    *scratch* is a directory for what is written to the view, None for a view that is read only.
    The view ends with the pipe *while_open*, if there is one.
    """

    store: Path
    mountpoint: Path
    at: Wanted
    volume: str | None = None
    scratch: Path | None = None
    allow_other: bool = False
    while_open: int | None = None


def show(disk: Disk, request: ViewRequest, mounted: Callable[[Json], None]) -> None:
    """Show a point of the past until it is unmounted; call *mounted* with what is shown.

    Raises:
        UsageError: the mountpoint cannot be one, or no such volume was there.
        OutOfReach: the past does not go back to that point.
        BusyError, StoreError: the store's mirror cannot be read now.
        JournalError: a file of the history is damaged.
        OSError: a disk failed.
        AimfuseError: the view has ended; something of the past could not be read.
    """
    check_mountpoint(request.mountpoint, request.store, [], VIEW_FSTYPE)
    with opened(disk, request.store, request.at) as frozen:
        tree = Tree(disk, frozen, _chosen(frozen, request.volume), FIRST_INODE, _scratch(request))
        if tree.scratch is not None:
            become_part_of_the_io_path()
            _open_as_many_files_as_may_be()
        try:
            said = _describe(request, frozen, tree)
            options = ViewOptions(
                request.store, request.mountpoint, request.allow_other, request.while_open,
                json.dumps(said).encode(),
            )  # fmt: skip
            kind = "read only" if tree.scratch is None else "with a scratch"
            log.info("%s: a view at %s, %s", request.mountpoint, said["position"], kind)
            trio.run(serve, frozen, tree, options, lambda: mounted(said))
        finally:
            tree.close()


def _open_as_many_files_as_may_be() -> None:
    """Each file that is written to in a scratch has one of ours open."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def opened(
    disk: Disk,
    store: Path,
    wanted: Wanted,
    look: Look | None = None,
    watch: Callable[[Path], Watch] = Watch,
) -> Iterator[Frozen]:
    """Hold a point of the past while the block reads it; errors as for `show`.

    All of it is reached by way of the directory's descriptor: a store that is moved is read on,
    and never what lies at its path then.
    """
    with contextlib.ExitStack() as held:
        fd = disk.open("view:hold", store, os.O_RDONLY | os.O_DIRECTORY)
        held.callback(disk.close, fd)
        # The way round by inbox/ ends at the directory itself, and not at a link to it.
        home = Path(f"/proc/self/fd/{fd}/{INBOX}/..")
        with named_as(home, store):
            pin = held.enter_context(pinned(disk, home))
            frozen = _open(disk, home, wanted, look or Look(), watch, held, pin)
        frozen.store = store
        yield frozen


def _open(
    disk: Disk,
    home: Path,
    wanted: Wanted,
    look: Look,
    begin_watch: Callable[[Path], Watch],
    held: contextlib.ExitStack,
    pin: Pin | None,
) -> Frozen:
    for tries in range(1, TRIES_MAX + 1):
        watch = begin_watch(home)
        held.callback(watch.close)
        if not watch.is_told and tries == 1:
            log.info("the kernel does not tell what a replayer does: reads take longer")
        past = readable(disk, home, look, held)
        assert past.state.head is not None
        try:
            onward = find_steps(disk, home, past.state.head)
            point = Finder(disk, past, onward).find(wanted)
            if pin:
                pin.move(point.base)
            frozen = Frozen(disk, past, point, watch, look)
        except JournalError as exc:
            exc.hint = DAMAGED_HINT
            raise
        except FileNotFoundError:  # Something was removed right now: look again.
            if tries == TRIES_MAX:
                raise
            continue
        held.callback(frozen.close)
        return frozen
    raise AssertionError


def _chosen(frozen: Frozen, volume: str | None) -> list[FrozenVolume]:
    found = [one for one in frozen.volumes if volume in {None, one.name}]
    if not frozen.volumes:
        raise OutOfReach("no volume was there at that point")
    if not found:
        known = ", ".join(sorted(one.name for one in frozen.volumes))
        raise UsageError(f"no volume {volume!r} was there", hint=f"There were: {known}.")
    return found


def _scratch(request: ViewRequest) -> Path | None:
    scratch = request.scratch
    if scratch is None:
        return None
    if not scratch.is_dir():
        raise UsageError(f"{scratch} is no directory", hint="Name one with --scratch-dir.")
    if scratch.resolve().is_relative_to(request.store.resolve()):
        raise UsageError(f"{scratch} is in the store", hint="Name another with --scratch-dir.")
    if (where := mount_above(scratch, FSTYPE)) is not None:
        text = f"{scratch} is in the mount at {where}: what is written there is mirrored"
        raise UsageError(text, hint="Name another with --scratch-dir.")
    if problem := weakness(scratch):
        log.info("what is written goes to %s, which is %s", scratch, problem)
    return scratch


def _describe(request: ViewRequest, frozen: Frozen, tree: Tree) -> Json:
    point = frozen.point
    epoch, seq = point.position
    return {
        "store": str(request.store),
        "mountpoint": str(request.mountpoint),
        "position": f"{epoch}:{seq}",
        "file": point.base + len(point.onward) + bool(point.redo),
        "time_ns": point.time_ns or None,
        "newest": frozen.is_newest,
        "ahead": bool(point.onward),
        "scratch": str(request.scratch) if request.scratch else None,
        "volumes": [{"name": one.name, "size": one.size} for one in tree.files()],
    }
