"""PostgreSQL on ext4 on the volume, at work, taken back to moments that nobody chose.

Wherever a restore or a promotion puts it, it starts, recovers, is sound in itself, and has every
row whose commit was acknowledged by then. With AIMFUSE_SWEEP=long twenty moments of each.
"""

import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aimfuse.units import MIB
from tests.dice import LONG
from tests.e2e.host import FarHost, Source, aimfuse, until
from tests.e2e.postgres import Postgres, programs
from tests.e2e.programs import run

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MOMENTS = 20 if LONG else 2
BUSY_S = 30.0 if LONG else 4.0
ROWS_MIN = 10
SIZE = 256 * MIB


@dataclass
class Past:
    """A store, and what happened: which rows were acknowledged, and when, in Unix ns."""

    store: Path
    acknowledged: list[tuple[int, int]]
    began_ns: int
    ended_ns: int

    def rows_until(self, time_ns: int) -> set[int]:
        return {row for row, at_ns in self.acknowledged if at_ns <= time_ns}

    def moments(self, seed: int) -> list[int]:
        drawn = random.Random(seed)
        return sorted(drawn.randint(self.began_ns, self.ended_ns) for _ in range(MOMENTS))


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Give a directory that the database's user can reach: pytest's own are closed to it."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    made = Path(tempfile.mkdtemp(prefix="aimfuse-postgres-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def past(place: Path, require_fuse: None, require_root_loop: None) -> Past:  # noqa: ARG001 - it mounts
    """Have a database at work on a mirrored volume, and end it all in order."""
    with FarHost(place / "far") as far:
        far.start()
        past = work(place, far)
        assert far.stop() == 0  # In order: a store that is copied while in use is doubted.
        return past


def work(place: Path, far: FarHost) -> Past:
    with Source(place / "near", size=SIZE) as source:
        source.init(to=[far.url()])
        source.mount()
        source.wait_mirrored(far)  # The past begins where the first copy ends.
        device = source.attach()
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", device)
        with source.file_system(device) as root:
            server = Postgres(root)
            server.create()
            with server.running():
                began_ns = time.time_ns()
                with server.busy() as commits:
                    time.sleep(BUSY_S)
                    until(lambda: len(commits.acknowledged) > ROWS_MIN)
                ended_ns = time.time_ns()
            source.wait_mirrored(far)
        source.detach(device)
        source.wait_mirrored(far)
        assert source.umount() == 0
    return Past(far.store(), commits.acknowledged, began_ns, ended_ns)


@contextlib.contextmanager
def file_system_of(image: Path, root: Path) -> Iterator[Path]:
    root.mkdir()
    run("mount", "-o", "loop", image, root)
    try:
        yield root
    finally:
        run("umount", root)


def iso(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


def test_a_database_restored_to_any_moment_recovers_and_has_what_it_acknowledged(
    place: Path, past: Past
) -> None:
    copy = place / "copy.img"
    for moment in past.moments(seed=4):
        done = aimfuse("restore", past.store, "-o", copy, "--at", iso(moment))
        assert done.returncode == 0, done.stderr
        with file_system_of(copy, place / f"fs-{moment}") as root:
            server = Postgres(root)
            with server.running():
                assert server.check() >= past.rows_until(moment), iso(moment)
        copy.unlink()


def test_a_database_promoted_at_any_moment_goes_on_from_there(place: Path, past: Past) -> None:
    for number, moment in enumerate(past.moments(seed=5)):
        store = place / f"store-{number}"
        run("cp", "-a", "--reflink=auto", "--sparse=always", past.store, store)
        done = aimfuse("promote", store, "--at", iso(moment))
        assert done.returncode == 0, done.stderr
        with promoted(place / f"new-{number}", store) as root:
            server = Postgres(root)
            with server.running():
                assert server.check() >= past.rows_until(moment), iso(moment)
                server.query("INSERT INTO acknowledged VALUES (0)")
            with server.running():
                assert 0 in server.check()
        shutil.rmtree(store)


@contextlib.contextmanager
def promoted(near: Path, store: Path) -> Iterator[Path]:
    """Mount a promoted store as the source that it is now, and the file system on its volume."""
    with Source(near, size=None, name="unused") as source:
        source.image, source.state_dir = store, store / "source"
        source.mount()
        device = source.attach(volume="v.img")
        with source.file_system(device) as root:
            yield root
        source.detach(device)
        assert source.umount() == 0
