"""A directory group: names come, change and go, here and in the mirror alike."""

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aimfuse.cli import past, seed, view
from aimfuse.cli.plain import App
from aimfuse.units import MIB, TIB
from tests.e2e.host import FarHost, Source, until
from tests.fuse.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, opened, renameat2
from tests.replay.recorder import recorded

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

CONTROL = ".aimfuse"


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarHost]:
    with FarHost(tmp_path_factory.mktemp("far") / "far") as host:
        host.start()
        yield host


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, far: FarHost) -> Iterator[Source]:
    with Source(tmp_path_factory.mktemp("near") / "near", size=None, name="images") as source:
        source.init(to=[far.url()])
        source.mount()
        yield source


@pytest.fixture
def source(shared: Source) -> Source:
    """Return the mounted group, emptied."""
    for path in shared.mountpoint.iterdir():
        if path.name != CONTROL:
            path.unlink()
    return shared


def held(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def assert_mirrored(source: Source, far: FarHost) -> None:
    source.wait_mirrored(far)
    source.wait_applied()
    files = held(source.mountpoint)
    assert held(source.image) == files
    assert held(far.mirror("").absolute()) == files


def test_files_come_change_their_names_and_go(source: Source, far: FarHost) -> None:
    place = source.mountpoint
    for i in range(6):
        (place / f"file{i}").write_bytes(bytes([i + 65]) * (i * 3000))
    (place / "file0").rename(place / "renamed")
    (place / "file1").rename(place / "file2")
    (place / "file3").unlink()
    (place / "file3").write_bytes(b"a new one of that name")
    os.truncate(place / "file4", 100)
    assert held(place) == {
        "file2": b"B" * 3000,
        "file3": b"a new one of that name",
        "file4": b"E" * 100,
        "file5": b"F" * 15000,
        "renamed": b"",
    }
    assert_mirrored(source, far)


def test_two_names_are_swapped_by_way_of_a_third(source: Source, far: FarHost) -> None:
    place = source.mountpoint
    (place / "left").write_bytes(b"left")
    (place / "right").write_bytes(b"right")
    (place / "left").rename(place / "between")
    (place / "right").rename(place / "left")
    (place / "between").rename(place / "right")
    assert held(place) == {"left": b"right", "right": b"left"}
    assert_mirrored(source, far)


def test_a_rename_that_must_not_replace_does_not(source: Source) -> None:
    place = source.mountpoint
    (place / "one").write_bytes(b"one")
    (place / "two").write_bytes(b"two")
    assert renameat2(place / "one", place / "two", RENAME_NOREPLACE) == errno.EEXIST
    assert renameat2(place / "one", place / "three", RENAME_NOREPLACE) == 0
    assert renameat2(place / "three", place / "two", RENAME_EXCHANGE) == errno.EINVAL
    (place / "two").rename(place / "two")
    assert held(place) == {"two": b"two", "three": b"one"}


@pytest.mark.parametrize("how", ["unlink", "replace"])
def test_a_removed_file_lives_on_for_those_who_have_it_open(
    source: Source, far: FarHost, how: str
) -> None:
    place = source.mountpoint
    (place / "doomed").write_bytes(b"a" * 10000)
    with opened(place / "doomed") as fd:
        if how == "unlink":
            (place / "doomed").unlink()
        else:
            (place / "other").write_bytes(b"other")
            (place / "other").rename(place / "doomed")
        os.pwrite(fd, b"still written", 5000)
        os.fsync(fd)
        os.ftruncate(fd, 6000)
        source.wait_applied()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 13, 5000) == b"still written"
        assert os.fstat(fd).st_size == 6000
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"more", 0)
        assert os.pread(fd, 5, 0) == b"morea"
    assert held(place) == ({} if how == "unlink" else {"doomed": b"other"})
    assert_mirrored(source, far)


def test_a_file_removed_before_anything_of_it_was_applied_still_reads(source: Source) -> None:
    for i in range(20):
        path = source.mountpoint / f"short-lived{i}"
        with opened(path, os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, b"data")
            path.unlink()
            assert os.pread(fd, 10, 0) == b"data"
    assert held(source.mountpoint) == {}
    assert source.status()["state"] == "active"


def test_what_cannot_be_mirrored_is_refused_cleanly(source: Source) -> None:
    place = source.mountpoint
    (place / "file").write_bytes(b"file")
    attempts = (
        (place / "directory").mkdir,
        lambda: (place / "symlink").symlink_to("file"),
        lambda: (place / "hardlink").hardlink_to(place / "file"),
        lambda: os.mkfifo(place / "fifo"),
        lambda: os.close(os.open(place, os.O_TMPFILE | os.O_RDWR)),
        lambda: (place / ".aimfuse-1").write_bytes(b""),
        lambda: (place / "file").rename(place / ".aimfuse-2"),
        lambda: (place / CONTROL).rename(place / "other"),
        lambda: (place / "file").rename(place / CONTROL / "status"),
        lambda: (place / ("x" * 256)).write_bytes(b""),
        lambda: Path(os.fsdecode(bytes(place) + b"/\xff\xfe")).write_bytes(b""),
        (place / "missing").unlink,
    )
    for attempt in attempts:
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            attempt()
        assert caught.value.errno in {
            errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EILSEQ,
            errno.ENAMETOOLONG, errno.ENOENT, errno.EXDEV, errno.EISDIR,
        }  # fmt: skip
    assert held(place) == {"file": b"file"}
    assert source.status()["state"] == "active"


