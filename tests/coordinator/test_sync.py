"""The first copy: what it reads, when it may end, and what it waits for."""

import fcntl
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.cursor import SyncState, SyncVolume
from aimfuse.coordinator.extents import ImageReader, nonzero_runs, write_sync_file
from aimfuse.coordinator.run import run_ship
from aimfuse.coordinator.source import Source
from aimfuse.disk import Disk
from aimfuse.errors import Unavailable
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.header import FileKind
from aimfuse.journal.journal import Head
from aimfuse.journal.reader import read_sealed
from aimfuse.journal.records import RecordType, VolumeEntry
from aimfuse.units import KIB, MIB, VolumeId
from tests.coordinator.fakes import Link, tools_for
from tests.coordinator.samples import BLOCK, GROUP, SampleSource, make_dice
from tests.coordinator.shipping import shipping, status, until

A = DestinationConfig("a", "sftp://a/s")


def volume(number: int, name: str, path: Path) -> SyncVolume:
    info = path.stat()
    return SyncVolume(VolumeEntry(VolumeId(number), name, info.st_size), info.st_ino)


def copied(directory: Path, sync: SyncState, image: Path, file_bytes: int) -> dict[int, bytearray]:
    """Write SYNC files to the end and return what they say of each volume."""
    disk = Disk()
    reader = ImageReader(disk, image, sync, file_bytes)
    found = {int(one.entry.volume): bytearray(one.entry.size_bytes) for one in sync.volumes}
    start, index, last = (0, 0), 0, False
    while not last:
        stretch = reader.gather(start)
        assert stretch.start == start
        to = 5 if stretch.last else None
        path = write_sync_file(disk, directory, GROUP, sync, index, stretch, to, 1)
        aim = read_sealed(disk, path)
        assert path.stat().st_size <= file_bytes + 4 * KIB
        assert (aim.identity.kind, aim.identity.number) == (FileKind.SYNC, index + 1)
        assert aim.iocbs[0].type is RecordType.TABLE
        mark = json.loads(bytes(aim.payload(aim.iocbs[1])))
        assert (mark["index"], mark["last"]) == (index, stretch.last)
        assert ("to" in mark) == stretch.last
        for iocb in aim.records():
            end = iocb.offset + iocb.payload_bytes
            found[iocb.volume][iocb.offset : end] = aim.payload(iocb)
        start, index, last = stretch.end, index + 1, stretch.last
    return found


