"""Seeds: a finished store that is carried on a disk, and taken over into another place.

``seed.json`` makes a store a seed: the position it ends at and the digests of its volumes. It
is written last. A store is made of it in ``seed.part/``, whole and checked, then linked into
place; the state comes last, so that whatever is interrupted is no store and goes on, volume by
volume, when it is repeated. A digest covers the length and each MiB that is not all zero, with
its offset: holes cost nothing, and two disks may disagree about them.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from aimfuse.disk import Disk, publish, read_file, try_lock
from aimfuse.errors import BusyError, StateLost, StoreError, UsageError
from aimfuse.journal.locks import STORE_LOCK
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.slots import Slots
from aimfuse.replay.state import Phase, StoreState
from aimfuse.replay.store import Store
from aimfuse.units import MIB, align_down, format_bytes

SEED = "seed.json"
PART = "seed.part"
VERSION = 1
_JSON_BYTES_MAX = 16 * MIB
_GRAIN_BYTES = MIB
_ZEROS = bytes(_GRAIN_BYTES)

Say = Callable[[str], None]


def finish_seed(disk: Disk, seed: Path, number: int, say: Say) -> None:
    """Make the store *seed* a seed, durably; the source counts on its files up to *number*.

    Raises:
        StoreError: it has not got them, or is not consistent.
        BusyError: somebody replays it.
        OSError: as the disk gave it.
    """
    with _Held(disk, seed):
        state = _read_state(disk, seed)
        if state is None or state.phase is not Phase.CONSISTENT or state.head is None:
            raise StoreError(f"{seed} is not consistent yet", hint="Run this again: it goes on.")
        if state.head.number < number:
            problem = f"{seed} ends at file {state.head.number}, the source counts on {number}"
            raise StoreError(problem, hint="Run this again: it goes on.")
        digests = {}
        for entry in state.volumes:
            say(f"{entry.name}: checking {format_bytes(entry.size_bytes)}")
            fd = disk.open("seed:read", _data(seed, entry), os.O_RDONLY)
            try:
                if disk.size(fd) != entry.size_bytes:
                    raise StoreError(f"{entry.name} has another size than its store says")
                digests[f"{entry.volume:08d}"] = _digest(disk, fd, entry.size_bytes)
            finally:
                disk.close(fd)
        content = {"version": VERSION, "state": state.to_json(), "digests": digests}
        publish(disk, "seed", seed / SEED, json.dumps(content).encode())


def reopen_seed(disk: Disk, seed: Path) -> None:
    """Make a seed an ordinary store again, which may change."""
    if disk.exists(seed / SEED):
        disk.unlink("seed:unlink", seed / SEED)
        disk.sync_dir("seed:sync_dir", seed)


def import_seed(disk: Disk, seed: Path, path: Path, say: Say) -> StoreState:
    """Make *path* a store with what *seed* holds; nothing is written to the seed.

    Killed anywhere, it goes on when it is called again.

    Raises:
        UsageError: *seed* is no finished seed, or there is no place for the store.
        StoreError: *path* is a store that is in use, or a volume arrived damaged.
        BusyError: somebody replays one of the two.
        OSError: as a disk gave it, such as when it is full.
    """
    with _Held(disk, seed):
        state, digests = _read_seed(disk, seed)
        if not disk.exists(path):
            if not disk.exists(path.absolute().parent):
                hint = "A store's parent is made by hand, as for a first copy over the line."
                raise UsageError(f"{path.parent} is not there", hint=hint)
            disk.mkdir("seed:mkdir", path, 0o750)
            disk.sync_dir("seed:sync_dir", path.parent)
        store = Store(disk, path)
        try:
            store.lock()
            _take_over(store, seed, state, digests, say)
        finally:
            store.close()
    return state


def _take_over(
    store: Store, seed: Path, state: StoreState, digests: dict[str, str], say: Say
) -> None:
    disk = store.disk
    store.open()
    if store.state.phase is not Phase.EMPTY:
        if store.state == state:  # Done, but for the tidying up.
            _forget_part(disk, store.home / PART)
            return
        raise StoreError(
            f"{store.path} is a store already ({store.state.phase.value})",
            hint="Name a place that is not there yet, or move that one away.",
        )
    part = store.home / PART
    disk.mkdir("seed:mkdir", part)
    for entry in state.volumes:
        _copy(disk, _data(seed, entry), part, entry, digests[f"{entry.volume:08d}"], say)
    for entry in state.volumes:
        disk.link("seed:link", part / f"{entry.volume:08d}", store.volume_path(entry.volume))
    disk.sync_dir("seed:sync_dir", store.volumes)
    store.derive_links((), state.volumes)
    store.save(state)
    _forget_part(disk, part)


def _copy(disk: Disk, source: Path, part: Path, entry: VolumeEntry, digest: str, say: Say) -> None:
    """Copy one volume, unless it is there; its name appears once it is whole and durable."""
    target = part / f"{entry.volume:08d}"
    if disk.exists(target):
        return
    beside = target.with_name(target.name + ".part")
    say(f"{entry.name}: copying {format_bytes(entry.size_bytes)}")
    reader = disk.open("seed:read", source, os.O_RDONLY)
    try:
        writer = disk.open("seed:create", beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            for offset, data in _grains(disk, reader, entry.size_bytes):
                disk.pwrite("seed:write", writer, [data], offset)
            disk.truncate("seed:truncate", writer, entry.size_bytes)
            disk.fsync("seed:sync", writer)
            disk.drop_cache(writer)  # What is read now comes from the disk.
            if _digest(disk, writer, entry.size_bytes) != digest:
                raise StoreError(
                    f"{entry.name} is not what was exported: the seed or its disk is damaged",
                    hint="Look at that disk. `aimfuse seed export` into an empty directory "
                    "makes another seed.",
                )
        finally:
            disk.close(writer)
    finally:
        disk.close(reader)
    disk.rename("seed:rename", beside, target)
    disk.sync_dir("seed:sync_dir", part)


def _forget_part(disk: Disk, part: Path) -> None:
    if disk.exists(part):
        for name in disk.listdir(part):
            disk.unlink("seed:unlink", part / name)
        disk.rmdir("seed:rmdir", part)


def _grains(disk: Disk, fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of each MiB that is not all zero."""
    at = 0
    for low, high in disk.data_ranges(fd, 0, size):
        at = max(at, align_down(low, _GRAIN_BYTES))
        while at < high:
            data = disk.pread(fd, min(_GRAIN_BYTES, size - at), at)
            if data != _ZEROS[: len(data)]:
                yield at, data
            at += _GRAIN_BYTES