def test_a_command_that_would_make_a_directory_there_says_so_before_it_begins(
    source: Source, tmp_path: Path
) -> None:
    place, (_writer, store, _waiting) = source.mountpoint, recorded(tmp_path)
    free, to = tmp_path / "free", "sftp://far/srv/v"
    free.mkdir()
    app = App()
    for module in (past, seed, view):
        module.register(app)
    for words, said in (
        (("restore", store, "-o", place / "was"), "there can be files alone"),
        (("restore", store, "-o", place / "was", "--dry-run"), "there can be files alone"),
        (("seed", "export", source.image, place / "seed", "--to", to), "there can be files alone"),
        (("view", store, free, "--scratch-dir", place), "what is written there is mirrored"),
    ):
        done = CliRunner().invoke(app, [*map(str, words)])
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    one = ("restore", store, "-o", place / "was.img", "--volume", "v.img")
    assert CliRunner().invoke(app, [*map(str, one)]).exit_code == 0
    assert list(held(place)) == ["was.img"]


def test_a_write_beyond_what_the_disk_below_can_hold_is_refused_before_it_is_accepted(
    source: Source, far: FarHost
) -> None:
    path = source.mountpoint / "large"
    path.write_bytes(b"small")
    for offset in (16 * TIB - 1, 16 * TIB, 2**62, 2**63 - 2):
        with opened(path) as fd, pytest.raises(OSError, match="too large"):
            os.pwrite(fd, b"x", offset)
        with pytest.raises(OSError, match="too large"):
            os.truncate(path, offset + 1)
    (source.mountpoint / "after").write_bytes(b"goes on")
    assert_mirrored(source, far)
    assert source.status()["state"] == "active"


def test_names_may_be_long_and_odd(source: Source, far: FarHost) -> None:
    names = ["x" * 255, "ü" * 127, "with blank", "with\\backslash", "-rf", "*", "✓", "a%2Cb"]
    for name in names:
        (source.mountpoint / name).write_text(name)
    assert set(held(source.mountpoint)) == set(names)
    assert_mirrored(source, far)


def test_many_files_are_listed_whole_while_names_change(source: Source, far: FarHost) -> None:
    place = source.mountpoint
    steady = {f"steady-{i:04}" for i in range(400)}
    for name in sorted(steady):
        (place / name).write_bytes(name.encode())
    stop = threading.Event()

    def unrest() -> None:
        i = 0
        while not stop.is_set():
            (place / f"restless-{i % 7}").write_bytes(b"x")
            (place / f"restless-{i % 7}").rename(place / f"moved-{i % 5}")
            i += 1

    other = threading.Thread(target=unrest)
    other.start()
    try:
        for _ in range(10):
            with os.scandir(place) as entries:
                names = [entry.name for entry in entries]
            assert len(names) == len(set(names))
            assert steady <= set(names)
    finally:
        stop.set()
        other.join()
    command = "ls -la | wc -l; find . -name 'steady-*' | wc -l"
    told = subprocess.run(["sh", "-c", command], cwd=place, capture_output=True, check=True)
    assert told.stdout.split()[1] == b"400"
    assert_mirrored(source, far)


def test_mode_and_owner_belong_to_who_made_the_file(source: Source) -> None:
    path = source.mountpoint / "file"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o640))
    os.chown(path, 1234, 5678)
    until((source.image / "file").exists)
    found = path.stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 1234, 5678)


def test_killed_in_the_middle_of_renames_names_and_bytes_are_right_on_both_sides(
    tmp_path: Path,
) -> None:
    """Each file holds a count that only rises, as do the names that are given in turn."""
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", None, "images") as source:
        far.start()
        source.init(to=[far.url()])
        place = source.mountpoint
        synced = -1
        for _ in range(2):
            source.mount()
            fence = threading.Event()
            done = churn(place, synced + 1, fence)
            fence.wait(60)
            source.kill()
            synced = done()
            source.mount()
            check_churn(place, synced)
            assert_mirrored(source, far)
            synced = int((place / "current").read_bytes() or b"-1")
            source.kill()


def churn(place: Path, start: int, fence: threading.Event) -> Callable[[], int]:
    """Publish rising counts by write, fsync, rename until the mount dies.

    Returns what waits for that end and gives the last count whose name was made durable.
    """
    synced = [start - 1]

    def work() -> None:
        count = start
        try:
            while True:
                with opened(place / f"part{count % 3}", os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
                    os.write(fd, str(count).encode())
                    os.fsync(fd)
                (place / f"part{count % 3}").rename(place / "current")
                if count % 5 == 0:
                    directory = os.open(place, os.O_RDONLY)
                    os.fsync(directory)
                    os.close(directory)
                    synced[0] = count
                if count >= start + 40:
                    fence.set()
                count += 1
        except OSError:
            fence.set()

    thread = threading.Thread(target=work)
    thread.start()

    def join() -> int:
        thread.join()
        return synced[0]

    return join


def check_churn(place: Path, synced: int) -> None:
    """The newest name that was made durable is there, or a newer one, and never an empty file."""
    count = int((place / "current").read_bytes())
    assert count >= synced
    for name, data in held(place).items():
        assert name == "current" or name.startswith("part")
        assert not data or int(data) >= count - 3


def test_a_directory_group_takes_in_what_lies_there(tmp_path: Path) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", None, "images") as source:
        for name in ("b", "a", "c"):
            (source.image / name).write_bytes(name.encode() * MIB)
        far.start()
        source.init(to=[far.url()])
        source.mount()
        assert set(held(source.mountpoint)) == {"a", "b", "c"}
        (source.mountpoint / "b").unlink()
        assert_mirrored(source, far)
        assert source.umount() == 0
        source.mount()
        assert set(held(source.mountpoint)) == {"a", "c"}
