"""Look at a store's past from outside, also while a replayer is at work. Changes nothing."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from aimfuse.config.store import StoreConfig, load_store
from aimfuse.disk import Disk
from aimfuse.errors import ConfigError, CorruptRecord, StateLost, StoreError, UsageError
from aimfuse.journal.excerpt import read_front, read_iocbs
from aimfuse.journal.slots import Slots
from aimfuse.replay.audience import read_audience
from aimfuse.replay.doubt import doubted, is_doubtful
from aimfuse.replay.glance import glance
from aimfuse.replay.kept import (
    HISTORY,
    Floor,
    KeptSet,
    Reach,
    find_reach,
    floor_slots,
    is_whole,
    list_names,
    measured,
    read_floor,
)
from aimfuse.replay.look import NO_INODE, Look
from aimfuse.replay.marks import Bookmark, find_marks, read_index
from aimfuse.replay.state import Json, Phase, StoreState
from aimfuse.replay.undo import read_undo

TRIES_MAX = 5
"""Looks at a history that is being pruned meanwhile."""


@dataclass(frozen=True, slots=True)
class Past:
    """A store's state, and what is in its history; `reach` is None where there is no mirror.

    The sets in it know their sizes only where a list says them.
    """

    path: Path
    state: StoreState
    floor: Floor
    kept: dict[int, KeptSet]
    reach: Reach | None

    @property
    def history(self) -> Path:
        """Return the directory of the history."""
        return self.path / HISTORY


def look_at(disk: Disk, path: Path, look: Look | None = None, behind: int = 0) -> Past:
    """Return what a store knows about itself, and the past that it keeps behind file *behind*.

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
    kept = list_names(look, history, behind)
    if state.phase is Phase.PROMOTED and not state.doubt:
        return _of_promoted(disk, Past(path, state, floor, kept, None))
    reach = find_reach(state, kept, floor) if is_whole(state) else None
    return Past(path, state, floor, kept, reach)


def _of_promoted(disk: Disk, past: Past) -> Past:
    """Return the past in front of the fork, if a clone of the mirror was kept there.

    The clone may hold records behind the fork; what undoes them is here too, and is executed.
    """
    state, promoted = past.state, past.state.promoted
    assert promoted is not None
    gone: dict[int, str] = {}
    if promoted.seq:
        behind = past.kept.get(promoted.fork.number + 1)
        if behind is None or not behind.has_undo:
            return past
        undo = read_undo(disk, past.history, behind.name, read_front)
        state = replace(
            state, head=promoted.fork, volumes=undo.table,
            volume_id_max=undo.mark.id_max, volume_ids_exact=undo.mark.ids_exact,
        )  # fmt: skip
        gone = behind.gone()
    volumes = past.path / "volumes"
    for entry in state.volumes:
        if entry.volume not in gone and not disk.exists(volumes / f"{entry.volume:08d}"):
            return past
    return replace(past, state=state, reach=find_reach(state, past.kept, past.floor))


def promoted_tail(past: Past) -> tuple[KeptSet | None, int]:
    """Return the file within which a store was promoted, and its last record that counts.

    None where it was promoted at the end of a file, or where that file is not kept.
    """
    promoted = past.state.promoted
    if promoted is None or not promoted.seq:
        return None, 0
    one = past.kept.get(promoted.fork.number + 1)
    return (one, promoted.seq) if one and one.has_redo and one.has_undo else (None, 0)


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
    look = look or Look()
    for tries in range(TRIES_MAX):
        try:
            return (None if tries else _glanced(disk, path, look)) or _listed(disk, path, look)
        except (FileNotFoundError, CorruptRecord):  # Pruned between two looks?
            if tries == TRIES_MAX - 1:
                raise
    raise AssertionError