def test_sync_files_hold_the_image_and_none_of_its_holes(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    dice = make_dice()
    with image.open("wb") as file:
        file.truncate(64 * MIB + 123)
        for _ in range(40):
            file.seek(dice.randrange(64 * MIB))
            file.write(dice.randbytes(dice.randrange(1, 400_000)))
        file.seek(30 * MIB)
        file.write(bytes(8 * MIB))  # Written zeros: data for the file system, none for us.
    sync = SyncState(7, Head(), (volume(1, "v.img", image),), 2)
    assert copied(tmp_path, sync, image, 4 * MIB)[1][: 64 * MIB] == image.read_bytes()[: 64 * MIB]
    assert sum(path.stat().st_size for path in tmp_path.glob("sync-*")) < 24 * MIB


def test_volumes_are_found_by_their_inodes_whatever_their_names_are_now(tmp_path: Path) -> None:
    root = tmp_path / "dir"
    root.mkdir()
    for name in ("a", "b", "gone"):
        (root / name).write_bytes(name.encode() * 5000)
    sync = SyncState(
        7,
        Head(),
        (volume(1, "a", root / "a"), volume(2, "b", root / "b"), volume(3, "gone", root / "gone")),
        4,
    )
    keep = (root / "gone").rename(tmp_path / "elsewhere")
    (root / "a").rename(root / "t")
    (root / "b").rename(root / "a")
    (root / "t").rename(root / "b")
    found = copied(tmp_path, sync, root, 4 * MIB)
    assert bytes(found[1]) == b"a" * 5000
    assert bytes(found[2]) == b"b" * 5000
    assert not any(found[3])
    assert keep.exists()


def test_an_image_that_shrank_or_is_empty_is_copied_as_far_as_it_goes(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    image.write_bytes(b"x" * 3 * BLOCK)
    sync = SyncState(7, Head(), (volume(1, "v.img", image),), 2)
    os.truncate(image, BLOCK)
    assert bytes(copied(tmp_path, sync, image, 4 * MIB)[1]) == b"x" * BLOCK + bytes(2 * BLOCK)
    os.truncate(image, 0)
    assert not any(copied(tmp_path, sync, image, 4 * MIB)[1])
    assert copied(tmp_path, SyncState(8, Head(), (), 1), tmp_path, 4 * MIB) == {}


def test_runs_that_are_not_zero_are_found_by_blocks() -> None:
    data = bytes(BLOCK) + b"a" * BLOCK + bytes(BLOCK) + bytes(BLOCK - 1) + b"b" + b"c" * 7
    end = len(data)
    assert list(nonzero_runs(data, 0, end)) == [(BLOCK, 2 * BLOCK), (3 * BLOCK, end)]
    assert list(nonzero_runs(data, 2 * BLOCK, end)) == [(3 * BLOCK, end)]
    assert list(nonzero_runs(data, 2 * BLOCK, end - 8)) == []
    assert list(nonzero_runs(bytes(3 * BLOCK + 5), 0, 3 * BLOCK + 5)) == []
    assert list(nonzero_runs(b"", 0, 0)) == []


def test_zeros_between_data_are_told_apart_wherever_they_lie(tmp_path: Path) -> None:
    image, dice = tmp_path / "v.img", make_dice()
    blocks = (dice.choice((bytes(BLOCK), dice.randbytes(BLOCK))) for _ in range(1500))
    image.write_bytes(b"".join(blocks) + b"end")
    held, size = image.read_bytes(), image.stat().st_size
    sync, dirty = SyncState(7, Head(), (volume(1, "v.img", image),), 2), DirtyMap()
    dirty.add(1, 0, size)
    assert copied(tmp_path, sync, image, 4 * MIB)[1] == held
    reader = ImageReader(Disk(), image, sync, 4 * MIB, dirty)
    found, start, last = bytearray(b"\xff" * size), (0, 0), False
    while not last:
        stretch = reader.gather(start)
        for one in stretch.chunks:
            assert one.data is None or len(one.data) == one.length
            found[one.offset : one.offset + one.length] = one.data or bytes(one.length)
        start, last = stretch.end, stretch.last
    assert found == held


def test_an_image_that_is_cut_while_it_is_read_is_copied_as_far_as_it_goes(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    image.write_bytes(b"x" * 3 * MIB)
    sync = SyncState(7, Head(), (volume(1, "v.img", image),), 2)

    class CutsMeanwhile(Disk):
        def pread_into(self, fd: int, view: memoryview, offset: int) -> int:
            os.truncate(image, MIB + BLOCK + 5)
            return super().pread_into(fd, view, offset)

    stretch = ImageReader(CutsMeanwhile(), image, sync, 4 * MIB).gather((0, 0))
    assert [(one.offset, one.length) for one in stretch.chunks] == [(0, MIB), (MIB, BLOCK + 5)]
    assert (stretch.end, stretch.last) == ((1, 3 * MIB), True)


async def test_a_copy_waits_for_the_end_of_an_unclean_journal(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    source.fill(1)
    source.checkpoint(clean=False)
    async with shipping(source, tools_for(source, make_dice(1), a=link)):
        await until(lambda: "cleanly" in str(status(source).get("error")), 300)
        assert not link.store.deliveries
        assert source.cursor("a")["state"] == "syncing"
        assert source.cursor("a")["pin"] == 0
        source.checkpoint()
        await until(lambda: link.store.phase == "consistent", 300)
    assert bytes(link.store.mirror) == source.contents()
    assert autojump_clock.current_time() > 0


@asynccontextmanager
async def driving(
    source: SampleSource, answer: Callable[[str], Awaitable[dict[str, object]]]
) -> AsyncIterator[None]:
    """Answer at the control socket what *answer* returns for a command."""

    async def drive(stream: trio.SocketStream) -> None:
        asked = json.loads((await stream.receive_some()).splitlines()[0])["cmd"]
        reply = {"ok": True, "state": "active", "accepted_seq": 41, **await answer(asked)}
        await stream.send_all(json.dumps(reply).encode() + b"\n")

    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(source.state_dir / "control.sock"))
    listening.listen()
    listener = trio.SocketListener(listening)

    async def serve() -> None:
        await trio.serve_listeners(drive, [listener])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield
        nursery.cancel_scope.cancel()


async def test_a_copy_that_waits_for_the_driver_says_that_it_has_begun(tmp_path: Path) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    asked, go_on = trio.Event(), trio.Event()

    async def answer(command: str) -> dict[str, object]:
        if command == "applied":
            asked.set()
            await go_on.wait()
        return {"number": source.head.number}

    link.store.has_replayer = False
    tools = tools_for(source, make_dice(2), a=link)
    with trio.fail_after(60):
        async with driving(source, answer), shipping(source, tools):
            await until(lambda: "no ack.json yet" in str(status(source).get("error")))
            link.store.has_replayer = True
            await asked.wait()
            await until(lambda: status(source)["state"] == "syncing")
            assert status(source)["error"] is None
            go_on.set()
            await until(lambda: link.store.phase == "consistent")


@pytest.mark.parametrize(("is_kept", "is_begun"), [(True, True), (True, False), (False, True)])
async def test_a_file_of_a_copy_goes_on_after_a_cut_with_the_bytes_that_it_had(
    autojump_clock: MockClock, tmp_path: Path, *, is_kept: bool, is_begun: bool
) -> None:
    """Of one that nothing was sent of a part may be there all the same, of an earlier one."""
    source, link = SampleSource(tmp_path, A), Link(breaks_in_the_middle=is_begun)
    source.fill(1, 2)
    source.checkpoint()

    def cut_and_write(call: str, _name: str) -> None:
        if call != "put" or len(link.offers) > 2:
            return
        source.fill(len(link.offers) + 2)  # Nothing that the journal does not bring, else.
        if not is_kept:
            for path in source.state_dir.rglob("sync-*.aim"):
                path.write_bytes(b"damaged")
        raise Unavailable("the link broke in mid-file")

    link.plan = cut_and_write
    async with shipping(source, tools_for(source, make_dice(2), a=link)):
        await until(lambda: link.store.phase == "consistent")
    assert autojump_clock.current_time() > 0
    copies = [(data, fresh) for name, data, fresh in link.offers if name.startswith("sync-")]
    assert len(copies) == 3
    is_fresh = not (is_kept and is_begun)
    assert [fresh for _data, fresh in copies] == [True, is_fresh, is_fresh]
    assert len({data for data, _fresh in copies}) == (1 if is_kept else 3)


async def test_a_mirror_that_is_a_mixture_has_no_end_for_a_copy_of_it(tmp_path: Path) -> None:
    source = SampleSource(tmp_path, A)
    newest = source.write(1, 7).number
    source.checkpoint(gap="a copy is switched in")
    seen = Source(source.disk, source.state_dir)
    with pytest.raises(Unavailable, match="a copy is switched in"):
        await seen.covering_number(newest)
    source.checkpoint()
    assert await seen.covering_number(newest) == newest


async def test_the_driver_says_where_a_copy_ends_while_it_is_mounted(tmp_path: Path) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    source.fill(1)
    source.checkpoint(clean=False)

    async def answer(command: str) -> dict[str, object]:
        # What the copy has read gets sealed now.
        return {"number": source.write(2, 77).number} if command == "applied" else {}

    with trio.fail_after(60):
        async with driving(source, answer):
            tools = tools_for(source, make_dice(2), a=link)
            await run_ship(source.state_dir, until_empty=True, tools=tools)
    link.store.ack()
    assert link.store.to == 1
    assert bytes(link.store.mirror) == source.contents()
    assert link.store.heartbeats[-1]["accepted_seq"] == 41
    assert link.store.heartbeats[-1]["state"] == "active"


async def test_a_copy_does_not_begin_while_files_are_being_released(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    source.write(1, 1)
    with (source.state_dir / "retention.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with shipping(source, tools_for(source, make_dice(3), a=link)):
            await until(lambda: status(source).get("state") == "retrying", 300)
            assert source.cursor("a") == {}
            source.checkpoint()
            fcntl.flock(held, fcntl.LOCK_UN)
            await until(lambda: source.cursor("a").get("pin") == 1, 300)
    assert autojump_clock.current_time() > 0


async def test_a_copy_does_not_begin_right_before_a_break_in_history(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    source.checkpoint(clean=False, gap="the image was taken as it is")
    async with shipping(source, tools_for(source, make_dice(4), a=link)):
        await until(
            lambda: "waits for the next checkpoint" in str(status(source).get("error")), 300
        )
        assert source.cursor("a").get("sync") is None
        assert not link.store.deliveries
        source.write(1, 1)
        source.checkpoint()
        await until(lambda: link.store.phase == "consistent", 300)
    assert bytes(link.store.mirror) == source.contents()
    assert autojump_clock.current_time() > 0
