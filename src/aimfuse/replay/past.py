"""Look at a store's past from outside, also while a replayer is at work. Changes nothing."""

from dataclasses import dataclass
from pathlib import Path

from aimfuse.config.store import StoreConfig, load_store
from aimfuse.disk import Disk
from aimfuse.errors import ConfigError, CorruptRecord, StateLost, StoreError, UsageError
from aimfuse.journal.header import (
    HEADER_BYTES,
    BadHeader,
    Identity,
    Seal,
    decode_identity,
    decode_seal,
    identity_seed,
)
from aimfuse.journal.records import IOCB_BYTES, BadIocb, Iocb, RecordType, decode_iocb
from aimfuse.journal.slots import Slots
from aimfuse.replay.doubt import doubted, is_doubtful
from aimfuse.replay.kept import (
    HISTORY,
    Floor,
    KeptSet,
    Reach,
    find_reach,
    floor_slots,
    is_whole,
    list_kept,
    read_floor,
)
from aimfuse.replay.look import NO_INODE, Look
from aimfuse.replay.state import Json, StoreState
from aimfuse.replay.undo import read_undo

TRIES_MAX = 5
"""Looks at a history that is being pruned meanwhile."""

_TYPE_AT = 4
"""Where in an IOCB its type is."""


@dataclass(frozen=True, slots=True)
class Past:
    """A store's state, and what is in its history; `reach` is None where there is no mirror."""

    path: Path
    state: StoreState
    floor: Floor
    kept: dict[int, KeptSet]
    reach: Reach | None

    @property
    def history(self) -> Path:
        """Return the directory of the history."""
        return self.path / HISTORY


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A bookmark in a file of the history; *time_ns* in Unix ns."""

    label: str
    epoch: int
    seq: int
    number: int
    time_ns: int


def look_at(disk: Disk, path: Path, look: Look | None = None) -> Past:
    """Return what a store knows about itself, and the past that it keeps.

    The state is read first: what is listed then reaches at least as far.

    Raises:
        UsageError: *path* is no store.
        StoreError: its state is damaged.
        OSError: as the disk gave it.
    """
    look = look or Look()
    state = read_state(disk, path, look)
    history = path / HISTORY
    if not disk.exists(history):
        return Past(path, state, Floor(), {}, None)
    floor = read_floor(floor_slots(disk, history), state)
    kept = list_kept(look, history)
    reach = find_reach(state, kept, floor) if is_whole(state) else None
    return Past(path, state, floor, kept, reach)


def read_state(disk: Disk, path: Path, look: Look) -> StoreState:
    """Return what a store's state says; errors as for `look_at`."""
    if not disk.exists(path / "inbox"):
        hint = "Name the directory of one store, the one with inbox/ and mirror/ in it."
        raise UsageError(f"{path} is no store", hint=hint)
    try:
        data = Slots(disk, path / "state", "store-state").read()
        state = StoreState() if data is None else StoreState.from_json(data)
    except (StateLost, KeyError, TypeError, ValueError) as exc:
        hint = "Use the aimfuse version that last replayed here, or a newer one."
        raise StoreError(f"{path}: its state cannot be read: {exc!r}", hint=hint) from exc
    home, lock = look.entry(path), look.entry(path / "lock")
    if data and home and lock and NO_INODE not in {home.inode, lock.inode}:
        return doubted(state) if is_doubtful(data, (home.inode, lock.inode)) else state
    return state


def describe(disk: Disk, path: Path, look: Look | None = None) -> Json:
    """Return what `aimfuse history` shows, as JSON; errors as for `look_at`.

    Raises:
        JournalError: a file of the history is damaged.
    """
    for tries in range(TRIES_MAX):
        try:
            return _describe(disk, look_at(disk, path, look))
        except (FileNotFoundError, CorruptRecord):  # Pruned between two looks?
            if tries == TRIES_MAX - 1:
                raise
    raise AssertionError


