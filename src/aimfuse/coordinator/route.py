"""Journal files for a destination that gets some of the volumes: filtered copies.

A copy has the epoch, number, times and record numbers of its original. A record of a volume
that is not sent becomes a FLUSH of volume 0, which changes nothing, so that numbers have no
holes. Copies are chained by digests of their own, from the head of the first copy on; they are
made anew whenever they are wanted, and are the same bytes each time. What that needs, the
digest and the members at the cursor's file, is kept in the cursor.

A volume belongs by its name when it was created, or when the first copy began, and for good:
a rename changes nothing. A volume that is sent and is replaced by one that is not is removed.
"""

import contextlib
import os
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import trio

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.backlog import Backlog
from aimfuse.disk import Disk
from aimfuse.errors import StoreError
from aimfuse.journal.header import (
    HEADER_BYTES,
    NO_DIGEST,
    SEAL_AT,
    Identity,
    Seal,
    encode_identity,
    encode_seal,
    identity_seed,
)
from aimfuse.journal.names import JournalName
from aimfuse.journal.reader import AimFile, check_sealed, file_digest, read_sealed
from aimfuse.journal.records import (
    IOCB_BYTES,
    Iocb,
    RecordType,
    decode_table,
    encode_iocb,
    encode_table,
    padded,
)
from aimfuse.units import VolumeId

ROUTED = "routed"
"""Beneath a destination's account: copies on their way."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Which names a destination gets: those of *volumes* that are not in *exclude*."""

    volumes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Tell whether a volume created under *name* is sent."""
        wanted = not self.volumes or any(fnmatchcase(name, one) for one in self.volumes)
        return wanted and not any(fnmatchcase(name, one) for one in self.exclude)


def rule_of(config: DestinationConfig) -> Rule | None:
    """Return the destination's rule, None if it gets everything."""
    return Rule(config.volumes, config.exclude) if config.volumes or config.exclude else None


@dataclass(frozen=True, slots=True)
class Base:
    """Where copies begin: behind file *number* of *epoch*, whose copy has *digest*."""

    number: int
    epoch: int
    digest: bytes
    members: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Made:
    epoch: int
    digest: bytes
    prev_digest: bytes
    created: frozenset[int]


