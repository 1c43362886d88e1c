"""Views as their user has them: mounted, read, written to, unmounted, killed."""

import contextlib
import errno
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.replay.pins import unpinned
from aimfuse.units import MIB
from tests.e2e.host import AIMFUSE, FarHost, aimfuse, is_mountpoint, until
from tests.e2e.programs import run
from tests.fuse.calls import PLAIN, PUNCH, ZERO_RANGE, fallocate, opened
from tests.replay.recorder import at, position, recorded, restored
from tests.replay.source import Source, deliver
from tests.replay.stores import begin, catch_up

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.usefixtures("require_fuse"),
    pytest.mark.expects_warnings,
]


class View:
    """`aimfuse view` as a process of its own; `place` is where it is mounted."""

    def __init__(self, store: Path, place: Path, *options: str) -> None:
        place.mkdir(exist_ok=True)
        self.place = place
        self.log = place.with_suffix(".log")
        ready, told = os.pipe()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                (*AIMFUSE, "view", str(store), str(place), *options, "--ready-fd", str(told)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[told],
            )  # fmt: skip
        os.close(told)
        with os.fdopen(ready) as pipe:
            self.said = pipe.read()
        assert self.said, self.log.read_text()

    def end(self) -> int:
        """Unmount it and return its exit code."""
        done = aimfuse("umount", self.place)
        assert done.returncode == 0, done.stderr
        return self.process.wait(60)


@contextlib.contextmanager
def view(store: Path, place: Path, *options: str) -> Iterator[View]:
    shown = View(store, place, *options)
    try:
        yield shown
    finally:
        if shown.process.poll() is None:
            shown.process.kill()
            shown.process.wait(60)
        if is_mountpoint(place):
            subprocess.run(["fusermount3", "-uz", str(place)], check=False)


def pins_of(store: Path) -> int | None:
    with unpinned(Disk(), store / "history") as limit:
        return limit


def digests(*directories: Path) -> dict[str, bytes]:
    return {
        str(path): hashlib.blake2b(path.read_bytes()).digest()
        for directory in directories
        for path in sorted(directory.iterdir())
        if not path.name.startswith("pin")
    }


