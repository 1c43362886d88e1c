"""Make the images of an old source a mirror in place: a store whose volumes are links to them.

Nothing of the images changes here. Where they may differ from the fork, the store's map says
so, and it takes nothing from its source before a copy of that has come.
"""

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk, note_owner, try_lock
from aimfuse.errors import BusyError, StateLost, StoreError, UsageError
from aimfuse.journal.dirty import write_map
from aimfuse.journal.locks import STORE_LOCK
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.slots import Slots
from aimfuse.replay.doubt import DIFFERS, REJOINED
from aimfuse.replay.pins import holders, unpinned
from aimfuse.replay.state import Head, Phase, StoreState, SyncProgress
from aimfuse.replay.store import ACK
from aimfuse.takeover.branches import BRANCHES, remove_tree
from aimfuse.takeover.tail import Tail
from aimfuse.units import VolumeId

PART = ".rejoin"
HISTORY = "history"
REWOUND = "rewound-"
"""Begins the name of a history that a promotion went back over; see `_keep_rewound`."""

LET_GO_S_MAX = 30.0
GATE_S_MAX = 5.0
_POLL_S = 0.05
_MAP_MODE = 0o644  # The new source reads it, as another user maybe; it names places, no contents.
_INBOX_MODE = 0o750


@dataclass(frozen=True, slots=True)
class Wanted:
    """The store to make: of which group, from which images by volume id, behind what tail.

    `present` are the volumes as they are called now.
    """

    group: bytes
    images: dict[VolumeId, Path]
    present: tuple[VolumeEntry, ...]
    tail: Tail


def make_store(disk: Disk, store: Path, wanted: Wanted) -> None:
    """Make a store at *store*, where nothing is yet; whole or not there, durable; blocks.

    Raises:
        UsageError: there is no place for it.
        StoreError: something else is there.
        OSError: the disk failed; calling again begins anew.
    """
    if not store.absolute().parent.is_dir():
        raise UsageError(f"{store.parent} is not there", hint="Make the directory first.")
    if not disk.exists(store):
        part = store.with_name(store.name + PART)
        remove_tree(disk, part)
        disk.mkdir("rejoin:mkdir", part)
        _fill(disk, part, wanted, shown=())
        disk.rename("rejoin:rename", part, store)
        disk.sync_dir("rejoin:sync_dir", store.absolute().parent)
    elif not is_made(disk, store, wanted.group, wanted.images):
        raise StoreError(
            f"{store} is there already", hint="Name another place with --store, or move it away."
        )
    make_known(disk, store)


def make_known(disk: Disk, store: Path) -> None:
    """Give a store that is made its inbox, by which replayers know it: that comes last."""
    if not disk.exists(store / "inbox"):
        disk.mkdir("rejoin:inbox", store / "inbox", _INBOX_MODE)
        disk.sync_dir("rejoin:sync_dir", store)


def return_store(disk: Disk, store: Path, wanted: Wanted) -> None:
    """Make the promoted store whose mirror the images are an ordinary one again; blocks.

    Raises:
        BusyError: its replayer does not let go of it, or its past is read. Nothing was changed.
        OSError: the disk failed; calling again begins anew.
    """
    with _held(disk, store):
        if is_made(disk, store, wanted.group, wanted.images):
            return
        with _unread(disk, store):
            if disk.exists(store / ACK):  # It says that the store is promoted: it is no more.
                disk.unlink("rejoin:ack", store / ACK)
                disk.sync_dir("rejoin:sync_dir", store)
            _doubt(disk, store)
            _keep_rewound(disk, store)
            _fill(disk, store, wanted, shown=wanted.present)


def check_unread(disk: Disk, store: Path) -> None:
    """Refuse a promoted store whose past is being read: that would be another one.

    Raises:
        BusyError: it is.
    """
    with _unread(disk, store):
        pass


@contextmanager
def _unread(disk: Disk, store: Path) -> Iterator[None]:
    """Keep those out for the block who want to read the past of a promoted store.

    Raises:
        BusyError: somebody reads it.
    """
    history = store / HISTORY
    if not disk.exists(history):
        yield
        return
    end_s = time.monotonic() + GATE_S_MAX
    while True:
        with unpinned(disk, history) as limit:
            if limit is None:
                yield
                return
            readers = holders(disk, history)
        if readers or time.monotonic() > end_s:  # Else somebody prunes just now.
            raise BusyError(
                f"the past of {store} is being read, by process {readers or 'unknown'}",
                hint="End the restore or the view first, then repeat this.",
            )
        time.sleep(_POLL_S)


def _doubt(disk: Disk, store: Path) -> None:
    """Say durably, before it is so, that what lies in ``volumes/`` is no past any more."""
    slots = Slots(disk, store / "state", "rejoin-state")
    with contextlib.suppress(StateLost):
        if data := slots.read():
            slots.write({**data, "doubt": REJOINED})


