"""`inspect` tells what is there of any file, and never fails at what it finds."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimfuse.journal.inspect import describe
from aimfuse.manager.aim_text import render_file
from aimfuse.manager.layout import Look

FILES = Path(__file__).parents[1] / "golden" / "files"
FIRST = FILES / "00000001-000000000001.aim"
TORN = FILES / "torn.open"
ANY = Path("any.aim")


@pytest.mark.parametrize("path", sorted(FILES.iterdir()), ids=lambda path: path.name)
def test_every_golden_file_is_described_as_json_and_as_text(path: Path) -> None:
    found = describe(path, path.read_bytes())
    assert json.loads(json.dumps(found)) == found
    for width in (40, 80, 120):
        render_file(found, Look(width))


def test_a_sound_file_is_described_in_full() -> None:
    found = describe(FIRST, FIRST.read_bytes())
    assert found["summary"] == "sound, 11 records"
    assert (found["records"], found["marks"], found["payload_bytes"]) == (11, 3, 177)
    assert found["identity"]["kind"] == "JOURNAL"
    assert found["seal"]["last_seq"] == 11
    said = {iocb["type"]: iocb["says"] for iocb in found["iocbs"] if "says" in iocb}
    assert said["BOOKMARK"] == {"label": "before upgrade"}
    assert said["RENAME"] == {"name": "db"}
    assert said["TABLE"] == {"volumes": [{"id": 1, "name": "v.img", "size": 65536}]}
    assert said["GAP"] == {"reason": "spool full"}
    assert [one[:2] for one in said["VERIFY"]["ranges"]] == [
        [0, 4096],
        [4096, 4096],
        [8192, 122880],
    ]


def test_a_limit_cuts_the_list_and_not_the_counts() -> None:
    found = describe(FIRST, FIRST.read_bytes(), 2)
    assert [iocb["type"] for iocb in found["iocbs"]] == ["TABLE", "WRITE"]
    assert found["records"] == 11


def test_damage_is_located_at_its_frame() -> None:
    data = bytearray(FIRST.read_bytes())
    at = data.index(b"before upgrade")
    data[at] ^= 1
    found = describe(FIRST, bytes(data))
    assert found["verdict"] == "damaged"
    assert found["damage"] == {"byte": at - 64, "reason": "payload checksum mismatch"}
    assert found["records"] == 7


@pytest.mark.parametrize("path", [FIRST, TORN], ids=lambda path: path.name)
def test_no_flipped_bit_makes_it_fail_or_a_sealed_file_sound(path: Path) -> None:
    data = path.read_bytes()
    for at in [*range(128), *range(512, 684), *range(4096, len(data))]:
        bad = bytearray(data)
        bad[at] ^= 1 << at % 8
        verdict = describe(path, bytes(bad), 3)["verdict"]
        assert path is not FIRST or verdict == "damaged"


@pytest.mark.parametrize("path", [FIRST, TORN], ids=lambda path: path.name)
def test_no_truncation_makes_it_fail_or_a_sealed_file_sound(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(0, 4096, 97), *range(4096, len(data))]:
        verdict = describe(path, data[:length], 3)["verdict"]
        assert path is not FIRST or verdict == "damaged"


@given(st.binary(max_size=300), st.binary(max_size=200))
def test_no_bytes_make_it_fail(head: bytes, tail: bytes) -> None:
    describe(ANY, head)
    describe(ANY, TORN.read_bytes() + head)
    data = bytearray(TORN.read_bytes())
    data[4096 : 4096 + len(tail)] = tail
    describe(ANY, bytes(data) + b"IOCB")


def test_a_torn_tail_is_named_and_does_not_count() -> None:
    found = describe(TORN, TORN.read_bytes())
    assert found["summary"].startswith("unsealed, 2 records, ")
    assert (found["verdict"], found["committed_seq"]) == ("unsealed", 12)
