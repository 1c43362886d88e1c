"""What there is of branches, for whoever asks: the kept ones, and an image that is one still."""

import time
from pathlib import Path
from typing import Any

from aimfuse.config import GroupConfig, load
from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import CheckpointFile
from aimfuse.errors import UsageError
from aimfuse.journal.locks import GROUP_LOCK
from aimfuse.journal.superseded import read_superseded
from aimfuse.manager.files import lock_holder
from aimfuse.manager.target import Kind, find_targets
from aimfuse.takeover.branches import (
    Branch,
    about,
    branch_name,
    find_branch,
    list_branches,
    written,
)
from aimfuse.takeover.rejoin import home_of
from aimfuse.takeover.tail import survey
from aimfuse.units import SECOND_NS, format_bytes

Json = dict[str, Any]


def place_of(path: Path, state: Path | None) -> tuple[Path, GroupConfig | None]:
    """Return where branches are kept for what *path* names, and its settings if it is a source.

    Raises:
        UsageError: it names neither a source nor a store, or several.
        ConfigError: its settings cannot be read.
    """
    targets = find_targets([state or path])
    if len(targets) != 1:
        raise UsageError(f"{path} is more than one", hint="Name one image, or one store.")
    if targets[0].kind is Kind.STORE:
        return targets[0].path, None
    config = load(targets[0].path)
    return home_of(config), config


def listing(place: Path, config: GroupConfig | None) -> list[Json]:
    """Return one object for each branch; `is_image` marks the one that the image still is."""
    disk = Disk()
    kept = [
        {**one.about, "path": str(one.path), "is_image": False}
        for one in list_branches(disk, place)
    ]
    current = _current(disk, config) if config else None
    return [*kept, current] if current else kept


def find(place: Path, config: GroupConfig | None, name: str | None) -> Branch:
    """Return a kept branch.

    Raises:
        UsageError: there is none of that name; what the image still is has no copy yet.
    """
    current = _current(Disk(), config) if config else None
    if current and name in {None, current["name"]}:
        assert config is not None
        raise UsageError(
            f"branch {current['name']} is {config.image} itself",
            hint=f"Copy that file, or serve it: aimfuse mount {config.image} MOUNTPOINT --diverge. "
            "It is kept by itself when the image rejoins.",
        )
    return find_branch(Disk(), place, name)


def images_of(place: Path, config: GroupConfig | None, name: str | None) -> list[Path]:
    """Return where the images of a branch lie, those of the image itself while it is one."""
    current = _current(Disk(), config) if config else None
    if config is None or current is None or name not in {None, current["name"]}:
        return find_branch(Disk(), place, name).volumes
    if lock_holder(config.state_dir / GROUP_LOCK) is not None:
        raise UsageError(f"{config.image} is mounted", hint="Read it in its mount.")
    checkpoint = CheckpointFile(Disk(), config.state_dir).read()
    if checkpoint is None or not checkpoint.clean:
        raise UsageError(
            f"{config.image} was not unmounted cleanly: its newest writes are in the journal",
            hint=f"Mount it: aimfuse mount {config.image} MOUNTPOINT --diverge",
        )
    if config.image.is_dir():
        return [config.image / one.name for one in checkpoint.entries()]
    return [config.image]


def describe(one: Json) -> str:
    """Return the line of one branch, for people."""
    fork, last = one["fork"], int(one["last_ns"])
    size = f", {format_bytes(int(one['bytes']))}" if one["writes"] else ""
    parts = [str(one["name"]), f"{written(one)}{size} behind {fork['epoch']}:{fork['seq']}"]
    if last:
        parts.append(time.strftime("until %Y-%m-%d %H:%M:%S", time.localtime(last / SECOND_NS)))
    parts.append(f"the image itself, {one['path']}" if one["is_image"] else str(one["path"]))
    return "  ".join(parts)


def _current(disk: Disk, config: GroupConfig) -> Json | None:
    """Return the branch that the image is: superseded, and with more than the fork."""
    note = read_superseded(disk, config.state_dir)
    if note is None or note.promotion is None or note.is_final:
        return None
    checkpoint = CheckpointFile(disk, config.state_dir).read()
    if checkpoint is None:
        return None
    tail = survey(disk, config, checkpoint, note.promotion.fork)
    if tail.is_empty:
        return None
    names = [one.name for one in checkpoint.entries()]
    said = about(tail, names)
    return {**said, "name": branch_name(tail), "path": str(config.image), "is_image": True}