def read_past_cache(path: Path) -> bytes:
    """Return what the view itself gives, and not what the kernel has kept of it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        found = b""
        while data := os.pread(fd, 1 << 16, len(found)):
            found += data
        return found
    finally:
        os.close(fd)


def test_a_view_shows_the_past_as_files_that_cannot_be_changed(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    with view(store, tmp_path / "mnt", "--at", "1:12", "--json") as shown:
        said = json.loads(shown.said)
        assert (said["position"], said["scratch"], said["newest"]) == ("1:12", None, False)
        found = {path.name: path.read_bytes() for path in shown.place.iterdir()}
        assert found == source.states[1, 12]
        assert {one["name"]: one["size"] for one in said["volumes"]} == {
            name: len(data) for name, data in found.items()
        }
        for attempt in (
            lambda: (shown.place / "v.img").open("r+b"),
            (shown.place / "new").touch,
            (shown.place / "v.img").unlink,
            lambda: os.truncate(shown.place / "v.img", 0),
        ):
            with pytest.raises(OSError, match="Read-only") as caught:
                attempt()
            assert caught.value.errno == errno.EROFS
        assert pins_of(store) is not None
        assert shown.end() == 0
    assert pins_of(store) is None


def test_one_volume_alone_can_be_viewed(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    with view(store, tmp_path / "mnt", "--at", "1:12", "--volume", "v.img") as shown:
        assert [path.name for path in shown.place.iterdir()] == ["v.img"]
        assert (shown.place / "v.img").read_bytes() == source.states[1, 12]["v.img"]
        asked = aimfuse("status", shown.place)
        assert asked.returncode == 2
        assert f"a view of {store} at 1:12, read only" in asked.stderr
        assert asked.returncode == 2
        note = shown.place / ".aimfuse-view"
        assert json.loads(note.read_text())["position"] == "1:12"
        assert not os.access(note, os.X_OK)
        into = aimfuse("restore", store, "-o", shown.place / "x.img", "--volume", "v.img")
        assert (into.returncode, "where nothing lasts" in into.stderr) == (2, True)
    refused = aimfuse("view", store, tmp_path / "mnt", "--volume", "w.img")
    assert refused.returncode == 2
    assert "There were: extra-" in refused.stderr


def test_a_view_is_what_a_restore_is_while_files_are_applied_and_pruned(tmp_path: Path) -> None:
    source, chance = Source(tmp_path / "spool"), random.Random(5)
    volume = source.create("v.img", 2 * MIB)
    source.write(volume, 0, chance.randbytes(MIB))
    source.roll()

    def more() -> Path:
        for _ in range(20):
            source.write(volume, chance.randrange(2 * MIB - 9000), chance.randbytes(8000))
        return source.roll()

    with FarHost(tmp_path / "far") as far:
        store = far.store()
        begin(store, source)
        deliver(store, *(more() for _ in range(5)))
        catch_up(store)
        right = restored(store, at((1, 40)), tmp_path / "right")["v.img"]
        (store / "store.toml").write_text('keep = "1ms"')
        with view(store, tmp_path / "mnt", "--at", "1:40") as shown:
            far.start()
            for _ in range(30):
                deliver(store, more())
                assert read_past_cache(shown.place / "v.img") == right
            far.wait_applied(source.number)
            assert read_past_cache(shown.place / "v.img") == right
            kept = undo_files(store)
            assert len(kept) >= 30
            assert shown.end() == 0
        until(lambda: len(undo_files(store)) < len(kept))


def undo_files(store: Path) -> list[Path]:
    return list((store / "history").glob("*.undo"))


def test_a_mirror_that_changes_without_history_gives_errors_and_not_data(tmp_path: Path) -> None:
    _source, store, waiting = recorded(tmp_path)
    with view(store, tmp_path / "mnt") as shown:
        (store / "store.toml").write_text("keep = 0")
        deliver(store, waiting[0])
        catch_up(store)
        with pytest.raises(OSError, match="Input/output") as caught:
            read_past_cache(shown.place / "v.img")
        assert caught.value.errno == errno.EIO
        assert shown.end() == 14
        assert "the view has ended: history began anew" in shown.log.read_text()


# With a scratch.


def test_what_is_written_to_a_scratch_is_nowhere_else(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = digests(store / "mirror", store / "volumes", store / "history")
    right = {name: bytearray(data) for name, data in source.states[1, 12].items()}
    with view(store, tmp_path / "mnt", "--at", "1:12", "--scratch-dir", str(scratch)) as shown:
        place = shown.place
        assert f"{place}: a view at 1:12, with a scratch" in shown.log.read_text()
        assert f"{store} at 1:12, with a scratch" in aimfuse("status", place / "v.img").stderr
        for change in (Path.unlink, Path.touch, lambda path: path.write_bytes(b"x")):
            with pytest.raises(OSError, match=r"\[Errno"):
                change(place / ".aimfuse-view")
        with (place / "v.img").open("r+b") as file:
            file.seek(5000)
            file.write(b"scratch" * 1000)
        right["v.img"][5000:12000] = b"scratch" * 1000
        with opened(place / "v.img") as fd:
            assert fallocate(fd, PUNCH, 4000, 5000) == 0
            assert fallocate(fd, ZERO_RANGE, 24_990, 20) == 0
            assert fallocate(fd, PLAIN, 0, 4096) == errno.EOPNOTSUPP
        right["v.img"][4000:9000] = bytes(5000)
        os.truncate(place / "v.img", 15000)
        del right["v.img"][15000:]
        (place / "new").write_bytes(b"made here")
        (place / "new").rename(place / "extra-0")
        right["extra-0"] = bytearray(b"made here")
        with (place / "gone").open("w+b") as held:
            held.write(b"still there")
            held.flush()
            (place / "gone").unlink()
            held.seek(0)
            assert held.read() == b"still there"
        found = {path.name: path.read_bytes() for path in place.iterdir()}
        assert found == right
        assert not list(scratch.iterdir())
        assert shown.end() == 0
    assert digests(store / "mirror", store / "volumes", store / "history") == before
    with view(store, tmp_path / "mnt", "--at", "1:12") as shown:
        found = {path.name: path.read_bytes() for path in shown.place.iterdir()}
        assert found == source.states[1, 12]


@pytest.mark.usefixtures("require_root_loop")
def test_a_file_system_in_a_scratch_is_mounted_and_repaired(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    image = tmp_path / "ext4.img"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", image)
    volume = source.create("v.img", 8 * MIB)
    source.roll()
    begin(store, source)
    data = image.read_bytes()
    for offset in range(0, len(data), 65536):
        if any(data[offset : offset + 65536]):
            source.write(volume, offset, data[offset : offset + 65536])
    deliver(store, source.roll())
    catch_up(store)
    before = digests(store / "volumes", store / "history")
    place = tmp_path / "fs"
    place.mkdir()
    with view(store, tmp_path / "mnt", "--scratch") as shown:
        run("mount", "-o", "loop", shown.place / "v.img", place)
        try:
            (place / "file").write_bytes(b"rehearsed" * 1000)
            run("fstrim", place)
        finally:
            run("umount", place)
        until(lambda: not run("losetup", "--associated", shown.place / "v.img"))
        run("e2fsck", "-fp", shown.place / "v.img")
        run("mount", "-o", "loop,ro", shown.place / "v.img", place)
        try:
            assert (place / "file").read_bytes() == b"rehearsed" * 1000
        finally:
            run("umount", place)
        assert shown.end() == 0
    assert digests(store / "volumes", store / "history") == before


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_database_in_a_scratch_is_recovered_and_written_to(tmp_path: Path, mode: str) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.roll()
    begin(store, source)
    for name, data in a_database_in_use(tmp_path / "app.db").items():
        source.write(source.create(name), 0, data)
    deliver(store, source.roll())
    catch_up(store)
    with view(store, tmp_path / "mnt", "--scratch") as shown:
        with contextlib.closing(sqlite3.connect(shown.place / "app.db")) as database:
            assert database.execute("SELECT count(*) FROM t").fetchone() == (500,)
            assert database.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
            with database:
                database.execute("INSERT INTO t SELECT x + 500 FROM t")
            assert database.execute("SELECT count(*) FROM t").fetchone() == (1000,)
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert shown.end() == 0
    assert (store / "mirror" / "app.db").read_bytes() == source.snapshot()["app.db"]


def a_database_in_use(path: Path) -> dict[str, bytes]:
    """Return the files of a database whose last commits are only in its log."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = wal")
        database.execute("CREATE TABLE t (x INTEGER)")
        with database:
            database.executemany("INSERT INTO t VALUES (?)", [(one,) for one in range(500)])
        names = (path.name, f"{path.name}-wal")
        return {name: path.with_name(name).read_bytes() for name in names}


