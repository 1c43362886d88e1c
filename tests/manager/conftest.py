"""Status dictionaries as drivers, coordinators and replayers write them."""

# ruff: noqa: ANN401 - status dictionaries hold anything

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NOW_NS = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
MIB = 1024 * 1024
Json = dict[str, Any]
Answerer = Callable[[Json], bytes | None]


def destination(**changes: Any) -> Json:
    return {
        "name": "backup",
        "url": "sftp://backup@far.example/srv/mirror/v",
        "state": "shipping",
        "since_ns": NOW_NS - 60 * SECOND,
        "error": None,
        "hint": None,
        "retry_in_s": None,
        "queued": {"files": 2, "bytes": 32 * MIB},
        "in_flight": [
            {"name": "00000001-000000000412.aim", "bytes": 16 * MIB, "sent": 11 * MIB},
            {"name": "00000001-000000000413.aim", "bytes": 16 * MIB, "sent": 2 * MIB},
        ],
        "received_not_applied": {"files": 1, "bytes": 16 * MIB},
        "received": {"number": 411},
        "applied": {"number": 410, "seq": 183_100, "epoch": 1},
        "lag": {"seconds": 1.4, "bytes": 80 * MIB, "files": 5},
        "rate_bytes_s": 12.3 * MIB,
        "sent_bytes": 6_560 * MIB,
        "sync": None,
        "ack": {"phase": "consistent", "mirror_time_ns": NOW_NS - 2 * SECOND, "quarantined": 0},
        "updated_ns": NOW_NS - SECOND // 2,
        "stuck": False,
    } | changes


def source(*destinations: Json, **changes: Any) -> Json:
    return {
        "group": "00" * 16,
        "image": "/srv/vm/v.img",
        "mounted": True,
        "mountpoint": "/mnt/v",
        "state": "active",
        "reason": None,
        "epoch": 1,
        "accepted_seq": 184_220,
        "durable_seq": 184_220,
        "applied_seq": 183_900,
        "checkpoint": {"number": 400, "seq": 180_000},
        "active": {"number": 414, "bytes": 1 * MIB},
        "spool": {
            "files": 5,
            "bytes": 3_277 * MIB,
            "bytes_max": 8_192 * MIB,
            "free_bytes": 12_288 * MIB,
        },
        "volumes": [{"name": "v.img", "size": 1024 * MIB}],
        "memory_bytes": 1 * MIB,
        "coordinator": {"pid": 4711, "restarts": 0},
        "destinations": list(destinations) or [destination()],
        "time_ns": NOW_NS,
    } | changes


def store(**changes: Any) -> Json:
    return {
        "store": "/srv/mirror/v",
        "group": "00" * 16,
        "phase": "consistent",
        "reason": None,
        "error": None,
        "replayer": {"pid": 815},
        "head": {"epoch": 1, "number": 410, "seq": 183_100},
        "applied": {"epoch": 1, "number": 410, "seq": 183_100},
        "received": {"number": 411},
        "missing": [],
        "damaged": [],
        "sync": None,
        "inbox": {"files": 1, "bytes": 16 * MIB},
        "work": {"files": 1, "bytes": 16 * MIB},
        "quarantine": {"files": 0, "shown": []},
        "volumes": [{"id": 1, "name": "v.img", "size": 1024 * MIB}],
        "mirror": ["/srv/mirror/v/mirror/v.img"],
        "mirror_time_ns": NOW_NS - 2 * SECOND,
        "lag": {"seconds": 2.0, "files": 3},
        "free_bytes": 100 * 1024 * MIB,
        "source": {"time_ns": NOW_NS - SECOND, "newest": {"epoch": 1, "number": 413}},
        "ack_time_ns": NOW_NS,
        "generation": 9,
        "time_ns": NOW_NS,
    } | changes


class Statuses:
    """Gives the tests the builders, since a test directory is no package to import from."""

    now_ns = NOW_NS
    second = SECOND
    mib = MIB
    destination = staticmethod(destination)
    source = staticmethod(source)
    store = staticmethod(store)


@pytest.fixture
def made() -> type[Statuses]:
    return Statuses


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Answerer], Path]]:
    """Start a driver that answers each connection's first line; return its state directory."""
    listener = socket.socket(socket.AF_UNIX)
    threads: list[threading.Thread] = []

    def start(answer: Answerer) -> Path:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def run() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with (
                    contextlib.suppress(ConnectionError),  # Who asked has given up.
                    link,
                    link.makefile("rb") as lines,
                ):
                    reply = answer(json.loads(lines.readline()))
                    if reply is None:
                        lines.readline()  # Silent, until the other end gives up.
                    else:
                        link.sendall(reply)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[0].start()
        return tmp_path

    yield start
    with contextlib.suppress(OSError):  # It never listened.
        listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    listener.close()