def _keep_rewound(disk: Disk, store: Path) -> None:
    """Set aside what the promotion went back over: a mirror's history would not know it."""
    state = _state_of(disk, store)
    promoted = state.promoted if state else None
    if promoted is None or promoted.newest.number <= promoted.fork.number:
        return
    newest, branches = promoted.newest, store / BRANCHES
    target = branches / f"{REWOUND}{newest.epoch}-{newest.seq}"
    # An attempt that was killed may have done it; a replayer has made an empty one since.
    if disk.exists(store / HISTORY) and not disk.exists(target):
        if not disk.exists(branches):
            disk.mkdir("rejoin:mkdir", branches)
        disk.rename("rejoin:rewound", store / HISTORY, target)
        disk.sync_dir("rejoin:sync_dir", branches)


@contextmanager
def _held(disk: Disk, store: Path) -> Iterator[None]:
    """Keep replayers off the store for the block; one that works on it lets go within moments.

    It goes by its lock file: with another one in that place the store is not the one that it
    opened, so it closes, looks again, and finds the new one taken until we are done.
    """
    flags = os.O_RDWR | os.O_CREAT
    before = disk.open("rejoin:lock", store / STORE_LOCK, flags)
    fds = [before]
    try:
        if not try_lock(before):
            beside = store / f"{STORE_LOCK}{PART}"
            fds.append(disk.open("rejoin:lock_beside", beside, flags))
            if not try_lock(fds[-1]):
                raise BusyError(f"{store} is being made a mirror already", hint="Look again soon.")
            note_owner(disk, "rejoin:lock_pid", fds[-1])
            disk.rename("rejoin:lock_rename", beside, store / STORE_LOCK)
            _wait_for(before, store)
        yield
    finally:
        for fd in fds:
            disk.close(fd)


def _wait_for(fd: int, store: Path) -> None:
    end_s = time.monotonic() + LET_GO_S_MAX
    while not try_lock(fd):
        if time.monotonic() > end_s:
            raise BusyError(
                f"the replayer of {store} does not let go of it", hint="Stop it, then repeat this."
            )
        time.sleep(_POLL_S)


def _fill(disk: Disk, place: Path, wanted: Wanted, *, shown: tuple[VolumeEntry, ...]) -> None:
    """Make the volumes and the map, and last, in one step, the state that speaks of them."""
    volumes = place / "volumes"
    remove_tree(disk, volumes)
    disk.mkdir("rejoin:volumes", volumes)
    for entry in wanted.tail.volumes:
        _give(disk, wanted.images.get(entry.volume), volumes / f"{entry.volume:08d}")
    disk.sync_dir("rejoin:sync_dir", volumes)
    if wanted.tail.differs is not None and not wanted.tail.is_empty:
        write_map(disk, place / DIFFERS, wanted.tail.differs, _MAP_MODE)
    elif disk.exists(place / DIFFERS):
        disk.unlink("rejoin:unlink", place / DIFFERS)
    content = {**_first_state(wanted, shown).to_json(), "place": None, "open": False}
    slots = Slots(disk, place / "state", "rejoin-state")
    slots.read()
    slots.write(content)
    slots.write(content)  # Both: should one get lost, no older one may be found beneath it.


def _give(disk: Disk, image: Path | None, target: Path) -> None:
    """Let *target* be the image; one that was removed since begins as an empty file."""
    if image is None:
        disk.close(disk.open("rejoin:create", target, os.O_RDWR | os.O_CREAT))
        return
    try:
        disk.link("rejoin:link", image, target)
    except OSError as exc:
        if exc.errno not in {errno.EXDEV, errno.EPERM}:
            raise
        raise UsageError(
            f"{target.parent} is not on the file system of {image}, or may not link to it",
            hint="The store has to lie where the image does: name a place there with --store.",
        ) from exc


def _first_state(wanted: Wanted, shown: tuple[VolumeEntry, ...]) -> StoreState:
    tail, fork = wanted.tail, wanted.tail.fork
    head = Head(fork.epoch, fork.number, fork.seq, fork.digest, fork.time_ns)
    # A sync of its own: what older undo files lead back to is not this mirror.
    begun = SyncProgress(secrets.randbits(63) | 1, head, 0, (0, 0), int(fork.number))
    return StoreState(
        wanted.group,
        head,
        tail.volumes,
        Phase.CONSISTENT if tail.is_empty else Phase.CATCHING_UP,
        begun,
        volume_id_max=max((int(one.volume) for one in tail.volumes), default=0),
        shown=() if tail.is_empty else shown,
        doubt="" if tail.is_empty else REJOINED,
    )


def is_made(disk: Disk, store: Path, group: bytes, images: dict[VolumeId, Path]) -> bool:
    """Tell whether *store* is a mirror in these images; a replayer may be at it since."""
    state = _state_of(disk, store)
    if state is None or state.group != group or state.promoted is not None:
        return False
    return any(_is_same(disk, image, store, volume) for volume, image in images.items())


def _state_of(disk: Disk, store: Path) -> StoreState | None:
    try:
        data = Slots(disk, store / "state", "rejoin-state").read()
        return StoreState.from_json(data) if data else None
    except (StateLost, KeyError, TypeError, ValueError):
        return None


def _is_same(disk: Disk, image: Path, store: Path, volume: VolumeId) -> bool:
    data = store / "volumes" / f"{volume:08d}"
    return disk.exists(data) and image.samefile(data)
