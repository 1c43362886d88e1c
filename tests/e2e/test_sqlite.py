"""SQLite in WAL mode straight on a directory group: kills on either side of the mount."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.host import FarHost, Source, until

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

# Each transaction is two rows. After its commit, durable under synchronous=FULL, the count is
# printed; every third one is large, so that the WAL is written in the middle of it.
WRITER = """
import sqlite3, sys
link = sqlite3.connect(sys.argv[1], isolation_level=None)
link.execute("PRAGMA journal_mode=WAL")
link.execute("PRAGMA synchronous=FULL")
link.execute("PRAGMA cache_size=10")
link.execute("PRAGMA wal_autocheckpoint=50")
link.execute("CREATE TABLE IF NOT EXISTS t (count INTEGER, half INTEGER, data BLOB)")
count = link.execute("SELECT coalesce(max(count), 0) FROM t").fetchone()[0]
while True:
    count += 1
    link.execute("BEGIN IMMEDIATE")
    for half in (0, 1):
        size = 200_000 if count % 3 == 0 else 300
        link.execute("INSERT INTO t VALUES (?, ?, randomblob(?))", (count, half, size))
    link.execute("COMMIT")
    print(count, flush=True)
"""


def start(database: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(database)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    )


def committed(writer: "subprocess.Popen[str]", at_least: int) -> int:
    """Wait for so many more commits and return the last count that was reported."""
    assert writer.stdout is not None
    line = ""
    for _ in range(at_least):
        line = writer.stdout.readline()
    return int(line)


def rest(writer: "subprocess.Popen[str]", last: int) -> int:
    """Return the last count that was reported before the writer's end."""
    output, _ = writer.communicate(timeout=60)
    return max([last, *map(int, output.split())])


def check(database: Path) -> int:
    """Check a database and return its last count; no transaction is there by half."""
    with closing(sqlite3.connect(database)) as link:
        assert link.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        halves = link.execute("SELECT count, count(*) FROM t GROUP BY count").fetchall()
        assert [n for _, n in halves] == [2] * len(halves)
        assert [count for count, _ in halves] == list(range(1, len(halves) + 1))
        return len(halves)


def check_mirror(far: FarHost, tmp_path: Path) -> int:
    """Check a copy of the mirror: opening a database changes it."""
    copy = tmp_path / "copy"
    copy.mkdir(exist_ok=True)
    for path in (far.store() / "mirror").iterdir():
        if not path.name.endswith("-shm"):  # Rebuilt from the WAL; never to be trusted.
            (copy / path.name).write_bytes(path.read_bytes())
    return check(copy / "base.db")


def test_a_killed_writer_leaves_a_sound_database_on_both_sides(tmp_path: Path) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", None, "images") as source:
        far.start()
        source.init(to=[far.url()])
        source.mount()
        last = 0
        for _ in range(2):
            with start(source.mountpoint / "base.db") as writer:
                last = committed(writer, 8)
                writer.kill()
                last = rest(writer, last)
        source.wait_mirrored(far)
        mirrored = check_mirror(far, tmp_path)
        assert last <= mirrored <= check(source.mountpoint / "base.db")
        assert check(source.mountpoint / "base.db") <= last + 1
        assert source.umount() == 0
        assert check(source.image / "base.db") >= last


def test_a_killed_driver_leaves_a_sound_database_on_both_sides(tmp_path: Path) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", None, "images") as source:
        far.start()
        source.init(to=[far.url()])
        source.mount()
        for _ in range(2):
            with start(source.mountpoint / "base.db") as writer:
                last = committed(writer, 8)
                source.kill()
                last = rest(writer, last)
            source.mount()
            assert last <= check(source.mountpoint / "base.db") <= last + 1
            source.wait_mirrored(far)
            assert last <= check_mirror(far, tmp_path) <= last + 1


def test_every_state_that_the_mirror_takes_is_a_sound_database(tmp_path: Path) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", None, "images") as source:
        source.init(to=[far.url()])
        far.start()
        source.mount()
        with start(source.mountpoint / "base.db") as writer:
            committed(writer, 3)
            source.wait_mirrored(far)
            counts = []
            for _ in range(3):
                last = committed(writer, 5)
                far.kill()  # Between two files, or in the middle of one: the next start redoes it.
                far.start()
                number = far.ack()["applied"]["number"]
                until(lambda number=number: far.ack()["applied"]["number"] > number)  # type: ignore[misc]
                far.stop()
                counts.append(check_mirror(far, tmp_path))
                far.start()
            writer.kill()
            last = rest(writer, last)
        assert counts == sorted(counts)
        source.wait_mirrored(far)
        assert last <= check_mirror(far, tmp_path) <= last + 1