class Route:
    """The copies of one destination. Those up to the cursor are forgotten."""

    def __init__(
        self, disk: Disk, backlog: Backlog, directory: Path, rule: Rule, base: Base
    ) -> None:
        """Go on behind *base*; copies are put into *directory*."""
        self.rule = rule
        self._disk = disk
        self._backlog = backlog
        self._directory = directory
        self._base = base
        self._made: dict[int, _Made] = {}
        self._ready: set[int] = set()
        self._turn = trio.Lock()

    @property
    def first(self) -> int:
        """Return the file behind which copies can be made; a cursor is at it."""
        return self._base.number

    @property
    def through(self) -> int:
        """Return the newest file whose copy is known."""
        return self._base.number + len(self._made)

    def base_at(self, number: int) -> Base:
        """Return what a cursor at file *number*, which must be known, has to keep."""
        if number == self._base.number:
            return self._base
        made = (self._made[one] for one in range(self._base.number + 1, number + 1))
        members = self._base.members.union(*(one.created for one in made))
        return Base(number, self._made[number].epoch, self._made[number].digest, members)

    def forget_through(self, number: int) -> None:
        """Drop what a durable cursor at file *number* keeps by now."""
        if number <= self._base.number:
            return
        base = self.base_at(number)
        for one in range(self._base.number + 1, number + 1):
            del self._made[one]
        self._base = base
        for one in [ahead for ahead in self._ready if ahead <= number]:
            self.drop(one)  # Made ahead for a flight that was not needed any more.

    def digests(self, number: int) -> tuple[bytes, bytes] | None:
        """Return the digests of a copy and of the one before, None if it is not known."""
        made = self._made.get(number)
        return (made.digest, made.prev_digest) if made else None

    async def follow(self, number: int) -> None:
        """Learn all copies through file *number* without keeping them.

        Raises:
            JournalError, OSError: an original is damaged or cannot be read.
            StoreError: an original has left the spool.
        """
        async with self._turn:
            while self.through < number:
                await self._make(self.through + 1)

    async def copy(self, number: int) -> Path:
        """Return the copy of file *number*, made if need be; `drop` it afterwards.

        Raises:
            JournalError, OSError, StoreError: as `follow`.
        """
        async with self._turn:
            while self.through < number:
                await self._make(self.through + 1, keep=True)
            if number not in self._ready:
                await self._make(number, keep=True)
        return self._path(number)

    def drop(self, number: int) -> None:
        """Remove the copy of file *number*, which was sent, or was not and is made again."""
        self._ready.discard(number)
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink("route:unlink", self._path(number))

    def sweep(self) -> None:
        """Remove all copies that an earlier run left."""
        self._disk.mkdir("route:mkdir", self._directory)
        for name in self._disk.listdir(self._directory):
            self._disk.unlink("route:unlink", self._directory / name)
        self._ready.clear()

    def _path(self, number: int) -> Path:
        name = self._backlog.name(number)
        return self._directory / (name.sealed if name else str(number))

    async def _make(self, number: int, *, keep: bool = False) -> None:
        name = self._backlog.name(number)
        if name is None or number <= self._base.number:
            raise StoreError(f"the copy of file {number} cannot be made again")
        before = self._made.get(number - 1)
        base = self._base
        epoch = before.epoch if before else base.epoch
        digest = before.digest if before else base.digest
        earlier = (made.created for one, made in self._made.items() if one < number)
        members = set(base.members).union(*earlier)
        # In a worker thread; the lock keeps everybody else from what it reads.
        work = partial(self._copy, name, epoch, digest, members, keep=keep)
        self._made[number] = await trio.to_thread.run_sync(work)
        if keep:
            self._ready.add(number)

    def _copy(
        self, name: JournalName, epoch: int, digest: bytes, members: set[int], *, keep: bool
    ) -> _Made:
        aim = read_sealed(self._disk, self._backlog.path(name))
        known = frozenset(members)
        data = filtered(aim, self.rule, members, epoch, digest)
        path = self._directory / name.sealed
        seal = check_sealed(path, data).seal  # As the store will look at it.
        if keep:
            fd = self._disk.open("route:create", path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                self._disk.pwrite("route:write", fd, [data], 0)
            finally:
                self._disk.close(fd)
        return _Made(name.epoch, seal.digest, digest, frozenset(members) - known)


def filtered(aim: AimFile, rule: Rule, members: set[int], epoch: int, prev_digest: bytes) -> bytes:
    """Return the copy of *aim* behind a file of *epoch* whose copy has *prev_digest*.

    *members* are the ids of the volumes that are sent; those that it creates are added.
    """
    identity = _attached(aim.identity, epoch, prev_digest)
    seed = identity_seed(encode_identity(identity))
    body = bytearray()
    table: list[bytes] = []
    payload_bytes = 0
    for iocb in aim.iocbs:
        kind, volume, offset, length, payload = _record(aim, iocb, rule, members)
        data_at = HEADER_BYTES + len(body) + IOCB_BYTES
        raw = encode_iocb(
            seed, kind, volume, iocb.seq, offset, length, data_at, iocb.time_ns, payload
        )
        table.append(raw)
        body += raw
        body += payload
        body += bytes(padded(len(payload)) - len(payload))
        payload_bytes += 0 if iocb.is_mark else len(payload)
    iocbs = b"".join(table)
    end_at = HEADER_BYTES + len(body)
    seal = replace(
        aim.seal, total_bytes=end_at + len(iocbs), iocb_at=end_at, data_bytes=len(body),
        payload_bytes=payload_bytes, prev_digest=prev_digest, digest=NO_DIGEST,
    )  # fmt: skip
    header = _header(identity, seal)
    digest = file_digest(header, (bytes(body), iocbs))
    return _header(identity, replace(seal, digest=digest)) + bytes(body) + iocbs


def _header(identity: Identity, seal: Seal) -> bytes:
    return (encode_identity(identity)[:SEAL_AT] + encode_seal(seal)).ljust(HEADER_BYTES, b"\0")


def _attached(identity: Identity, epoch: int, prev_digest: bytes) -> Identity:
    """Let the first file of an epoch name the copy that it branched off from."""
    if identity.epoch == epoch or not identity.parent.epoch:
        return identity
    return replace(identity, parent=replace(identity.parent, digest=prev_digest))


_Fields = tuple[RecordType, int, int, int, bytes]
_SKIPPED: _Fields = (RecordType.FLUSH, 0, 0, 0, b"")


def _record(aim: AimFile, iocb: Iocb, rule: Rule, members: set[int]) -> _Fields:
    """Return type, volume, offset, length and payload of a record in the copy."""
    kind, volume, offset = iocb.type, int(iocb.volume), int(iocb.offset)
    payload = bytes(aim.payload(iocb))
    if kind is RecordType.TABLE:
        entries = (one for one in decode_table(payload) if one.volume in members)
        return kind, volume, offset, iocb.length, encode_table(entries)
    if kind is RecordType.CREATE and rule.takes(payload.decode()):
        members.add(volume)
    elif kind is RecordType.RENAME:
        if volume in members:
            return kind, volume, offset if offset in members else 0, iocb.length, payload
        return (RecordType.UNLINK, VolumeId(offset), 0, 0, b"") if offset in members else _SKIPPED
    if volume and volume not in members:
        return _SKIPPED
    return kind, volume, offset, iocb.length, payload
