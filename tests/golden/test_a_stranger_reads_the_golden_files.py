"""A reader written from docs/format.md alone, with struct, a CRC-32C and a BLAKE3.

It shares no line with the program. Where it and the program disagree, the page decides.
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from crc32c import crc32c

FILES = Path(__file__).parent / "files"
GROUP = bytes(range(16))
T0 = 1_700_000_000_000_000_000
NAMES = {
    1: "WRITE", 2: "ZERO", 3: "TRUNCATE", 4: "CREATE", 5: "RENAME", 6: "UNLINK", 7: "FLUSH",
    8: "BOOKMARK", 9: "VERIFY", 10: "GAP", 128: "COMMIT", 129: "TABLE", 130: "SYNC", 131: "UNDO",
}  # fmt: skip
FIRST_MARK = 128


@dataclass
class Frame:
    type: str
    volume: int
    seq: int
    offset: int
    length: int
    time_ns: int
    payload: bytes
    is_mark: bool


@dataclass
class Aim:
    identity: dict[str, Any]
    seal: dict[str, Any] | None
    frames: list[Frame]
    break_at: int
    committed: list[int] = field(default_factory=list)

    @property
    def records(self) -> list[Frame]:
        return [frame for frame in self.frames if not frame.is_mark]


def read_identity(data: bytes) -> dict[str, Any]:
    assert data[:8] == b"\x89AIM\r\n\x1a\n"
    (crc,) = struct.unpack_from("<I", data, 124)
    assert crc == crc32c(data[:124])
    version, kind, header_bytes = struct.unpack_from("<HHI", data, 8)
    assert (version, header_bytes) == (1, 4096)
    epoch, number, created_ns, parent_epoch, parent_seq = struct.unpack_from("<5Q", data, 32)
    data_at, sync_id, reserved = struct.unpack_from("<QQI", data, 104)
    assert (data_at, reserved) == (4096, 0)
    return {
        "kind": kind, "group": data[16:32], "epoch": epoch, "number": number,
        "created_ns": created_ns, "parent": (parent_epoch, parent_seq, data[72:104]),
        "sync_id": sync_id,
    }  # fmt: skip


def read_seal(data: bytes) -> dict[str, Any] | None:
    if not any(data[512:684]):
        return None
    assert data[512:520] == b"AIM-SEAL"
    (crc,) = struct.unpack_from("<I", data, 680)
    assert crc == crc32c(data[512:680])
    keys = (
        "total_bytes", "iocb_at", "data_bytes", "iocb_count", "record_count", "first_seq",
        "last_seq", "first_time_ns", "last_time_ns", "payload_bytes", "next_epoch", "next_number",
    )  # fmt: skip
    seal: dict[str, Any] = dict(zip(keys, struct.unpack_from("<12Q", data, 520), strict=True))
    seal |= {"prev_digest": data[616:648], "digest": data[648:680]}
    assert seal["total_bytes"] == len(data)
    assert seal["iocb_at"] == 4096 + seal["data_bytes"]
    assert seal["iocb_at"] + 64 * seal["iocb_count"] == len(data)
    assert seal["digest"] == digest(data)
    return seal


def digest(data: bytes) -> bytes:
    return blake3(data[:648] + bytes(36) + data[684:]).digest()


def read_frame(data: bytes, at: int) -> tuple[Frame, int] | None:
    """Return the frame at *at* and where it ends, or None if none that is sound stands there."""
    iocb = data[at : at + 64]
    if len(iocb) < 64 or iocb[:4] != b"IOCB":
        return None
    if struct.unpack_from("<I", iocb, 60)[0] != crc32c(data[:124] + iocb[:60]):
        return None
    kind, flags, reserved, volume, payload_bytes = struct.unpack_from("<BBHII", iocb, 4)
    seq, offset, length, data_at, time_ns = struct.unpack_from("<5Q", iocb, 16)
    end = data_at + (payload_bytes + 7) // 8 * 8
    if kind not in NAMES or flags or reserved or data_at != at + 64 or end > len(data):
        return None
    payload = data[data_at : data_at + payload_bytes]
    if struct.unpack_from("<I", iocb, 56)[0] != crc32c(payload):
        return None
    is_mark = kind >= FIRST_MARK
    return Frame(NAMES[kind], volume, seq, offset, length, time_ns, payload, is_mark), end


def read(name: str, last_seq: int = 0) -> Aim:
    data = (FILES / name).read_bytes()
    aim = Aim(read_identity(data), read_seal(data), [], 4096)
    end = aim.seal["iocb_at"] if aim.seal else len(data)
    while aim.break_at < end and (found := read_frame(data, aim.break_at)):
        frame, next_at = found
        if frame.seq != last_seq + (not frame.is_mark):
            break
        if aim.seal:  # The IOCB portion says the same again.
            again = aim.seal["iocb_at"] + 64 * len(aim.frames)
            assert data[again : again + 64] == data[aim.break_at : aim.break_at + 64]
        aim.frames.append(frame)
        aim.break_at, last_seq = next_at, frame.seq
    at = data.find(b"IOCB", 4096)
    while at >= 0:
        if (found := read_frame(data, at)) and found[0].type == "COMMIT":
            aim.committed.append(found[0].offset)
        at = data.find(b"IOCB", at + 1)
    return aim


def read_table(payload: bytes) -> list[tuple[int, int, str]]:
    volumes = []
    at = 0
    while at < len(payload):
        volume, size, name_bytes = struct.unpack_from("<IQH", payload, at)
        volumes.append((volume, size, payload[at + 14 : at + 14 + name_bytes].decode()))
        at += 14 + name_bytes
    return volumes


def read_slots(name: str) -> dict[str, Any]:
    found = []
    for which in range(2):
        data = (FILES / f"{name}.{which}").read_bytes()
        generation, length, crc = struct.unpack_from("<QII", data, 8)
        body = data[24 : 24 + length]
        assert data[:8] == b"AIM-SLOT"
        assert crc == crc32c(data[8:20] + body)
        assert generation % 2 == which
        found.append((generation, json.loads(body)))
    state: dict[str, Any] = max(found)[1]
    return state


def test_the_first_file_holds_every_type_of_record_in_order() -> None:
    aim = read("00000001-000000000001.aim")
    assert aim.identity == {
        "kind": 0, "group": GROUP, "epoch": 1, "number": 1, "created_ns": T0,
        "parent": (0, 0, bytes(32)), "sync_id": 0,
    }  # fmt: skip
    assert [frame.type for frame in aim.frames] == [
        "TABLE", "WRITE", "ZERO", "COMMIT", "TRUNCATE", "CREATE", "CREATE", "RENAME", "FLUSH",
        "BOOKMARK", "UNLINK", "VERIFY", "GAP", "COMMIT",
    ]  # fmt: skip
    assert [frame.seq for frame in aim.records] == list(range(1, 12))
    assert read_table(aim.frames[0].payload) == [(1, 65536, "v.img")]
    write, zero, truncate, create, named, rename = aim.records[:6]
    assert (write.volume, write.offset, write.payload) == (1, 4096, b"hello")
    assert (zero.offset, zero.length, zero.payload) == (8192, 4096, b"")
    assert (truncate.offset, truncate.length) == (65536, 131072)
    assert (create.volume, create.payload) == (2, b"db-wal")
    assert named.payload.decode() == "größe"
    assert (rename.volume, rename.offset, rename.payload) == (3, 2, b"db")
    assert aim.records[7].payload == b"before upgrade"
    assert json.loads(aim.records[10].payload) == {"reason": "spool full"}


def test_a_verify_record_says_what_its_volume_holds_there() -> None:
    verify = read("00000001-000000000001.aim").records[9]
    held = bytearray(131072)
    held[4096:4101] = b"hello"
    assert (verify.type, verify.volume, verify.offset, verify.length) == ("VERIFY", 1, 0, 131072)
    end = 0
    for offset, length, digest in json.loads(verify.payload)["ranges"]:
        assert offset >= end
        end = offset + length
        piece = bytes(held[offset:end])
        assert blake3(piece).hexdigest() == digest if digest else not any(piece)
    assert end == 131072


def test_the_seal_of_the_first_file_says_what_it_holds() -> None:
    aim = read("00000001-000000000001.aim")
    assert aim.seal is not None
    assert aim.seal["record_count"] == len(aim.records)
    assert (aim.seal["first_seq"], aim.seal["last_seq"]) == (1, 11)
    assert (aim.seal["first_time_ns"], aim.seal["last_time_ns"]) == (T0 + 1000, T0 + 11000)
    assert aim.seal["payload_bytes"] == sum(len(frame.payload) for frame in aim.records)
    assert (aim.seal["next_epoch"], aim.seal["next_number"]) == (1, 2)
    assert aim.seal["prev_digest"] == bytes(32)


def test_the_files_form_a_chain_that_goes_on_in_the_next_epoch() -> None:
    first = read("00000001-000000000001.aim").seal
    empty = read("00000001-000000000002.aim", last_seq=11)
    branch = read("00000002-000000000003.aim")
    assert first is not None
    assert empty.seal is not None
    assert branch.seal is not None
    assert empty.seal["prev_digest"] == first["digest"]
    assert (empty.seal["record_count"], empty.seal["first_seq"]) == (0, 0)
    assert branch.seal["prev_digest"] == empty.seal["digest"]
    assert branch.identity["parent"] == (1, 11, empty.seal["digest"])
    assert [frame.seq for frame in branch.records] == [1]


def test_a_sync_file_names_its_place_and_its_stretch() -> None:
    aim = read("sync-00000000000000ab-00000000.aim")
    assert (aim.identity["kind"], aim.identity["sync_id"], aim.identity["number"]) == (1, 0xAB, 1)
    assert [frame.type for frame in aim.frames] == ["TABLE", "SYNC", "WRITE"]
    about = json.loads(aim.frames[1].payload)
    assert about["id"] == "00000000000000ab"
    assert about["from"]["time_ns"] == read("00000001-000000000001.aim").seal["last_time_ns"]  # type: ignore[index]
    assert (about["start"], about["end"], about["last"], about["to"]) == (
        [1, 0],
        [1, 131072],
        True,
        3,
    )


def test_an_undo_file_names_the_file_that_it_takes_back_and_what_was_there() -> None:
    aim, undone = read("00000002-000000000003-00000000.undo"), read("00000002-000000000003.aim")
    assert (aim.identity["kind"], aim.identity["epoch"], aim.identity["number"]) == (2, 2, 3)
    assert [frame.type for frame in aim.frames] == ["TABLE", "UNDO", "ZERO", "WRITE"]
    about = json.loads(aim.frames[1].payload)
    assert undone.seal is not None
    assert about["of"] == undone.seal["digest"].hex()
    assert about["from"]["digest"] == undone.seal["prev_digest"].hex()
    assert (aim.identity["sync_id"], about["parts"], about["gone"]) == (0, [], [])
    zero, write = aim.records
    assert (zero.offset, zero.length) == (0, 4)
    assert (write.offset, write.payload) == (4, b"was.")


@pytest.mark.parametrize(
    ("name", "records", "is_damage"),
    [
        ("torn.open", [12, 13], False),
        ("recycled.open", [12, 13, 14], False),
        ("damaged.open", [], True),
    ],
)
def test_a_break_is_damage_only_where_a_mark_says_that_it_had_been_durable(
    name: str, records: list[int], is_damage: bool
) -> None:
    aim = read(name, last_seq=11)
    assert aim.seal is None
    assert [frame.seq for frame in aim.records] == records
    last_seq = aim.records[-1].seq if aim.records else 11
    assert (max(aim.committed) > last_seq) == is_damage


def test_of_two_slots_the_higher_generation_counts() -> None:
    assert read_slots("checkpoint") == {"group": GROUP.hex(), "number": 2}
