"""The replayer finds stores by itself, keeps them apart, and stops and starts in order."""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from aimfuse.disk import Disk
from aimfuse.errors import BusyError, StoreError, UsageError
from aimfuse.replay.look import Entry, Look
from aimfuse.replay.once import gravest
from aimfuse.replay.replayer import STORES_MAX, Pace, Replayer
from tests.replay.faults import Steps, failing_at
from tests.replay.source import GROUP, Source, deliver, mirror_of
from tests.replay.stores import begin, until

FAST = Pace(active_s=0.01, idle_s=0.01, discover_s=0.02, retry_s_min=0.01, busy_retry_s=0.05)


def made_source(scratch: Path, name: str, group: bytes = GROUP) -> Source:
    source = Source(scratch / f"spool-{name}", group)
    source.create("v.img", 3000)
    source.roll()
    return source


def next_file(source: Source, data: bytes) -> Path:
    source.write(1, 50, data)
    return source.roll()


def shows(store: Path, source: Source) -> Callable[[], bool]:
    def compare() -> bool:
        try:
            return mirror_of(store) == source.snapshot()
        except OSError:
            return False

    return compare


async def test_stores_that_come_into_being_are_found(tmp_path: Path) -> None:
    directory = tmp_path / "stores"
    directory.mkdir()
    one, two = made_source(tmp_path, "one"), made_source(tmp_path, "two", b"2" * 16)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(directory, pace=FAST).run)
        deliver(directory / "one", *one.sync())
        await until(shows(directory / "one", one))
        deliver(directory / "two", *two.sync(), next_file(two, b"2"))
        deliver(directory / "one", next_file(one, b"1"))
        await until(shows(directory / "one", one))
        await until(shows(directory / "two", two))
        nursery.cancel_scope.cancel()


async def test_a_directory_that_is_a_store_itself_is_replayed(tmp_path: Path) -> None:
    source, store = made_source(tmp_path, "one"), tmp_path / "store"
    deliver(store, *source.sync(), next_file(source, b"x"))
    await Replayer(store).run_once()
    assert mirror_of(store) == source.snapshot()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
