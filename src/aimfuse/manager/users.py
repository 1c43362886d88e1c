"""Who still uses a mount: loop devices, mounts and processes. Looks, and touches nothing in it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from aimfuse.manager.target import unescape

_LINKS = ("cwd", "root", "exe")
USERS_SHOWN_MAX = 8


def mount_users(mountpoint: Path) -> list[str]:
    """Return one line for each user of the file system at *mountpoint*.

    Processes of other users are only seen by root. Never opens or stats anything in the
    mount: a hung one would hang the caller.
    """
    return [*_loop_devices(mountpoint), *_mounts_below(mountpoint), *_processes(mountpoint)]


def named(users: list[str]) -> str:
    """Return the first few users as one text."""
    shown = "; ".join(users[:USERS_SHOWN_MAX])
    more = len(users) - USERS_SHOWN_MAX
    return f"{shown}; and {more} more" if more > 0 else shown


def _loop_devices(mountpoint: Path) -> Iterator[str]:
    for path in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            backing = path.read_text(encoding="utf-8", errors="replace").strip()
            if _within(backing, mountpoint):
                device = f"/dev/{path.parts[3]}"
                places = ", ".join(place for source, place in _mounts() if source == device)
                on = f", mounted on {places}" if places else ""
                yield f"{device} (loop device on {Path(backing).name}{on})"


def _mounts_below(mountpoint: Path) -> Iterator[str]:
    for source, place in _mounts():
        if _within(place, mountpoint) and place != str(mountpoint):
            yield f"{source} (mounted on {place})"


def _mounts() -> list[tuple[str, str]]:
    found = []
    with contextlib.suppress(OSError):
        table = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        for line in filter(None, table.split("\n")):
            source, place, *_ = line.split(" ")
            found.append((source, unescape(place)))
    return found


def _processes(mountpoint: Path) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # It ended, or it is not ours to see.
            used = next(_used(process, mountpoint), None)
            if used is not None:
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                yield f"{name} (pid {process.name}, {used})"


def _used(process: Path, mountpoint: Path) -> Iterator[str]:
    for link in _LINKS:
        with contextlib.suppress(OSError):
            if _within(os.readlink(process / link), mountpoint):  # noqa: PTH115 - no Path is needed
                yield {"cwd": "works in it", "root": "has its root there"}.get(link, "runs from it")
    with contextlib.suppress(OSError):
        for fd in os.listdir(process / "fd"):  # noqa: PTH208 - as above
            with contextlib.suppress(OSError):
                target = os.readlink(process / "fd" / fd)  # noqa: PTH115 - as above
                if _within(target, mountpoint):
                    yield f"has {Path(target).name} open"
    with contextlib.suppress(OSError):
        maps = (process / "maps").read_text(encoding="utf-8", errors="replace")
        if f" {mountpoint}/" in maps:
            yield "has a file of it mapped"


def _within(path: str, directory: Path) -> bool:
    return path == str(directory) or path.startswith(f"{directory}/")
