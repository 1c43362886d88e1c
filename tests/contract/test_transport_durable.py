"""What is durable when, on the two far sides whose disk we can watch and break."""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from aimfuse.disk import Buffer, Disk
from aimfuse.errors import Unavailable
from aimfuse.transport import Transport
from aimfuse.transport.directory import DirectoryTransport
from aimfuse.units import KIB, MIB
from tests.contract.far_sides import EmbeddedSide, opened, opened_at_last

MakeFile = Callable[[str, int], Path]
Deliver = Callable[["WatchedDisk"], Transport]


class WatchedDisk(Disk):
    """Writes down its steps; fails, forgets or hangs at those it is told to."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.fail_at = ""
        self.forget_writes_from = 1 << 62
        self.hang_at = ""
        self.go_on = threading.Event()

    def step(self, label: str) -> None:
        self.labels.append(label.partition(":")[2])
        if label.endswith(self.fail_at) and self.fail_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if label.endswith(self.hang_at) and self.hang_at:
            self.go_on.wait(300)

    def pwrite(self, label: str, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        if offset < self.forget_writes_from:
            super().pwrite(label, fd, buffers, offset)


@pytest.fixture(params=["directory", "embedded"])
async def watched(
    request: pytest.FixtureRequest, embedded: EmbeddedSide
) -> tuple[Transport, WatchedDisk]:
    """Return a transport that is not open yet, and the disk that it ends at."""
    disk = WatchedDisk()
    store = embedded.root / "store"
    if request.param == "directory":
        return DirectoryTransport(store, disk), disk
    embedded.disk = disk
    await embedded.restart()
    return embedded.transport(store), disk


def delivered(far: EmbeddedSide) -> list[str]:
    return sorted(path.name for path in (far.root / "store" / "inbox").iterdir())


async def test_contents_are_synced_before_the_rename_and_the_directory_after_it(
    watched: tuple[Transport, WatchedDisk], make_file: MakeFile
) -> None:
    transport, disk = watched
    async with opened(transport):
        disk.labels.clear()
        await transport.put(make_file("a", 600 * KIB), "a.aim")
    steps = [label for label in disk.labels if label in {"write", "sync", "rename", "sync-dir"}]
    assert set(steps[:-3]) == {"write"}
    assert steps[-3:] == ["sync", "rename", "sync-dir"]


async def test_a_small_file_is_as_durable_as_a_large_one(
    watched: tuple[Transport, WatchedDisk],
) -> None:
    transport, disk = watched
    async with opened(transport):
        disk.labels.clear()
        await transport.put_bytes(b"{}", "source.json")
    steps = [label.replace("_", "-") for label in disk.labels]
    wanted = {"write", "sync", "rename", "sync-dir"}
    steps = [step for step in steps if step in wanted]
    assert steps[-4:] == ["write", "sync", "rename", "sync-dir"]
    assert set(steps[:-4]) <= {"rename"}, "of a new part file to its name"


@pytest.mark.parametrize("step", ["write", "sync", "rename"])
async def test_a_failing_disk_is_unavailable_and_leaves_no_final_name(
    watched: tuple[Transport, WatchedDisk], embedded: EmbeddedSide, make_file: MakeFile, step: str
) -> None:
    transport, disk = watched
    async with opened(transport):
        disk.fail_at = f":{step}"
        with pytest.raises(Unavailable):
            await transport.put(make_file("a", 600 * KIB), "a.aim")
        assert delivered(embedded) == ["a.aim.part"]
        disk.fail_at = ""
        await transport.put(make_file("a", 600 * KIB), "a.aim")
    assert delivered(embedded) == ["a.aim"]


async def test_nothing_sent_before_a_failed_sync_is_believed_afterwards(
    watched: tuple[Transport, WatchedDisk], make_file: MakeFile
) -> None:
    transport, disk = watched
    told: list[int] = []
    async with opened(transport):
        disk.fail_at = ":sync"
        with pytest.raises(Unavailable):
            await transport.put(make_file("a", MIB), "a.aim")
        disk.fail_at = ""
        await transport.put(make_file("a", MIB), "a.aim", progress=told.append)
    assert sum(told) == MIB


async def test_a_directory_that_cannot_be_synced_is_not_called_durable(
    watched: tuple[Transport, WatchedDisk], make_file: MakeFile
) -> None:
    transport, disk = watched
    async with opened(transport):
        disk.fail_at = ":sync-dir"
        with pytest.raises(Unavailable):
            await transport.put(make_file("a", 600 * KIB), "a.aim")


async def test_a_far_side_that_lost_the_end_of_the_file_gets_no_final_name(
    watched: tuple[Transport, WatchedDisk], embedded: EmbeddedSide, make_file: MakeFile
) -> None:
    transport, disk = watched
    async with opened(transport):
        (embedded.root / "store" / "inbox" / "a.aim.part").write_bytes(bytes(KIB))
        disk.forget_writes_from = KIB
        with pytest.raises(Unavailable, match=str(MIB)):
            await transport.put(make_file("a", MIB), "a.aim")
    assert delivered(embedded) == ["a.aim.part"]


class VanishingDisk(Disk):
    """Fails a write, and the store is gone by the time that somebody asks why."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def step(self, label: str) -> None:
        if label == "serve:write":
            self._store.rename(self._store.with_name("away"))
            raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_a_write_that_fails_where_nobody_knows_the_free_space_is_tried_again_later(
    embedded: EmbeddedSide, make_file: MakeFile
) -> None:
    store = embedded.root / "store"
    embedded.disk = VanishingDisk(store)
    await embedded.restart()
    async with opened(embedded.transport(store)) as link:
        with pytest.raises(Unavailable):
            await link.put(make_file("a", KIB), "a.aim")