def _describe(disk: Disk, past: Past) -> Json:
    state, reach = past.state, past.reach
    said: Json = {
        "store": str(past.path),
        "group": state.group.hex() if state.group else None,
        "phase": state.phase.value,
        "newest": _position(state.head.to_json()) if state.head and reach else None,
        "oldest": None,
        "files": 0,
        "bytes": 0,
        "gaps": [],
        "bookmarks": [],
        **_settings(disk, past.path),
    }
    if reach is None:
        why = state.doubt or state.reason or "the store has no consistent mirror now"
        return said | {"gaps": [{"behind": None, "why": why}]}
    assert state.head is not None
    oldest = state.head
    if reach.sets:
        oldest = read_undo(disk, past.history, reach.sets[-1].name).mark.head
    return said | {
        "oldest": _position(oldest.to_json()),
        "files": len(reach.sets),
        "bytes": sum(one.size_bytes for one in past.kept.values()),
        "gaps": [{"behind": reach.base, "why": reach.why}],
        "bookmarks": [
            {
                "label": one.label,
                "position": f"{one.epoch}:{one.seq}",
                "file": one.number,
                "time_ns": one.time_ns,
            }
            for one in find_bookmarks(disk, past)
        ],
    }


def _position(head: Json) -> Json:
    return {
        "position": f"{head['epoch']}:{head['seq']}",
        "file": head["number"],
        "time_ns": head["time_ns"] or None,
    }


def _settings(disk: Disk, path: Path) -> Json:
    problem = None
    try:
        config = load_store(path, disk)
    except ConfigError as exc:
        config, problem = StoreConfig(), f"{exc}. {exc.hint}"
    return {
        "settings": {
            "keep_s": config.keep_s,
            "keep_size": config.keep_bytes_max,
            "keep_free": config.keep_free_bytes,
        },
        "problem": problem,
    }


def find_bookmarks(disk: Disk, past: Past) -> list[Bookmark]:
    """Return the bookmarks that can be gone back to, the oldest first.

    Raises:
        JournalError: a file of the history is damaged.
        OSError: one could not be read, or has just been pruned.
    """
    found: list[Bookmark] = []
    for one in reversed(past.reach.sets if past.reach else ()):
        found.extend(_bookmarks_in(disk, past.history / one.name.sealed))
    return found


def _bookmarks_in(disk: Disk, path: Path) -> list[Bookmark]:
    """Return the bookmarks of one file: its IOCB portion is read, and their labels."""
    fd = disk.open("past:open", path, 0)
    try:
        header = disk.pread(fd, HEADER_BYTES, 0)
        identity, seal = _header(path, header)
        raw = disk.pread(fd, seal.iocb_count * IOCB_BYTES, seal.iocb_at)
        kinds, seed = raw[_TYPE_AT::IOCB_BYTES], identity_seed(header)
        found, index = [], kinds.find(RecordType.BOOKMARK)
        while index >= 0:
            iocb = decode_iocb(seed, raw[index * IOCB_BYTES : (index + 1) * IOCB_BYTES])
            label = _label(disk, fd, iocb)
            found.append(Bookmark(label, identity.epoch, iocb.seq, identity.number, iocb.time_ns))
            index = kinds.find(RecordType.BOOKMARK, index + 1)
    except (BadIocb, BadHeader) as exc:
        raise CorruptRecord(path, 0, str(exc)) from exc
    finally:
        disk.close(fd)
    return found


def _label(disk: Disk, fd: int, iocb: Iocb) -> str:
    return disk.pread(fd, iocb.payload_bytes, iocb.data_at).decode(errors="replace")


def _header(path: Path, header: bytes) -> tuple[Identity, Seal]:
    identity, seal = decode_identity(header), decode_seal(header)
    if seal is None:
        raise CorruptRecord(path, 0, "never sealed")
    return identity, seal
