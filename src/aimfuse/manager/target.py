"""Find out what a path on the command line means: a source, a store, or several of them."""

import contextlib
import json
import queue
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from aimfuse.config import CONFIG_NAME, STATE_SUFFIX, STORE_SOURCE
from aimfuse.errors import BusyError, UsageError
from aimfuse.manager import far
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import JSON_BYTES_MAX, State
from aimfuse.manager.source import source_status
from aimfuse.mountpoint import VIEW_NOTE, view_above

CONTROL_DIR = ".aimfuse"
MOUNT_S_MAX = 5.0
STORES_MAX = 1000


class Kind(Enum):
    """Which end of the way a target is."""

    SOURCE = "source"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class Target:
    """A group's state directory on the source host, or a store on the far one."""

    kind: Kind
    path: Path

    def status(self) -> State:
        """Return its state now; blocks for a few seconds at worst."""
        if self.kind is Kind.SOURCE:
            return source_status(self.path)
        return far.store_status(self.path)


def find_targets(paths: list[Path]) -> list[Target]:
    """Return what the paths mean, in their order, each once.

    Without a path: everything of ours that is mounted, else what the working directory holds.

    Raises:
        UsageError: a path is nothing of ours.
        BusyError: a mount does not answer.
    """
    if paths:
        found = [target for path in paths for target in _resolve(path)]
    else:
        found = [target for mount in mounts() for target in _resolve(mount)]
        found = found or list(_inside(Path.cwd()))
    if not found:
        raise UsageError(
            "nothing of aimfuse is mounted, and there is nothing of it here",
            hint="Name an image, a mountpoint, a state directory or a store.",
        )
    return list(dict.fromkeys(found))


def find_source(path: Path, state: Path | None = None) -> Path:
    """Return the state directory of the one group that *path* (or *state*) names.

    Raises:
        UsageError: it names none, or a store.
        BusyError: a mount does not answer.
    """
    targets = _resolve(state or path)
    if len(targets) == 1 and targets[0].kind is Kind.SOURCE:
        return targets[0].path
    raise UsageError(
        f"{path} is not one source", hint="Name an image, its mountpoint or its state directory."
    )


def find_mounted(path: Path, state: Path | None = None) -> Path:
    """Return the state directory of the group that is to be unmounted at *path*.

    Raises:
        BusyError: nothing of ours is mounted there, or a mount does not answer.
    """
    try:
        return find_source(path, state)
    except UsageError as exc:
        here = ", ".join(map(str, mounts()))
        hint = f"Mounted: {here}." if here else "Nothing of it is mounted anywhere here."
        raise BusyError(f"nothing of aimfuse is mounted at {path}", hint=hint) from exc


def mounts() -> list[Path]:
    """Return the mountpoints of aimfuse in this process's view of the file system."""
    return list(_mounted())


def _mounted() -> dict[Path, str]:
    """Return the image, as the mount table has it, for each mountpoint of aimfuse."""
    found = {}
    with contextlib.suppress(OSError):
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        for line in filter(None, table.split("\n")):  # A name may hold what else ends a line.
            before, _, after = line.partition(" - ")
            kind, image, *_ = after.split(" ")
            if kind.startswith("fuse") and kind.endswith("aimfuse"):
                found[Path(unescape(before.split(" ")[4]))] = unescape(image)
    return found


def unescape(text: str) -> str:
    r"""Undo what a mount table writes for odd bytes: ``\040`` for a space and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _resolve(path: Path) -> list[Target]:
    path = path.absolute()
    _check_no_view(path)
    if path in mounts():
        return [Target(Kind.SOURCE, _state_dir_of_mount(path))]
    if path.parent in mounts():
        return [Target(Kind.SOURCE, _state_dir_of_mount(path.parent))]
    if _is_state_dir(path):
        return [Target(Kind.SOURCE, path)]
    beside = path.with_name(path.name + STATE_SUFFIX) if path.name else path
    if _is_state_dir(beside):
        return [Target(Kind.SOURCE, beside)]
    found = list(_inside(path))
    if found:
        return found
    if not path.exists():
        raise UsageError(f"{path} does not exist", hint="Check the path.")
    raise UsageError(
        f"{path} is no image with a state directory, no mountpoint and no store",
        hint=f"An image becomes one with `aimfuse init {path}`, a directory of stores with "
        f"`aimfuse replay {path}`; a state directory elsewhere can be named itself.",
    )


def _check_no_view(path: Path) -> None:
    """Say what it is where a view, or a file in one, is named in place of a source or a store.

    Raises:
        UsageError: it is one.
    """
    view = view_above(path)
    if view is None:
        return
    told = _told(Path(view.mountpoint) / VIEW_NOTE)
    point = Fields(told).text("position") if isinstance(told, dict) else ""
    at = f" at {point}" if point else ""
    kind = "with a scratch" if view.is_scratch else "read only"
    raise UsageError(
        f"{path} is no source and no store, but a view of {view.store}{at}, {kind}",
        hint=f"Its store: aimfuse status {view.store}. To end it: aimfuse umount {view.mountpoint}",
    )


def _told(path: Path) -> object:
    """Return the JSON that a file in a mount of ours says, or what kept it from that.

    Asked in a thread, because a mount that hangs hangs its readers.
    """
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()

    def ask() -> None:
        try:
            with path.open("rb") as file:
                answers.put(json.loads(file.read(JSON_BYTES_MAX)))
        except (OSError, ValueError) as exc:
            answers.put(exc)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=MOUNT_S_MAX)
    except queue.Empty:
        return TimeoutError("no answer")


def _inside(path: Path) -> Iterator[Target]:
    """Yield the store that *path* is, or the groups and stores right beneath it."""
    if far.is_store(path):
        yield _of_store(path)
        return
    children: list[Path] = []
    with contextlib.suppress(OSError):
        children = sorted(path.iterdir())[:STORES_MAX]
    for child in children:
        with contextlib.suppress(OSError):  # One that may not be looked into hides no other.
            if _is_state_dir(child):
                yield Target(Kind.SOURCE, child)
            elif child.is_dir() and far.is_store(child):
                yield _of_store(child)


def _of_store(path: Path) -> Target:
    """Return the store, or the source that it has become."""
    source = path / STORE_SOURCE
    if (source / CONFIG_NAME).exists():
        return Target(Kind.SOURCE, source)
    return Target(Kind.STORE, path)


def _is_state_dir(path: Path) -> bool:
    return any((path / name).exists() for name in (CONFIG_NAME, "checkpoint.0", "checkpoint.1"))


def _state_dir_of_mount(mountpoint: Path) -> Path:
    """Return whose mount it is: the mount table names the image, else the mount is asked."""
    named = _mounted().get(mountpoint)
    if named is None:
        raise BusyError(f"{mountpoint} is being unmounted", hint="Look again in a moment.")
    image = Path(named)
    beside = image.with_name(image.name + STATE_SUFFIX) if image.name else image
    if _is_state_dir(beside):
        return beside
    answer = _told(mountpoint / CONTROL_DIR / "status")
    if not isinstance(answer, dict):
        raise BusyError(
            f"{mountpoint}: the mount does not answer: {answer}",
            hint="If its driver is gone: fusermount3 -u MOUNTPOINT, then mount again.",
        )
    if state_dir := answer.get("state_dir"):
        return Path(str(state_dir))
    raise UsageError(
        f"{mountpoint}: its state directory is not beside {image}",
        hint="Name the state directory itself.",
    )
