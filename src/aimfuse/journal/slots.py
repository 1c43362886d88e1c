"""Small state that survives a crash at any byte: two files, written in turn.

Each slot: magic[8]="AIM-SLOT" generation:u64 length:u32 crc:u32, little-endian, then a JSON
object of `length` bytes; the CRC-32C covers generation, length and object. The valid slot with
the higher generation counts. Writing overwrites the other one in place and syncs it. A slot
that is not there yet is made beside and renamed, so that the very first write is never found
half done.
"""

import json
import os
import struct
from pathlib import Path
from typing import Any

from crc32c import crc32c

from aimfuse.disk import Disk
from aimfuse.errors import StateLost
from aimfuse.units import MIB

SLOT_BYTES_MAX = 16 * MIB
READS_MAX = 5
"""Looks at both slots before they count as lost: a writer can overtake a reader between two."""

_MAGIC = b"AIM-SLOT"
_HEAD = struct.Struct("<8sQII")
_COVERED = struct.Struct("<QI")

State = dict[str, Any]


class Slots:
    """The state kept at ``BASE.0`` and ``BASE.1``. One writer; readers may come at any time."""

    def __init__(self, disk: Disk, base: Path, label: str) -> None:
        """Use the two files beside *base*; *label* names the disk operations."""
        self._disk = disk
        self._base = base
        self._label = label
        self._paths = (base.with_name(base.name + ".0"), base.with_name(base.name + ".1"))
        self._generation = 0
        self._names_durable: set[Path] = set()

    def exists(self) -> bool:
        """Tell whether the state was ever written."""
        return any(map(self._disk.exists, self._paths))

    def read(self) -> State | None:
        """Return the newest valid state, or None if there never was one.

        Raises:
            StateLost: the files are there, but neither is whole.
            OSError: a slot is there and cannot be opened or read. Nothing was changed.
        """
        for _ in range(READS_MAX):
            found = [slot for path in self._paths if (slot := self._read_slot(path))]
            if found:
                self._generation, state = max(found, key=lambda slot: slot[0])
                return state
            if not self.exists():
                return None
        raise StateLost(self._base)

    def write(self, state: State) -> None:
        """Make *state* the newest, durable once this returns.

        After an `OSError` the state before still counts; a later write may try again, since
        it writes the whole slot anew.
        """
        generation = self._generation + 1
        body = json.dumps(state, separators=(",", ":")).encode()
        assert len(body) <= SLOT_BYTES_MAX
        covered = _COVERED.pack(generation, len(body))
        head = _HEAD.pack(_MAGIC, generation, len(body), crc32c(body, crc32c(covered)))
        path = self._paths[generation % 2]
        is_new = not self._disk.exists(path)
        at = path.with_name(path.name + ".part") if is_new else path
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if is_new else 0)
        fd = self._disk.open(f"{self._label}:open", at, flags)
        try:
            self._disk.pwrite(f"{self._label}:write", fd, [head, body], 0)
            self._disk.fdatasync(f"{self._label}:sync", fd)
        finally:
            self._disk.close(fd)
        if is_new:
            self._disk.rename(f"{self._label}:rename", at, path)
        if path not in self._names_durable:  # A crash may have come before its first sync_dir.
            self._disk.sync_dir(f"{self._label}:sync_dir", path.parent)
            self._names_durable.add(path)
        self._generation = generation

    def _read_slot(self, path: Path) -> tuple[int, State] | None:
        try:
            fd = self._disk.open(f"{self._label}:read", path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            return _decode(self._disk.pread(fd, SLOT_BYTES_MAX + _HEAD.size, 0))
        finally:
            self._disk.close(fd)


def _decode(data: bytes) -> tuple[int, State] | None:
    if len(data) < _HEAD.size:
        return None
    magic, generation, length, crc = _HEAD.unpack_from(data)
    body = data[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(body) != length:
        return None
    if crc32c(body, crc32c(_COVERED.pack(generation, length))) != crc:
        return None
    state = json.loads(body)
    return (generation, state) if isinstance(state, dict) else None