def _digest(disk: Disk, fd: int, size: int) -> str:
    digest = blake3(size.to_bytes(8, "little"))
    for offset, data in _grains(disk, fd, size):
        digest.update(offset.to_bytes(8, "little"))
        digest.update(data)
    return str(digest.hexdigest())


def _data(store: Path, entry: VolumeEntry) -> Path:
    return store / "volumes" / f"{entry.volume:08d}"


def _read_seed(disk: Disk, seed: Path) -> tuple[StoreState, dict[str, str]]:
    try:
        content: dict[str, Any] = json.loads(read_file(disk, seed / SEED, _JSON_BYTES_MAX))
        state = StoreState.from_json(content["state"])
        names = [f"{entry.volume:08d}" for entry in state.volumes]
        digests = {name: str(content["digests"][name]) for name in names}
    except FileNotFoundError as exc:
        hint = "`aimfuse seed export` at the source writes seed.json when it has come to its end."
        raise UsageError(f"{seed} is no finished seed", hint=hint) from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        problem = f"{seed / SEED} is damaged, or of another version: {exc!r}"
        raise StoreError(problem, hint="Export it again, with the same release.") from exc
    found = _read_state(disk, seed)
    if found is None or found != state:
        raise StoreError(
            f"{seed} was changed after it was exported", hint="Export it again: it goes on."
        )
    return state, digests


def _read_state(disk: Disk, store: Path) -> StoreState | None:
    try:
        data = Slots(disk, store / "state", "seed").read()
        return None if data is None else StoreState.from_json(data)
    except (StateLost, KeyError, TypeError, ValueError) as exc:
        raise StoreError(f"{store}: its state is damaged: {exc}", hint="Export it again.") from exc


class _Held:
    """Keep replayers off a store that may lie on a medium that cannot be written."""

    def __init__(self, disk: Disk, store: Path) -> None:
        self._disk, self._store, self._fd = disk, store, -1

    def __enter__(self) -> None:
        try:
            self._fd = self._disk.open("seed:lock", self._store / STORE_LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return
        if not try_lock(self._fd):
            self._disk.close(self._fd)
            raise BusyError(f"{self._store} is being replayed", hint="Stop that replayer first.")

    def __exit__(self, *_exc: object) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)
