"""An ack comes from elsewhere: what is whole is read, what is not is never believed."""

import json
from typing import Any

import pytest

from aimfuse.coordinator.acks import AckHead, AckSync, parse_ack
from aimfuse.errors import Refused, Unavailable

WHOLE: dict[str, Any] = {
    "version": 1, "group": "00" * 16, "time_ns": 5, "generation": 9, "phase": "consistent",
    "applied": {"epoch": 1, "number": 2, "seq": 3, "digest": "ab" * 32, "time_ns": 4},
    "received": {"number": 6}, "missing": [7], "damaged": ["x"],
    "sync": {"id": "000000000000000a", "next_index": 1, "next": [1, 4096], "done": True},
    "queue": {"files": 1, "bytes": 8}, "mirror_time_ns": 4, "free_bytes": 1, "error": None,
    "quarantined": 0,
}  # fmt: skip


def test_a_whole_ack_is_read() -> None:
    ack = parse_ack(json.dumps(WHOLE).encode())
    assert ack.group == bytes(16)
    assert ack.applied == AckHead(1, 2, 3, b"\xab" * 32, 4)
    assert ack.confirmed == 6
    assert ack.missing == (7,)
    assert ack.sync == AckSync(10, 1, (1, 4096), done=True)
    assert ack.queue_bytes == 8


def test_an_empty_store_is_told_apart() -> None:
    minimal = {"version": 1, "group": None, "generation": 1, "phase": "empty", "applied": None}
    assert parse_ack(json.dumps(minimal).encode()).is_empty


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"generation": -1}, id="negative"),
        pytest.param({"generation": True}, id="a flag as a number"),
        pytest.param({"generation": 1 << 64}, id="too large"),
        pytest.param({"group": "00"}, id="short group"),
        pytest.param({"phase": "asleep"}, id="unknown phase"),
        pytest.param({"applied": {"epoch": 1}}, id="half a head"),
        pytest.param({"applied": {**WHOLE["applied"], "digest": "zz"}}, id="no digest"),
        pytest.param({"sync": {**WHOLE["sync"], "next": [1]}}, id="half a place"),
        pytest.param({"missing": ["x"]}, id="a name as a number"),
        pytest.param({"missing": 3}, id="no list"),
        pytest.param({"received": 3}, id="no object"),
    ],
)
def test_a_damaged_ack_is_not_believed(change: dict[str, Any]) -> None:
    with pytest.raises(Unavailable):
        parse_ack(json.dumps({**WHOLE, **change}).encode())


def test_every_cut_of_an_ack_is_noticed() -> None:
    data = json.dumps(WHOLE).encode()
    for end in range(len(data)):
        with pytest.raises(Unavailable):
            parse_ack(data[:end])


def test_an_ack_of_a_later_version_stops_with_the_remedy() -> None:
    with pytest.raises(Refused) as caught:
        parse_ack(json.dumps({**WHOLE, "version": 2}).encode())
    assert "same release" in caught.value.hint


def test_long_lists_are_cut() -> None:
    ack = parse_ack(json.dumps({**WHOLE, "missing": list(range(1000))}).encode())
    assert len(ack.missing) == 64
