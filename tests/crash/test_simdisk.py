"""The simulated disk behaves like the real one until the power goes, and then like the worst."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimfuse.disk import Disk, publish
from tests.disks.cuts import (
    keep_all,
    keep_kinds,
    keep_none,
    keep_only,
    keep_random,
    lose_only,
    mixtures,
)
from tests.disks.faults import Crash, Fault
from tests.disks.machine import Mutation
from tests.disks.simdisk import SimDisk
from tests.disks.simfile import PAGE_BYTES

ROOT = Path("/d")
FILE = ROOT / "f"
NEW = os.O_RDWR | os.O_CREAT


def disk_with(data: bytes = b"") -> SimDisk:
    disk = SimDisk(ROOT)
    disk.plant(FILE, data)
    return disk


def failure(call: Callable[[], object]) -> int | None:
    """Return the errno of a call, None if it worked."""
    try:
        call()
    except OSError as exc:
        return exc.errno
    return None


# No crash: the same as the real disk, errors included.

offsets = st.integers(0, 3 * PAGE_BYTES)
lengths = st.integers(0, 2 * PAGE_BYTES)
names = st.sampled_from(["a", "b", "dir", "dir/a", "missing/a"])
flag_sets = st.sampled_from(
    [
        os.O_RDONLY,
        os.O_RDWR,
        os.O_WRONLY,
        NEW,
        NEW | os.O_EXCL,
        NEW | os.O_TRUNC,
        os.O_RDWR | os.O_TRUNC,
    ]
)
halves = st.tuples(st.integers(0, 255), lengths, lengths).map(
    lambda t: [bytes([t[0]]) * t[1], bytes([t[0] ^ 255]) * t[2]]
)
index = st.integers(0, 3)
one = st.just
contents = st.one_of(
    st.tuples(one("on_file"), index, one("pwrite"), halves, offsets),
    st.tuples(one("on_file"), index, one("truncate"), offsets),
    st.tuples(one("on_file"), index, one("punch"), offsets, lengths),
)
others = st.one_of(
    st.tuples(one("open"), names, flag_sets),
    st.tuples(one("on_file"), index, st.sampled_from(["close", "fdatasync"])),
    st.tuples(one("on_file"), index, one("pread"), lengths, offsets),
    st.tuples(one("on_names"), st.sampled_from(["rename", "link"]), names, names),
    st.tuples(one("on_names"), st.sampled_from(["unlink", "sync_dir"]), names),
    st.tuples(one("on_names"), one("mkdir"), st.sampled_from(["dir", "dir/x", "missing/x"])),
    st.tuples(one("look"), st.sampled_from(["listdir", "exists"]), names),
)


class Session:
    """Runs operations on one disk and remembers what each gave, error numbers included."""

    def __init__(self, disk: Disk, root: Path) -> None:
        self.disk = disk
        self.root = root
        self.fds = [disk.open("x", root / "a", NEW) for _ in range(2)]

    def run(self, name: str, *args: Any) -> object:  # noqa: ANN401 - what the called method takes
        try:
            return getattr(self, name)(*args)
        except OSError as exc:
            # A directory opened, named or removed as a file: only that it fails matters.
            vague = {errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EEXIST, errno.EINVAL}
            return "refused" if exc.errno in vague else f"errno {exc.errno}"

    def open(self, name: str, flags: int) -> None:
        if name != "dir":
            self.fds.append(self.disk.open("x", self.root / name, flags))

    def on_file(self, index: int, name: str, *args: Any) -> object:  # noqa: ANN401 - what the called method takes
        """Call a method on one of the open descriptors, if there is one."""
        if index >= len(self.fds):
            return None
        if name == "close":
            return self.disk.close(self.fds.pop(index))  # type: ignore[func-returns-value]
        if name == "pread":
            return self.disk.pread(self.fds[index], *args)
        return getattr(self.disk, name)("x", self.fds[index], *args)

    def on_names(self, name: str, *names: str) -> object:
        if name in {"rename", "link"} and "dir" in names:
            return None
        return getattr(self.disk, name)("x", *(self.root / each for each in names))

    def look(self, name: str, at: str) -> object:
        return getattr(self.disk, name)(self.root / at)

    def facts(self) -> list[object]:
        """Return what can be seen through every open descriptor."""
        found: list[object] = []
        for fd in self.fds:
            size = self.disk.size(fd)
            found.append(size)
            try:
                found.append(self.disk.pread(fd, size + 1, 0))
            except OSError as exc:
                found.append(exc.errno)
        return found


@settings(max_examples=300)
@given(
    st.one_of(
        st.lists(contents, min_size=2, max_size=8),
        st.lists(others, min_size=2, max_size=20),
        st.lists(st.one_of(contents, others), max_size=20),
    )
)
def test_without_a_crash_it_gives_what_the_real_disk_gives(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    real = Session(Disk(), tmp_path_factory.mktemp("real"))
    simulated = Session(SimDisk(ROOT), ROOT)
    try:
        for name, *args in steps:
            assert simulated.run(name, *args) == real.run(name, *args), (name, args)
            assert simulated.facts() == real.facts(), (name, args)
    finally:
        for fd in real.fds:
            real.disk.close(fd)


@given(st.lists(st.tuples(offsets, lengths, st.booleans()), max_size=6), offsets, offsets)
def test_data_ranges_are_in_order_and_hold_every_byte_that_is_not_zero(
    steps: list[tuple[int, int, bool]], start: int, end: int
) -> None:
    disk = disk_with()
    fd = disk.open("x", FILE, os.O_RDWR)
    for offset, length, is_write in steps:
        if is_write:
            disk.pwrite("x", fd, [b"x" * length], offset)
        elif length:
            disk.punch("x", fd, offset, length)
    ranges = list(disk.data_ranges(fd, start, end))
    flat = [edge for pair in ranges for edge in pair]
    assert flat == sorted(set(flat))
    assert all(start <= edge <= min(end, disk.size(fd)) for edge in flat)
    data = disk.contents(FILE)
    covered = {at for a, b in ranges for at in range(a, b)}
    assert all(data[at] == 0 or at in covered for at in range(start, min(end, len(data))))


# Power cuts.


def test_a_write_survives_a_power_cut_only_after_a_sync() -> None:
    disk = disk_with(b"old")
    fd = disk.open("x", FILE, os.O_RDWR)
    disk.pwrite("x", fd, [b"new"], 0)
    assert disk.power_cut(keep_none).contents(FILE) == b"old"
    assert disk.power_cut(keep_all).contents(FILE) == b"new"
    assert disk.durable_bytes(FILE) == b"old"
    disk.fdatasync("x", fd)
    assert disk.power_cut(keep_none).contents(FILE) == b"new"
    assert disk.durable_bytes(FILE) == b"new"


def test_any_version_of_a_page_since_its_last_sync_may_survive() -> None:
    disk = disk_with(b"0")
    fd = disk.open("x", FILE, os.O_RDWR)
    for digit in (b"1", b"2", b"3"):
        disk.pwrite("x", fd, [digit], 0)
    found = {disk.power_cut(choose).contents(FILE) for _, choose in mixtures(disk.units())}
    assert found == {b"0", b"1", b"2", b"3"}


def test_a_later_page_may_survive_without_an_earlier_one_and_without_the_size() -> None:
    disk = disk_with()
    fd = disk.open("x", FILE, os.O_RDWR)
    disk.pwrite("x", fd, [b"a" * PAGE_BYTES], 0)
    disk.pwrite("x", fd, [b"b" * PAGE_BYTES], PAGE_BYTES)
    zeros, second = bytes(PAGE_BYTES), b"b" * PAGE_BYTES
    found = {disk.power_cut(choose).contents(FILE) for _, choose in mixtures(disk.units())}
    assert {b"", zeros, zeros + second, zeros + zeros, b"a" * PAGE_BYTES} <= found
    assert disk.power_cut(keep_kinds("page")).contents(FILE) == b""


def test_a_torn_page_mixes_sectors_of_two_versions() -> None:
    disk = disk_with(b"o" * PAGE_BYTES)
    disk.torn_pages = True
    fd = disk.open("x", FILE, os.O_RDWR)
    disk.pwrite("x", fd, [b"n" * PAGE_BYTES], 0)
    assert [unit.kind for unit in disk.units()] == ["sector"] * 8
    assert disk.power_cut(keep_only(1)).contents(FILE) == b"o" * 512 + b"n" * 512 + b"o" * 3072


def test_a_name_survives_a_power_cut_only_after_a_sync_of_its_directory() -> None:
    disk = SimDisk(ROOT)
    fd = disk.open("x", FILE, NEW)
    disk.pwrite("x", fd, [b"data"], 0)
    disk.fdatasync("x", fd)
    assert not disk.power_cut(keep_none).exists(FILE)
    assert disk.power_cut(keep_kinds("name")).contents(FILE) == b"data"
    assert disk.durable_bytes(FILE) is None
    disk.sync_dir("x", ROOT)
    assert disk.power_cut(keep_none).contents(FILE) == b"data"


def test_changes_of_names_are_lost_one_by_one() -> None:
    disk = disk_with(b"old")
    part = ROOT / "f.part"
    os_fd = disk.open("x", part, NEW)
    disk.fdatasync("x", os_fd)
    disk.rename("x", part, FILE)
    created, renamed = 0, 1
    assert [unit.kind for unit in disk.units()] == ["name", "name"]
    assert disk.power_cut(keep_only(created)).listdir(ROOT) == ["f", "f.part"]
    assert disk.power_cut(keep_only(created)).contents(FILE) == b"old"
    assert disk.power_cut(keep_only(renamed)).listdir(ROOT) == ["f"]
    assert disk.power_cut(lose_only(created)).contents(FILE) == b""


def test_a_file_that_moves_between_directories_is_never_in_neither() -> None:
    other = Path("/e")
    disk = disk_with(b"data")
    disk.make_directories(other)
    disk.rename("x", FILE, other / "g")
    for _, choose in mixtures(disk.units()):
        after = disk.power_cut(choose)
        assert after.exists(FILE) or after.exists(other / "g")
    disk.sync_dir("x", ROOT)
    assert disk.power_cut(keep_none).listdir(other) == ["g"]


def test_bytes_cut_off_before_a_sync_do_not_come_back() -> None:
    disk = disk_with(b"x" * 5000)
    fd = disk.open("x", FILE, os.O_RDWR)
    disk.truncate("x", fd, 10)
    disk.fdatasync("x", fd)
    disk.truncate("x", fd, 5000)
    for _, choose in mixtures(disk.units()):
        assert disk.power_cut(choose).contents(FILE).rstrip(b"\0") == b"x" * 10


def test_a_killed_program_loses_its_descriptors_and_nothing_else() -> None:
    disk = disk_with(b"old")
    fd = disk.open("x", FILE, os.O_RDWR)
    disk.pwrite("x", fd, [b"new"], 0)
    after = disk.kill()
    assert after.contents(FILE) == b"new"
    assert after.open_paths == []
    assert failure(lambda: after.pread(fd, 1, 0)) == errno.EBADF
    assert after.power_cut(keep_none).contents(FILE) == b"old"


def test_cutting_one_run_twice_leaves_the_run_as_it_was() -> None:
    disk = disk_with(b"old")
    fd = disk.open("x", FILE, os.O_RDWR)
    disk.pwrite("x", fd, [b"new"], 0)
    cut = disk.power_cut(keep_all)
    again = cut.open("x", FILE, os.O_RDWR | os.O_TRUNC)
    cut.fdatasync("x", again)
    assert disk.contents(FILE) == b"new"
    assert disk.power_cut(keep_random(3)).contents(FILE) in {b"old", b"new"}


# Failures.


def test_after_a_failed_sync_the_next_one_succeeds_and_the_data_is_gone_all_the_same() -> None:
    disk = disk_with(b"old")
    fd, other = (disk.open("x", FILE, os.O_RDWR) for _ in range(2))
    disk.pwrite("x", fd, [b"new"], 0)
    disk.inject(Fault(errno.EIO, "sync"))
    assert failure(lambda: disk.fdatasync("sync", fd)) == errno.EIO
    assert failure(lambda: disk.fdatasync("sync", other)) == errno.EIO
    assert failure(lambda: disk.fdatasync("sync", fd)) is None
    assert failure(lambda: disk.fdatasync("sync", other)) is None
    assert disk.pread(fd, 3, 0) == b"new"
    assert disk.power_cut(keep_none).contents(FILE) == b"old"
    disk.drop_cache(fd)
    assert disk.pread(fd, 3, 0) == b"old"


def test_a_page_written_again_after_a_failed_sync_becomes_durable() -> None:
    disk = disk_with()
    fd = disk.open("x", FILE, os.O_RDWR)
    disk.inject(Fault(errno.EIO, "sync"))
    disk.pwrite("x", fd, [b"data"], 0)
    assert failure(lambda: disk.fdatasync("sync", fd)) == errno.EIO
    disk.pwrite("x", fd, [b"data"], 0)
    disk.fdatasync("sync", fd)
    assert disk.power_cut(keep_none).contents(FILE) == b"data"


def test_a_full_disk_takes_what_fits_and_says_so() -> None:
    disk = SimDisk(ROOT, capacity_bytes=2 * PAGE_BYTES)
    fd = disk.open("x", FILE, NEW)
    assert disk.free_bytes(ROOT) == 2 * PAGE_BYTES
    full = failure(lambda: disk.pwrite("x", fd, [b"x" * 3 * PAGE_BYTES], 100))
    assert full == errno.ENOSPC
    assert disk.size(fd) == 2 * PAGE_BYTES
    assert disk.free_bytes(ROOT) == 0
    disk.pwrite("x", fd, [b"y" * PAGE_BYTES], 0)  # Overwriting needs no room.
    disk.punch("x", fd, 0, PAGE_BYTES)
    assert disk.free_bytes(ROOT) == PAGE_BYTES


def test_a_fault_hits_by_label_by_place_and_as_often_as_told() -> None:
    disk = disk_with(b"old")
    fd = disk.open("x", FILE, os.O_RDWR)
    disk.inject(
        Fault(errno.ENOSPC, "w*", skip=1, short_bytes=2),
        Fault(errno.EIO, at=4),
        Fault(errno.EIO, "pread", times=2),
    )
    disk.pwrite("w1", fd, [b"abc"], 0)
    assert failure(lambda: disk.pwrite("w2", fd, [b"xyz"], 0)) == errno.ENOSPC
    assert disk.contents(FILE) == b"xyc"
    disk.fdatasync("s", fd)
    assert failure(lambda: disk.sync_dir("d", ROOT)) == errno.EIO
    assert [failure(lambda: disk.pread(fd, 1, 0)) for _ in range(3)] == [errno.EIO] * 2 + [None]
    assert disk.labels == ["x", "w1", "w2", "s", "d"]


def test_a_dead_program_does_nothing_more() -> None:
    disk = disk_with(b"old")
    fd = disk.open("x", FILE, os.O_RDWR)
    disk.stop_at(2, after_bytes=1)
    disk.fdatasync("one", fd)
    with pytest.raises(Crash, match="two"):
        disk.pwrite("two", fd, [b"new"], 0)
    with pytest.raises(Crash):
        disk.unlink("three", FILE)
    with pytest.raises(Crash):
        disk.pread(fd, 1, 0)
    disk.close(fd)
    assert disk.kill().contents(FILE) == b"nld"
    assert disk.labels == ["x", "one"]


def test_the_hook_sees_every_change_before_it_happens() -> None:
    disk = disk_with(b"old")
    seen: list[tuple[str, int, int, bytes | None]] = []

    def note(change: Mutation) -> None:
        assert disk.contents(change.path) == b"old"
        seen.append((change.label, change.offset, change.length, change.data))
        raise Crash

    disk.on_write = note
    fd = disk.open("x", FILE, os.O_RDWR)
    with pytest.raises(Crash):
        disk.pwrite("w", fd, [b"a", b"b"], 7)
    with pytest.raises(Crash):
        disk.truncate("t", fd, 1)
    with pytest.raises(Crash):
        disk.punch("p", fd, 0, 2)
    assert seen == [("w", 7, 2, b"ab"), ("t", 1, 0, None), ("p", 0, 2, None)]


# Protocols: the explorer finds what is wrong with the naive ones, and nothing wrong with ours.


def overwrite(disk: Disk) -> None:
    fd = disk.open("open", FILE, os.O_RDWR | os.O_TRUNC)
    disk.pwrite("write", fd, [b"new"], 0)
    disk.fdatasync("sync", fd)


def replace_unsynced(disk: Disk) -> None:
    part = ROOT / "f.part"
    fd = disk.open("open", part, NEW | os.O_TRUNC)
    disk.pwrite("write", fd, [b"new"], 0)
    disk.rename("rename", part, FILE)
    disk.sync_dir("sync_dir", ROOT)


def replace_without_directory(disk: Disk) -> None:
    part = ROOT / "f.part"
    fd = disk.open("open", part, NEW | os.O_TRUNC)
    disk.pwrite("write", fd, [b"new"], 0)
    disk.fdatasync("sync", fd)
    disk.rename("rename", part, FILE)


def replace_well(disk: Disk) -> None:
    publish(disk, "publish", FILE, b"new")


def outcomes(protocol: Callable[[Disk], None]) -> tuple[set[bytes], set[bytes]]:
    """Return what can be found after a power cut during the protocol, and after its return."""
    rehearsal = disk_with(b"old")
    protocol(rehearsal)
    during: set[bytes] = set()
    after: set[bytes] = set()
    for stop in range(len(rehearsal.labels) + 1):
        disk = disk_with(b"old")
        disk.stop_at(stop)
        try:
            protocol(disk)
            found = after
        except Crash:
            found = during
        for _, choose in mixtures(disk.units()):
            found.add(disk.power_cut(choose).contents(FILE))
    return during, after


@pytest.mark.parametrize(
    ("protocol", "mixed", "forgotten"),
    [
        (overwrite, True, False),
        (replace_unsynced, True, True),
        (replace_without_directory, False, True),
        (replace_well, False, False),
    ],
)
def test_the_explorer_convicts_each_naive_way_to_replace_a_file(
    protocol: Callable[[Disk], None], mixed: bool, forgotten: bool
) -> None:
    during, after = outcomes(protocol)
    assert bool((during | after) - {b"old", b"new"}) == mixed
    assert (after != {b"new"}) == forgotten


@pytest.mark.parametrize("data_first", [True, False])
def test_the_explorer_convicts_a_position_that_is_durable_before_its_data(
    data_first: bool,
) -> None:
    data, position = ROOT / "data", ROOT / "position"
    wrong = False
    for stop in range(5):
        disk = SimDisk(ROOT)
        disk.plant(data, b"0")
        disk.plant(position, b"0")
        disk.stop_at(stop + 2)
        first, second = (disk.open("x", path, os.O_RDWR) for path in (data, position))
        if not data_first:
            first, second = second, first
        try:
            for fd in (first, second):
                disk.pwrite("write", fd, [b"1"], 0)
                disk.fdatasync("sync", fd)
        except Crash:
            pass
        for _, choose in mixtures(disk.units()):
            cut = disk.power_cut(choose)
            wrong |= cut.contents(position) > cut.contents(data)
    assert wrong != data_first
