"""What is to be said of a store that was promoted."""

from aimfuse.config import STORE_SOURCE
from aimfuse.replay.as_source import is_one_image
from aimfuse.replay.kept import KeptSet, list_kept
from aimfuse.replay.past import look_at
from aimfuse.replay.state import Head, Json, Promoted
from aimfuse.replay.store import Store


def describe(
    store: Store, *, lacking: Json, warnings: list[str] | None = None, already: bool = False
) -> Json:
    """Return it as JSON. `rewound`: what lay behind the point, and is kept as files."""
    state, promoted = store.state, store.state.promoted
    assert promoted is not None
    kept = list_kept(store.look, store.history)
    behind = [one for number, one in kept.items() if number > promoted.fork.number]
    image = store.path / "mirror"
    if is_one_image(store):
        image /= state.volumes[0].name
    past = look_at(store.disk, store.path, store.look)
    return {
        "store": str(store.path),
        "dry_run": False,
        "already": already,
        "epoch": promoted.epoch,
        "position": _position(promoted, kept),
        "time_ns": state.head.time_ns if state.head and promoted.seq else promoted.fork.time_ns,
        "fork": _told(promoted.fork),
        "newest": _told(promoted.newest),
        "rewound": {
            "files": max(0, promoted.newest.number - promoted.fork.number),
            "kept_files": len(behind),
            "kept_bytes": sum(one.size_bytes for one in behind),
            "directory": str(store.path / "history"),
        },
        "lacking": lacking,
        "past": past.reach is not None,
        "image": str(image),
        "state_dir": str(store.path / STORE_SOURCE),
        "volumes": [{"name": one.name, "size": one.size_bytes} for one in state.volumes],
        "warnings": warnings or [],
    }


def _position(promoted: Promoted, kept: dict[int, KeptSet]) -> str:
    """Return the last record of the old history that counts."""
    fork = promoted.fork
    if not promoted.seq:
        return f"{fork.epoch}:{fork.seq}"
    behind = kept.get(fork.number + 1)
    return f"{behind.name.epoch if behind else promoted.newest.epoch}:{promoted.seq}"


def _told(head: Head) -> Json:
    return {
        "position": f"{head.epoch}:{head.seq}",
        "file": head.number,
        "time_ns": head.time_ns or None,
    }