async def test_a_server_whose_disk_hangs_is_given_up(
    embedded: EmbeddedSide, make_file: MakeFile
) -> None:
    disk = WatchedDisk()
    embedded.disk = disk
    await embedded.restart()

    def patient(stall_s_max: float) -> Transport:
        settings = replace(embedded.settings, stall_s_max=stall_s_max)
        return embedded.transport(embedded.root / "store", settings=settings)

    try:
        async with opened_at_last(patient, 1.0) as link:
            disk.hang_at = ":sync"
            with pytest.raises(Unavailable, match="no answer"):
                await link.put(make_file("a", KIB), "a.aim")
    finally:
        disk.go_on.set()
    assert delivered(embedded) == ["a.aim.part"]


async def test_an_ack_that_may_not_be_read_says_whose_permissions_to_look_at(
    watched: tuple[Transport, WatchedDisk], embedded: EmbeddedSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, disk = watched
    real_open = disk.open

    def refusing(label: str, path: Path, flags: int, mode: int = 0o600) -> int:
        if path.name == "ack.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real_open(label, path, flags, mode)

    monkeypatch.setattr(disk, "open", refusing)
    try:
        await transport.open()
        (embedded.root / "store" / "ack.json").write_text("{}")
        with pytest.raises(Unavailable, match=r"ack\.json may not be read") as caught:
            await transport.get("ack.json", 100)
    finally:
        await transport.aclose()
    assert "umask" in caught.value.hint


async def test_a_mount_that_hangs_takes_no_threads_of_other_destinations(
    tmp_path: Path, make_file: MakeFile
) -> None:
    hung, disk, source = tmp_path / "hung", WatchedDisk(), make_file("a", 64 * KIB)
    stuck, well = DirectoryTransport(hung, disk), DirectoryTransport(tmp_path / "well")
    await stuck.open()
    await well.open()
    disk.hang_at = "write"
    async with trio.open_nursery() as nursery:
        for number in range(60):  # More than trio's threads for everybody.
            nursery.start_soon(partial(stuck.put, source, f"{number}.aim"))
        await trio.sleep(0.1)
        try:
            with trio.fail_after(60):
                await well.put(source, "a.aim")
        finally:
            disk.go_on.set()
    assert len(list((hung / "inbox").iterdir())) == 60