# Its end.


def test_a_view_that_was_killed_leaves_nothing_that_is_in_the_way(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = ("--at", "1:12", "--scratch-dir", str(scratch))
    with view(store, tmp_path / "mnt", *options) as shown:
        (shown.place / "v.img").write_bytes(b"x" * 100_000)
        shown.process.send_signal(signal.SIGKILL)
        shown.process.wait(60)
        assert not list(scratch.iterdir())
        assert pins_of(store) is None
        assert not list((store / "history").glob("pin-*"))
        with view(store, shown.place, *options) as again:
            assert (again.place / "v.img").read_bytes() == source.states[1, 12]["v.img"]
            assert again.end() == 0


def test_a_view_ends_with_a_signal_unless_it_is_used(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    with view(store, tmp_path / "mnt") as shown:
        with (shown.place / "v.img").open("rb") as held:
            shown.process.terminate()
            until(lambda: "SIGTERM" in shown.log.read_text())
            assert held.read(5)
            done = aimfuse("umount", shown.place, "--timeout", "100ms")
            assert done.returncode == 3
            assert "v.img open" in done.stderr
        shown.process.terminate()
        assert shown.process.wait(60) == 0


def test_a_view_in_the_background_says_where_it_is_or_why_not(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mnt")
    done = aimfuse("view", store, tmp_path / "link", "--at", "1:12", "--background")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1:12 in file")
    assert f"is mounted at {tmp_path / 'mnt'} (read only)" in done.stdout
    refused = aimfuse("view", store, tmp_path / "mnt", "--background")
    assert refused.returncode == 3
    assert f"aimfuse umount {tmp_path / 'mnt'}" in refused.stderr
    assert aimfuse("umount", tmp_path / "link").returncode == 0
    refused = aimfuse("view", store, tmp_path / "mnt", "--at", "9:1", "--background")
    assert refused.returncode == 15
    assert "Traceback" not in (store / "view.log").read_text()
    assert aimfuse("view", tmp_path, tmp_path / "mnt", "--background").returncode == 2


def test_bisect_finds_the_record_that_broke_it(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    sizes = {where: len(state.get("v.img", b"")) for where, state in source.states.items()}
    good = max(where for where, size in sizes.items() if size == 30000)
    check = "test $(stat -c %s {}/v.img) = 30000 && : > {}/v.img"
    done = aimfuse("bisect", store, "--check", check, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert position(said["good"]["position"]) == good
    assert (said["bad"]["type"], said["bad"]["name"]) == ("TRUNCATE", "v.img")
    assert done.stderr.count("good ") + done.stderr.count("bad ") == said["checks"]


def test_a_search_that_is_killed_leaves_no_view_behind(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    told = tmp_path / "told"
    check = f"echo {{}} > {told}.part; mv {told}.part {told}; exec sleep 1000"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    search = subprocess.Popen(
        (*AIMFUSE, "bisect", str(store), "--check", check), env=environment, process_group=0
    )
    try:
        until(told.exists)
        mountpoint = Path(told.read_text().strip())
        assert is_mountpoint(mountpoint)
        search.kill()
        search.wait(60)
        until(lambda: not is_mountpoint(mountpoint))
        until(lambda: pins_of(store) is None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(search.pid, signal.SIGKILL)