async def test_a_store_where_nobody_can_tell_who_wants_it_is_replayed_on(
    tmp_path: Path, number: int
) -> None:
    """Another user's promotion was killed, say, or the disk fails for a moment."""
    source, store = made_source(tmp_path, "one"), tmp_path / "store"
    deliver(store, *source.sync())

    def refuse(_at: int, label: str) -> None:
        if label == "handover:look":
            raise OSError(number, os.strerror(number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(store, Steps(refuse), FAST).run)
        await until(shows(store, source))
        (store / "wanted").touch()
        deliver(store, next_file(source, b"x"))
        await until(shows(store, source))
        nursery.cancel_scope.cancel()


class HangingDisk(Disk):
    """Does not answer for the stores that it is told to, until it is let go on."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.go_on = threading.Event()

    def open(self, label: str, path: Path, flags: int, mode: int = 0o600) -> int:
        parts = path.parent.resolve().parts  # A store is worked on by a descriptor of it.
        if "volumes" in parts and any(name in parts for name in self.names):
            self.go_on.wait(300)
        return super().open(label, path, flags, mode)


@pytest.mark.expects_warnings
async def test_stores_whose_disks_hang_hold_no_others_up(tmp_path: Path) -> None:
    directory, names = tmp_path / "stores", [str(number) for number in range(FAST.threads)]
    directory.mkdir()
    disk = HangingDisk(*names)
    sources = {name: made_source(tmp_path, name, name.encode() * 16) for name in (*names, "w")}
    for name in names:
        deliver(directory / name, *sources[name].sync())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(directory, disk, replace(FAST, hung_s=0.2)).run)
        await trio.sleep(0.3)
        deliver(directory / "w", *sources["w"].sync())
        try:
            await until(shows(directory / "w", sources["w"]))
            assert not (directory / names[0] / "mirror" / "v.img").exists()
        finally:
            disk.go_on.set()
        for name in names:
            await until(shows(directory / name, sources[name]))
        nursery.cancel_scope.cancel()


class ForbiddingLook(Look):
    """May not look into the directory *forbidden*, as another user may not."""

    def __init__(self, forbidden: Path) -> None:
        self.forbidden: Path | None = forbidden

    def entry(self, path: Path) -> Entry | None:
        if path.parent == self.forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return super().entry(path)


@pytest.mark.expects_warnings
async def test_a_store_that_may_not_be_looked_into_is_named_once_and_found_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, source = tmp_path / "stores", made_source(tmp_path, "one")
    deliver(directory / "one", *source.sync())
    look = ForbiddingLook(directory / "one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(directory, pace=FAST, look=look).run)
        await until(lambda: "cannot be looked into" in caplog.text)
        await trio.sleep(5 * FAST.discover_s)
        named = [one for one in caplog.messages if "cannot be looked into" in one]
        assert len(named) == 1
        assert str(directory / "one") in named[0]
        look.forbidden = None
        await until(shows(directory / "one", source))
        nursery.cancel_scope.cancel()


async def test_a_store_is_opened_also_while_its_disk_has_no_room_for_the_process_id(
    tmp_path: Path,
) -> None:
    source, store = made_source(tmp_path, "one"), tmp_path / "store"
    deliver(store, *source.sync())
    disk = failing_at("store:lock_pid", errno.ENOSPC)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(store, disk, FAST).run)
        await until(shows(store, source))
        nursery.cancel_scope.cancel()


@pytest.mark.expects_warnings
async def test_a_store_that_cannot_be_opened_is_named_and_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, source = tmp_path / "stores", made_source(tmp_path, "two")
    (directory / "one" / "inbox").mkdir(parents=True)
    (directory / "one" / "lock").mkdir()  # As one that belongs to somebody else.
    deliver(directory / "two", *source.sync())
    named = f"{directory / 'one' / 'lock'}: Is a directory"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(directory, pace=FAST).run)
        await until(shows(directory / "two", source))
        await until(lambda: named in caplog.messages)
        nursery.cancel_scope.cancel()
    failed, done = await Replayer(directory).run_once()
    assert str(failed.problem) == named
    assert done.problem is None
    with pytest.raises(IsADirectoryError):
        await Replayer(directory / "one").run()


@pytest.mark.expects_warnings
async def test_more_names_than_are_looked_at_are_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(STORES_MAX + 1):
        (tmp_path / str(number)).touch()
    await Replayer(tmp_path).run_once()
    assert "more names" in caplog.text


async def test_links_to_directories_are_no_stores(tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "stores", tmp_path / "elsewhere"
    directory.mkdir()
    deliver(elsewhere, *made_source(tmp_path, "one").sync())
    (directory / "linked").symlink_to(elsewhere)
    await Replayer(directory).run_once()
    assert not (elsewhere / "mirror").exists()


async def test_a_second_replayer_is_refused_at_once(tmp_path: Path) -> None:
    source, store = made_source(tmp_path, "one"), tmp_path / "store"
    deliver(store, *source.sync())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(store, pace=FAST).run)
        await until(shows(store, source))
        with pytest.raises(BusyError, match=str(os.getpid())):
            await Replayer(store).run()
        (busy,) = await Replayer(store).run_once()
        assert isinstance(busy.problem, BusyError)
        nursery.cancel_scope.cancel()
    await Replayer(store).run_once()


async def test_a_directory_that_is_not_there_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        await Replayer(tmp_path / "missing").run_once()


@pytest.mark.expects_warnings
async def test_a_halted_store_does_not_hold_up_the_others(tmp_path: Path) -> None:
    directory = tmp_path / "stores"
    good, bad = made_source(tmp_path, "good"), made_source(tmp_path, "bad", b"b" * 16)
    begin(directory / "good", good)
    begin(directory / "bad", bad)
    bad.branch()
    bad.branch()
    bad.seq = 17
    deliver(directory / "bad", next_file(bad, b"out of order"))
    deliver(directory / "good", next_file(good, b"fine"))
    found = await Replayer(directory).run_once()
    with pytest.raises(StoreError, match="bad has halted: fork"):
        raise gravest(found) or AssertionError
    assert [one.problem is None for one in found] == [False, True]
    assert mirror_of(directory / "good") == good.snapshot()


@pytest.mark.expects_warnings
async def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    source, store = made_source(tmp_path, "one"), tmp_path / "store"
    begin(store, source)
    full = True

    def before(_at: int, label: str) -> None:
        if full and label == "apply:write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    deliver(store, next_file(source, b"x"))
    replayer = Replayer(store, Steps(before), FAST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replayer.run)
        await until(lambda: "No space left" in (store / "ack.json").read_text())
        full = False
        await until(shows(store, source))
        await until(lambda: '"error": null' in (store / "ack.json").read_text())
        nursery.cancel_scope.cancel()


@pytest.mark.expects_warnings
async def test_a_fault_of_ours_halts_one_store_until_the_next_start(tmp_path: Path) -> None:
    directory = tmp_path / "stores"
    good, bad = made_source(tmp_path, "good"), made_source(tmp_path, "bad", b"b" * 16)
    begin(directory / "good", good)
    begin(directory / "bad", bad)

    class Buggy(Disk):
        def open(self, label: str, path: Path, flags: int, mode: int = 0o600) -> int:
            if label == "apply:open" and "bad" in path.resolve().parts:
                raise ZeroDivisionError
            return super().open(label, path, flags, mode)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(directory, Buggy(), FAST).run)
        deliver(directory / "bad", next_file(bad, b"x"))
        await until(lambda: "ZeroDivisionError" in (directory / "bad" / "ack.json").read_text())
        deliver(directory / "good", next_file(good, b"y"))
        await until(shows(directory / "good", good))
        nursery.cancel_scope.cancel()
    await Replayer(directory).run_once()
    assert mirror_of(directory / "bad") == bad.snapshot()


@pytest.mark.expects_warnings
@pytest.mark.parametrize("below", [True, False], ids=["beneath DIR", "DIR itself"])
async def test_a_store_that_was_moved_away_leaves_nothing_to_the_next_one_at_its_place(
    tmp_path: Path, below: bool
) -> None:
    source, other = made_source(tmp_path, "one"), made_source(tmp_path, "two", b"2" * 16)
    store, away = tmp_path / "stores" / "vm", tmp_path / "away"
    begin(store, source)
    source.branch()
    source.branch()
    source.seq = 17
    deliver(store, next_file(source, b"out of order"))
    replayer = Replayer(store.parent if below else store, pace=FAST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replayer.run)
        await until(lambda: "halted" in (store / "ack.json").read_text())
        store.rename(away)
        last_word = (away / "ack.json").read_bytes()
        await until(lambda: not replayer.sessions)
        deliver(store, *other.sync())
        await until(shows(store, other))
        nursery.cancel_scope.cancel()
    assert '"consistent"' in (store / "ack.json").read_text()
    assert (away / "ack.json").read_bytes() == last_word


@pytest.mark.expects_warnings
async def test_a_store_that_is_replaced_at_once_is_noticed_too(tmp_path: Path) -> None:
    source, other = made_source(tmp_path, "one"), made_source(tmp_path, "two", b"2" * 16)
    store, fresh = tmp_path / "stores" / "vm", tmp_path / "fresh"
    deliver(store, *source.sync())
    deliver(fresh, *other.sync())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(store.parent, pace=FAST).run)
        await until(shows(store, source))
        store.rename(tmp_path / "away")
        fresh.rename(store)
        await until(shows(store, other))
        nursery.cancel_scope.cancel()
    assert mirror_of(tmp_path / "away") == source.snapshot()


@pytest.mark.expects_warnings
async def test_a_store_that_is_replaced_in_the_middle_of_a_file_gives_the_next_one_nothing(
    tmp_path: Path,
) -> None:
    source, other = made_source(tmp_path, "one"), made_source(tmp_path, "two", b"2" * 16)
    store, fresh = tmp_path / "stores" / "vm", tmp_path / "fresh"
    begin(store, source)
    begin(fresh, other)
    mirror, moved = mirror_of(fresh), False

    def move(_at: int, label: str) -> None:
        nonlocal moved
        if label == "apply:open" and not moved:
            moved = True
            store.rename(tmp_path / "away")
            fresh.rename(store)

    deliver(store, next_file(source, b"of the store that is moved away"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Replayer(store.parent, Steps(move), FAST).run)
        await until(lambda: moved and (store / "lock").exists())
        nursery.cancel_scope.cancel()
    assert moved
    assert mirror_of(store) == mirror
    await Replayer(tmp_path / "away").run_once()
    assert mirror_of(tmp_path / "away") == source.snapshot()


@pytest.mark.expects_warnings
async def test_what_a_store_says_names_its_path_and_not_a_descriptor(tmp_path: Path) -> None:
    store, source = tmp_path / "store", made_source(tmp_path, "one")
    begin(store, source)
    spoiled = next_file(source, b"x").read_bytes()[:-1] + b"?"
    (store / "inbox" / "00000001-000000000002.aim").write_bytes(spoiled)
    await Replayer(store).run_once()
    (reason,) = (store / "quarantine").glob("*.reason")
    assert str(store / "inbox") in reason.read_text()


async def test_sources_may_read_the_ack_whatever_the_umask(tmp_path: Path) -> None:
    store = tmp_path / "store"
    deliver(store, *made_source(tmp_path, "one").sync())
    before = os.umask(0o077)
    try:
        await Replayer(store).run_once()
    finally:
        os.umask(before)
    assert (store / "ack.json").stat().st_mode & 0o777 == 0o644