def _glanced(disk: Disk, path: Path, look: Look) -> Json | None:
    """Return the answer without a list of the history's files, None if there is none."""
    state, history = read_state(disk, path, look), path / HISTORY
    if state.head is None or not is_whole(state) or not disk.exists(history):
        return None
    seen = glance(disk, look, path, state, read_floor(floor_slots(disk, history), state))
    index = read_index(disk, path) if seen else None
    base = state.head.number - seen.files if seen else 0
    if seen is None or index is None or index.behind > base:
        return None
    return _said(disk, path, state) | {
        "oldest": _position(seen.oldest.to_json()),
        "files": seen.files,
        "bytes": seen.size_bytes,
        "gaps": [{"behind": base, "why": seen.why}],
        "bookmarks": _shown(index.between(base, state.head.number)),
    }


def _listed(disk: Disk, path: Path, look: Look) -> Json:
    past = look_at(disk, path, look)
    state, reach = past.state, past.reach
    kept = measured(look, past.history, past.kept.values())
    said = _said(disk, path, state) | {
        "bytes": sum(one.size_bytes for one in kept),
        "rewound": _rewound(state, kept),
    }
    if reach is None:
        gaps = [{"behind": None, "why": why_out_of_reach(state)}]
        return said | {"newest": None, "files": len(kept), "gaps": gaps}
    assert state.head is not None
    oldest = state.head
    if reach.sets:
        oldest = read_undo(disk, past.history, reach.sets[-1].name, read_front).mark.head
    return said | _promoted_at(disk, past) | {
        "oldest": _position(oldest.to_json()),
        "files": len(reach.sets),
        "gaps": [{"behind": reach.base, "why": reach.why}],
        "bookmarks": _shown(find_bookmarks(disk, past)),
    }  # fmt: skip


def _promoted_at(disk: Disk, past: Past) -> Json:
    """Return the newest state where that is within a file, as of a store promoted there."""
    one, seq = promoted_tail(past)
    if one is None:
        return {}
    aim = read_iocbs(disk, past.history / one.name.sealed)
    time_ns = next((iocb.time_ns for iocb in aim.records() if iocb.seq == seq), 0)
    place = {"epoch": one.name.epoch, "seq": seq, "number": one.name.number, "time_ns": time_ns}
    return {"newest": _position(place)}


def _rewound(state: StoreState, kept: Iterable[KeptSet]) -> Json | None:
    """Return what is kept of that which a promotion went back over, None if it did not."""
    promoted = state.promoted
    if promoted is None or promoted.newest.number <= promoted.fork.number:
        return None
    fork, epoch = promoted.fork.number, promoted.epoch  # What counts of it was applied anew.
    behind = [one for one in kept if one.name.number > fork and one.name.epoch < epoch]
    return {
        "fork": _position(promoted.fork.to_json()),
        "newest": _position(promoted.newest.to_json()),
        "files": len(behind),
        "bytes": sum(one.size_bytes for one in behind),
    }


def _said(disk: Disk, path: Path, state: StoreState) -> Json:
    return {
        "store": str(path),
        "group": state.group.hex() if state.group else None,
        "phase": state.phase.value,
        "newest": _position(state.head.to_json()) if state.head else None,
        "oldest": None,
        "files": 0,
        "bytes": 0,
        "gaps": [],
        "bookmarks": [],
        "rewound": None,
        "readers": read_audience(disk, path),
        **_settings(disk, path),
    }


def _shown(marks: Iterable[Bookmark]) -> list[Json]:
    return [
        {
            "label": one.label,
            "position": f"{one.epoch}:{one.seq}",
            "file": one.number,
            "time_ns": one.time_ns,
        }
        for one in marks
    ]


def why_out_of_reach(state: StoreState) -> str:
    """Return why nothing of the past of a store in *state* can be had."""
    if state.phase is Phase.PROMOTED and not state.doubt:
        return "it was promoted, and its mirror is written to as a source"
    return state.doubt or state.reason or "the store has no consistent mirror now"


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
    if past.reach is None or past.state.head is None:
        return []
    return find_marks(disk, past.path, past.reach.sets, past.reach.base, past.state.head.number)
