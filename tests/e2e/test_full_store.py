"""A store's disk that something else fills: the mirror stays, and all goes on by itself."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aimfuse.config import DestinationConfig
from aimfuse.units import KIB, MIB
from tests.e2e.host import QUICK, FarHost, Source, aimfuse, until
from tests.e2e.loop_disk import LoopDisk
from tests.e2e.programs import run

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse", "require_root_loop")]

SIZE = 4 * MIB
NAME = "s"
SMALL = replace(
    QUICK, file_bytes=64 * KIB, spool_bytes_max=MIB, spool_reserve_bytes=0,
    checkpoint_interval_s=0.2,
)  # fmt: skip


class FullStore:
    """A source, and a far host on a disk of its own."""

    def __init__(self, source: Source, far: FarHost, disk: Path) -> None:
        self.source = source
        self.far = far
        self._filler = disk / "another's file"
        self.mirror = far.mirror(source.image.name, NAME)

    def fill(self) -> None:
        """Let somebody else use up the disk to the last byte."""
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (MIB, 4 * KIB):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(fd, bytes(size))
                os.fsync(fd)
        finally:
            os.close(fd)

    def free(self) -> None:
        """Give that back."""
        self._filler.unlink()

    def write(self, size: int) -> None:
        """Write so much all over the volume, in order, and sync."""
        with self.source.volume.open("r+b", buffering=0) as file:
            for at in range(0, size, 64 * KIB):
                file.seek(at % SIZE)
                file.write(os.urandom(64 * KIB))
            os.fsync(file.fileno())

    def told(self) -> dict[str, Any]:
        """Return what the source says of the destination."""
        return self.source.told(NAME)

    def wait_identical(self) -> None:
        until(
            lambda: (
                self.mirror.exists() and self.mirror.read_bytes() == self.source.volume.read_bytes()
            ),
            self.told,
        )

    def wait_complaint(self) -> None:
        """Wait until the source says what is wrong."""

        def is_told() -> bool:
            said = self.told()
            reason = f"{said['error']} {(said['ack'] or {}).get('error')}".lower()
            return " free" in reason or "no space left" in reason

        until(is_told, self.told)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[FullStore]:
    """Give a mirrored volume whose store lies on a disk of 256 MiB."""
    disk = LoopDisk(tmp_path, tmp_path / "small", 256 * MIB)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    run("mkfs.ext4", "-q", disk.device)
    run("mount", disk.device, mounted)
    with FarHost(mounted / "far") as far, Source(tmp_path / "near", SIZE) as source:
        far.start()
        to = DestinationConfig(NAME, far.url(NAME), retry_s_max=0.5)
        source.init(to=[to], journal=SMALL)
        source.mount()
        made = FullStore(source, far, mounted)
        made.write(SIZE)
        made.wait_identical()
        until(lambda: made.told()["state"] == "idle", made.told)
        # What is pruned later leaves room for files that are then applied, as it should be.
        until(lambda: not list((far.store(NAME) / "history").glob("*.undo")))
        yield made
    run("umount", mounted)
    disk.remove()


def test_a_store_whose_disk_is_full_stays_readable_and_goes_on_once_it_is_not(
    place: FullStore,
) -> None:
    before = place.mirror.read_bytes()
    place.fill()
    place.write(SIZE // 2)  # More than the spool holds: the oldest of it is folded.
    place.wait_complaint()
    until(lambda: place.told()["folded"] is not None, place.told)
    assert place.mirror.read_bytes() == before
    place.free()
    place.wait_identical()


def test_so_does_one_whose_disk_is_full_when_a_copy_comes(place: FullStore) -> None:
    before = place.mirror.read_bytes()
    place.far.kill()
    away = place.far.stores.rename(place.far.root / "away")
    place.write(SIZE // 2)
    until(lambda: place.told()["folded"] is not None, place.told)
    place.fill()
    away.rename(place.far.stores)
    place.far.start()
    place.wait_complaint()
    assert place.mirror.read_bytes() == before
    assert aimfuse("status", place.far.store(NAME)).returncode == 0
    place.free()
    place.wait_identical()
