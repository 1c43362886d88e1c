"""A made-up source: a model of volumes, and the AIM files that tell its history."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.journal.contents import fold_into, read_contents
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.header import NO_DIGEST, FileKind, Identity, Parent
from aimfuse.journal.names import JournalName, SyncName
from aimfuse.journal.records import RecordType, VolumeEntry, encode_table
from aimfuse.journal.verify import Hashed, encode_hashes, hash_of
from aimfuse.journal.writer import AimWriter
from aimfuse.units import Epoch, FileNumber, Seq, VolumeId

GROUP = bytes(range(16))
SYNC_ID = 0xA1


@dataclass(slots=True)
class Volume:
    name: str
    data: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class Record:
    kind: RecordType
    volume: int
    offset: int
    length: int
    payload: bytes


class Source:
    """Records go into a pending list and into the model; `roll` makes a file of them."""

    def __init__(self, spool: Path, group: bytes = GROUP) -> None:
        spool.mkdir(parents=True, exist_ok=True)
        self.spool = spool
        self.group = group
        self.volumes: dict[int, Volume] = {}
        self.next_volume = 1
        self.epoch, self.number, self.seq, self.digest = 1, 0, 0, NO_DIGEST
        self.clock_ns = 1_000_000
        self.parent = Parent()
        self.pending: list[Record] = []
        self.table = b""

    # What an application does.

    def create(self, name: str, size: int = 0) -> int:
        volume = self.next_volume
        self.next_volume += 1
        self._add(RecordType.CREATE, volume, payload=name.encode())
        self.volumes[volume] = Volume(name)
        if size:
            self.truncate(volume, size)
        return volume

    def write(self, volume: int, offset: int, data: bytes) -> None:
        self._add(RecordType.WRITE, volume, offset, len(data), data)
        if volume in self.volumes:
            self._grow(volume, offset + len(data))[offset : offset + len(data)] = data

    def zero(self, volume: int, offset: int, length: int) -> None:
        self._add(RecordType.ZERO, volume, offset, length)
        if volume in self.volumes:
            self._grow(volume, offset + length)[offset : offset + length] = bytes(length)

    def truncate(self, volume: int, size: int) -> None:
        old = self.volumes.get(volume, Volume("")).data
        self._add(RecordType.TRUNCATE, volume, len(old), size)
        del old[size:]
        old.extend(bytes(size - len(old)))

    def rename(self, volume: int, name: str) -> None:
        replaced = next((v for v, held in self.volumes.items() if held.name == name), 0)
        if replaced == volume:
            return
        self._add(RecordType.RENAME, volume, replaced, payload=name.encode())
        self.volumes.pop(replaced, None)
        self.volumes[volume].name = name

    def unlink(self, volume: int) -> None:
        self._add(RecordType.UNLINK, volume)
        del self.volumes[volume]

    def mark(self, kind: RecordType, payload: bytes = b"") -> None:
        self._add(kind, 0, payload=payload)

    def mark_bookmark(self, label: str) -> None:
        self._add(RecordType.BOOKMARK, 0, payload=label.encode())

    def verify(self, volume: int, grain: int = 4096) -> None:
        """Say what all of the volume holds now: hashes, and zeros as one range."""
        data, found = bytes(self.volumes[volume].data), []
        for at in range(0, len(data), grain):
            piece = data[at : at + grain]
            found.append(Hashed(at, len(piece), hash_of(piece)))
        self._add(RecordType.VERIFY, volume, 0, len(data), encode_hashes(found))

    def snapshot(self) -> dict[str, bytes]:
        return {volume.name: bytes(volume.data) for volume in self.volumes.values()}

    # Making files of it.

    def roll(self) -> Path:
        """Seal what is pending as the next journal file."""
        self.number += 1
        identity = Identity(self.group, Epoch(self.epoch), FileNumber(self.number), 1, self.parent)
        writer = AimWriter.create(Disk(), self.spool, identity, None)
        writer.mark(RecordType.TABLE, Seq(self.seq), 0, 1, self.table)
        for record in self.pending:
            self.seq += 1
            writer.append(
                record.kind, record.volume, Seq(self.seq), record.offset, record.length,
                self.clock_ns + self.seq, record.payload,
            )  # fmt: skip
        self.digest = writer.seal(
            self.digest, Epoch(self.epoch), FileNumber(self.number + 1)
        ).digest
        writer.close()
        self._new_file()
        name = JournalName(Epoch(self.epoch), FileNumber(self.number))
        return writer.path.rename(self.spool / name.sealed)

    def branch(self) -> None:
        """Begin the next epoch at the last sealed file."""
        self.parent = Parent(Epoch(self.epoch), Seq(self.seq), self.digest)
        self.epoch += 1
        self.seq = 0

    def sync(
        self, to: int | None = None, chunk: int = 4096, per_file: int = 2, sync_id: int = SYNC_ID
    ) -> Iterator[Path]:
        """Make the files of a first sync from the last sealed position, with what is now."""
        pieces = [
            (volume, offset, bytes(held.data[offset : offset + chunk]))
            for volume, held in sorted(self.volumes.items())
            for offset in range(0, len(held.data), chunk)
        ]
        groups = [pieces[i : i + per_file] for i in range(0, len(pieces), per_file)] or [[]]
        at = (0, 0)
        for index, group in enumerate(groups):
            end = (group[-1][0], group[-1][1] + len(group[-1][2])) if group else at
            last = index == len(groups) - 1
            said: dict[str, object] = {
                "id": f"{sync_id:016x}", "index": index, "start": at, "end": end, "last": last,
                "next_volume": self.next_volume,
                "from": {"epoch": self.epoch, "number": self.number, "seq": self.seq,
                         "digest": self.digest.hex()},
            }  # fmt: skip
            if last:
                said["to"] = self.number if to is None else to
            yield self._sync_file(sync_id, index, said, group)
            at = end

    def resync(
        self,
        gone: Iterable[Path],
        to: int | None = None,
        *,
        sync_id: int = SYNC_ID + 1,
        chunk: int = 4096,
        index: int = 0,
        round_number: int = 0,
        whole: bool = False,
        reason: str = "",
    ) -> Iterator[Path]:
        """Make the staged files of a copy of what the *gone* journal files changed.

        Its origin is the last sealed position, its data what is there when they are made. With
        *whole* it is of everything. Without *to* another round has to follow. With a *reason*
        a GAP record says it.
        """
        dirty = DirtyMap()
        fold_into(dirty, (read_contents(Disk(), path) for path in gone))
        for volume, held in self.volumes.items() if whole else ():
            dirty.add(volume, 0, len(held.data))
        places = [
            (volume, at, min(chunk, offset + length - at))
            for volume, offset, length in dirty.extents()
            for at in range(offset, offset + length, chunk)
        ] or [(0, 0, 0)]
        origin = {"epoch": self.epoch, "number": self.number, "seq": self.seq,
                  "digest": self.digest.hex()}  # fmt: skip
        table, start = self.table, (0, 0)
        for count, (volume, at, length) in enumerate(places):
            held = self.volumes.get(volume, Volume(""))
            data = bytes(held.data[at : at + length])
            end = (volume, at + length)
            last = to is not None and count == len(places) - 1
            said: dict[str, object] = {
                "id": f"{sync_id:016x}", "index": index + count, "start": start, "end": end,
                "last": last, "from": origin, "staged": True, "round": round_number,
            }  # fmt: skip
            if last:
                said["to"] = to
            yield self._sync_file(
                sync_id, index + count, said, [(volume, at, data)], table=table, zeros=True,
                reason="" if count else reason,
            )  # fmt: skip
            start = end

    def _sync_file(
        self,
        sync_id: int,
        index: int,
        said: dict[str, object],
        pieces: list[tuple[int, int, bytes]],
        *,
        table: bytes | None = None,
        zeros: bool = False,
        reason: str = "",
    ) -> Path:
        identity = Identity(
            self.group, Epoch(self.epoch), FileNumber(index + 1), 1, Parent(), FileKind.SYNC,
            sync_id,
        )  # fmt: skip
        writer = AimWriter.create(Disk(), self.spool, identity, None)
        writer.mark(RecordType.TABLE, Seq(0), 0, 1, self.table if table is None else table)
        writer.mark(RecordType.SYNC, Seq(0), 0, 1, json.dumps(said).encode())
        seq = 0
        if reason:
            seq = 1
            gap = json.dumps({"reason": reason}).encode()
            writer.append(RecordType.GAP, 0, Seq(seq), 0, 0, 1, gap)
        for volume, offset, data in pieces:
            if any(data):
                seq += 1
                writer.append(RecordType.WRITE, volume, Seq(seq), offset, len(data), 1, data)
            elif zeros and data:
                seq += 1
                writer.append(RecordType.ZERO, volume, Seq(seq), offset, len(data), 1)
        writer.seal(NO_DIGEST, Epoch(0), FileNumber(0))
        writer.close()
        return writer.path.rename(self.spool / SyncName(sync_id, index).sealed)

    def _add(
        self, kind: RecordType, volume: int, offset: int = 0, length: int = 0, payload: bytes = b""
    ) -> None:
        self.pending.append(Record(kind, volume, offset, length, payload))

    def _grow(self, volume: int, size: int) -> bytearray:
        data = self.volumes[volume].data
        data.extend(bytes(max(0, size - len(data))))
        return data

    def _new_file(self) -> None:
        self.pending = []
        self.table = encode_table(
            VolumeEntry(VolumeId(volume), held.name, len(held.data))
            for volume, held in self.volumes.items()
        )


def inbox_of(store: Path) -> Path:
    inbox = store / "inbox"
    inbox.mkdir(parents=True, exist_ok=True)
    return inbox


def deliver(store: Path, *files: Path) -> None:
    """Put copies into the inbox as a sender does: whole, by renaming."""
    inbox = inbox_of(store)
    for file in files:
        part = inbox / f"{file.name}.part"
        part.write_bytes(file.read_bytes())
        part.rename(inbox / file.name)


def mirror_of(store: Path) -> dict[str, bytes]:
    """Return what a user of the mirror sees."""
    return {path.name: path.read_bytes() for path in (store / "mirror").iterdir()}


def marked(source: Source, *labels: str) -> Path:
    """Return a file with these bookmarks, and a write in front of each."""
    for label in labels:
        source.write(1, 0, label.encode())
        source.mark_bookmark(label)
    source.write(1, 9, b"behind")
    return source.roll()
