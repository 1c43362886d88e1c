"""The writer reproduces the golden files byte for byte: the format has not changed by accident.

After a deliberate change of the format (and of its version) run this file as a program; it
writes the golden files anew.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from aimfuse.disk import Disk
from aimfuse.journal.header import NO_DIGEST, FileKind, Identity, Parent
from aimfuse.journal.inspect import describe
from aimfuse.journal.reader import read_sealed
from aimfuse.journal.records import RecordType, VolumeEntry, encode_table
from aimfuse.journal.slots import Slots
from aimfuse.journal.verify import Hashed, encode_hashes
from aimfuse.journal.whole import Frame, encode_sealed
from aimfuse.journal.writer import AimWriter
from aimfuse.units import ByteOffset, Epoch, FileNumber, Seq, VolumeId

FILES = Path(__file__).parent / "files"
GROUP = bytes(range(16))
T0 = 1_700_000_000_000_000_000
SYNC_ID = 0xAB
NO_PARENT = Parent()

FIRST = "00000001-000000000001.aim"
EMPTY = "00000001-000000000002.aim"
BRANCH = "00000002-000000000003.aim"
SYNC = "sync-00000000000000ab-00000000.aim"
UNDO = "00000002-000000000003-00000000.undo"
TORN = "torn.open"
DAMAGED = "damaged.open"
RECYCLED = "recycled.open"


def make(
    spool: Path, number: int, epoch: int = 1, parent: Parent = NO_PARENT, **more: int
) -> AimWriter:
    identity = Identity(
        GROUP, Epoch(epoch), FileNumber(number), T0, parent,
        FileKind(more.get("kind", 0)), more.get("sync_id", 0),
    )  # fmt: skip
    return AimWriter.create(Disk(), spool, identity, None)


def seal(writer: AimWriter, prev: bytes, target: Path) -> bytes:
    identity = writer.identity
    digest = writer.seal(prev, identity.epoch, FileNumber(identity.number + 1)).digest
    writer.close()
    writer.path.rename(target)
    return digest


def table(*entries: tuple[int, str, int]) -> bytes:
    return encode_table(VolumeEntry(VolumeId(v), name, size) for v, name, size in entries)


def build_first(out: Path) -> bytes:
    writer = make(out, 1)
    writer.mark(RecordType.TABLE, Seq(0), 0, T0, table((1, "v.img", 65536)))
    seq = 0

    def append(kind: RecordType, volume: int, at: int, length: int, data: bytes = b"") -> None:
        nonlocal seq
        seq += 1
        writer.append(kind, volume, Seq(seq), at, length, T0 + seq * 1000, data)

    append(RecordType.WRITE, 1, 4096, 5, b"hello")
    append(RecordType.ZERO, 1, 8192, 4096)
    writer.mark(RecordType.COMMIT, Seq(2), 0, T0 + 2500)
    append(RecordType.TRUNCATE, 1, 65536, 131072)
    append(RecordType.CREATE, 2, 0, 0, b"db-wal")
    append(RecordType.CREATE, 3, 0, 0, "größe".encode())
    append(RecordType.RENAME, 3, 2, 0, b"db")
    append(RecordType.FLUSH, 1, 0, 0)
    append(RecordType.BOOKMARK, 0, 0, 0, b"before upgrade")
    append(RecordType.UNLINK, 3, 0, 0)
    hello = blake3(b"hello".ljust(4096, b"\0")).digest()
    ranges = [Hashed(0, 4096), Hashed(4096, 4096, hello), Hashed(8192, 122880)]
    append(RecordType.VERIFY, 1, 0, 131072, encode_hashes(ranges))
    append(RecordType.GAP, 0, 0, 0, b'{"reason":"spool full"}')
    writer.mark(RecordType.COMMIT, Seq(seq), 2, T0 + 20_000)
    return seal(writer, NO_DIGEST, out / FIRST)


def build_empty(out: Path, prev: bytes) -> bytes:
    writer = make(out, 2)
    writer.mark(RecordType.TABLE, Seq(11), 0, T0, table((1, "v.img", 131072)))
    return seal(writer, prev, out / EMPTY)


def build_branch(out: Path, prev: bytes) -> None:
    writer = make(out, 3, 2, Parent(Epoch(1), Seq(11), prev))
    writer.mark(RecordType.TABLE, Seq(0), 0, T0, table((1, "v.img", 131072)))
    writer.append(RecordType.WRITE, 1, Seq(1), 0, 8, T0, b"8 bytes.")
    seal(writer, prev, out / BRANCH)


def build_sync(out: Path, digest: bytes) -> None:
    writer = make(out, 1, 1, kind=1, sync_id=SYNC_ID)
    writer.mark(RecordType.TABLE, Seq(0), 0, T0, table((1, "v.img", 131072)))
    about = {
        "id": f"{SYNC_ID:016x}", "index": 0,
        "from": {
            "epoch": 1, "number": 2, "seq": 11, "digest": digest.hex(), "time_ns": T0 + 11000,
        },
        "start": [1, 0], "end": [1, 131072], "last": True, "to": 3,
    }  # fmt: skip
    writer.mark(RecordType.SYNC, Seq(0), 0, T0, json.dumps(about, separators=(",", ":")).encode())
    writer.append(RecordType.WRITE, 1, Seq(1), 4096, 5, T0, b"hello")
    seal(writer, NO_DIGEST, out / SYNC)


def build_undo(out: Path) -> None:
    """What undoes the file BRANCH: eight bytes, and a hole in front of them."""
    about = {
        "of": read_sealed(Disk(), out / BRANCH).seal.digest.hex(),
        "from": {
            "epoch": 1, "number": 2, "seq": 11, "time_ns": T0 + 11000,
            "digest": read_sealed(Disk(), out / EMPTY).seal.digest.hex(),
        },
        "sync": f"{SYNC_ID:016x}", "parts": [], "gone": [], "id_max": 3, "ids_exact": True,
    }  # fmt: skip
    none, here = VolumeId(0), ByteOffset(0)
    mark = json.dumps(about, separators=(",", ":")).encode()
    parts, _digest = encode_sealed(
        Identity(GROUP, Epoch(2), FileNumber(3), T0, kind=FileKind.UNDO),
        [
            Frame(RecordType.TABLE, none, here, 0, table((1, "v.img", 131072))),
            Frame(RecordType.UNDO, none, here, 0, mark),
            Frame(RecordType.ZERO, VolumeId(1), here, 4, b""),
            Frame(RecordType.WRITE, VolumeId(1), ByteOffset(4), 4, b"was."),
        ],
    )
    (out / UNDO).write_bytes(b"".join(parts))


def build_open(out: Path, target: str, change: Callable[[bytearray], None]) -> None:
    """An active file: record 1 committed, records 2 and 3 behind it."""
    writer = make(out, 4)
    writer.mark(RecordType.TABLE, Seq(11), 0, T0, table((1, "v.img", 131072)))
    writer.append(RecordType.WRITE, 1, Seq(12), 0, 16, T0, b"a" * 16)
    writer.mark(RecordType.COMMIT, Seq(12), 11, T0)
    writer.append(RecordType.WRITE, 1, Seq(13), 16, 16, T0, b"b" * 16)
    writer.mark(RecordType.COMMIT, Seq(13), 12, T0)
    writer.append(RecordType.WRITE, 1, Seq(14), 32, 16, T0, b"c" * 16)
    writer.mark(RecordType.COMMIT, Seq(14), 13, T0)
    writer.close()
    data = bytearray(writer.path.read_bytes())
    writer.path.unlink()
    change(data)
    (out / target).write_bytes(data)


def build_all(out: Path) -> None:
    prev = build_empty(out, build_first(out))
    build_branch(out, prev)
    build_sync(out, prev)
    build_undo(out)

    def cut(data: bytearray) -> None:
        del data[data.index(b"c" * 16) + 7 :]

    def flip(data: bytearray) -> None:
        data[data.index(b"a" * 16)] ^= 0x10

    def recycle(data: bytearray) -> None:
        old = (out / FIRST).read_bytes()
        data += old[len(data) :]

    build_open(out, TORN, cut)
    build_open(out, DAMAGED, flip)
    build_open(out, RECYCLED, recycle)
    slots = Slots(Disk(), out / "checkpoint", "golden")
    slots.write({"group": GROUP.hex(), "number": 1})
    slots.write({"group": GROUP.hex(), "number": 2})


def test_every_golden_file_is_reproduced_byte_for_byte(tmp_path: Path) -> None:
    build_all(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in FILES.iterdir()}
    assert made.keys() == kept.keys()
    for name, data in made.items():
        assert data == kept[name], f"{name} is not what it was"


@pytest.mark.parametrize("name", [FIRST, EMPTY, BRANCH, SYNC, UNDO])
def test_the_reader_finds_every_sealed_golden_file_sound(name: str) -> None:
    file = read_sealed(Disk(), FILES / name)
    assert file.identity.group == GROUP
    assert describe(FILES / name, (FILES / name).read_bytes())["verdict"] == "sound"


@pytest.mark.parametrize(
    ("name", "verdict"), [(TORN, "unsealed"), (RECYCLED, "unsealed"), (DAMAGED, "damaged")]
)
def test_inspect_tells_a_torn_tail_from_damage(name: str, verdict: str) -> None:
    found = describe(FILES / name, (FILES / name).read_bytes())
    assert found["verdict"] == verdict, found["summary"]


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    for old in FILES.iterdir():
        old.unlink()
    os.umask(0o022)
    build_all(FILES)
