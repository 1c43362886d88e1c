"""One image as a volume: what reads, writes, sizes and holes do, here and in the mirror."""

import contextlib
import errno
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.journal.records import RecordType
from aimfuse.units import BLOCK_BYTES, KIB, MIB
from tests.e2e.host import QUICK, FarHost, MountFailed, Source, until
from tests.fuse import calls
from tests.fuse.calls import PLAIN, PUNCH, ZERO_RANGE, fallocate, opened

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

SIZE = 8 * MIB
SIZE_MAX = 32 * MIB
KEEP_RECORDS = replace(QUICK, checkpoint_interval_s=3600.0, file_age_s=3600.0)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarHost]:
    with FarHost(tmp_path_factory.mktemp("far") / "far") as host:
        host.start()
        yield host


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory, far: FarHost) -> Iterator[Source]:
    """A mounted image of a size that stays; tests share it and leave bytes behind."""
    with Source(tmp_path_factory.mktemp("fixed") / "near", SIZE) as source:
        source.init(to=[far.url("fixed")])
        source.mount()
        yield source


@pytest.fixture(scope="module")
def growable(tmp_path_factory: pytest.TempPathFactory, far: FarHost) -> Iterator[Source]:
    """A mounted image that may grow to SIZE_MAX; tests share it and leave it at any size."""
    with Source(tmp_path_factory.mktemp("growable") / "near", SIZE) as source:
        source.init(to=[far.url("growable")], journal=replace(QUICK, size_bytes_max=SIZE_MAX))
        source.mount()
        yield source


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A mounted image whose spool keeps all records."""
    with Source(tmp_path_factory.mktemp("recorded") / "near", SIZE) as source:
        source.init(journal=KEEP_RECORDS)
        source.mount()
        yield source


def new_records(source: Source, before: int) -> list[tuple[RecordType, int, int]]:
    """Return type, offset and length of all records behind number *before*, but no flushes."""
    source.call("roll")
    return [
        (record.type, record.offset, record.length)
        for record in source.records()
        if record.seq > before and record.type is not RecordType.FLUSH
    ]


def accepted(source: Source) -> int:
    return int(source.status()["accepted_seq"])


def refused(path: Path, offset: int, data: bytes) -> int:
    """Return the errno with which a write ends."""
    with opened(path) as fd, pytest.raises(OSError, match=r"\[Errno") as caught:
        os.pwrite(fd, data, offset)
    return caught.value.errno or 0


def assert_mirrored(source: Source, far: FarHost, store: str) -> None:
    source.wait_mirrored(far, store)
    source.wait_applied()
    held = source.volume.read_bytes()
    assert source.image.read_bytes() == held
    assert far.mirror(store=store).read_bytes() == held


@pytest.mark.parametrize(
    ("offset", "length"),
    [(1, 1), (4095, 2), (4097, 4095), (65535, 131073), (MIB - 1, MIB + 2), (SIZE - 3, 3)],
)
def test_what_was_written_is_read_back_at_odd_places(
    fixed: Source, offset: int, length: int
) -> None:
    data = os.urandom(length)
    with opened(fixed.volume) as fd:
        assert os.pwrite(fd, data, offset) == length
        assert os.pread(fd, length, offset) == data
    assert calls.read_direct(fixed.volume, offset, length) == data


def test_what_was_never_written_reads_as_zeros(growable: Source) -> None:
    os.truncate(growable.volume, 0)
    os.truncate(growable.volume, SIZE)
    with opened(growable.volume) as fd:
        os.pwrite(fd, b"x", 5 * MIB)
        assert os.pread(fd, SIZE, 0) == bytes(5 * MIB) + b"x" + bytes(3 * MIB - 1)


def test_a_shell_redirection_empties_the_volume_and_its_mirror(
    growable: Source, far: FarHost
) -> None:
    growable.volume.write_bytes(os.urandom(3 * MIB))
    subprocess.run([": > v.img"], shell=True, check=True, cwd=growable.mountpoint)  # noqa: S602
    assert growable.volume.stat().st_size == 0
    assert_mirrored(growable, far, "growable")
    with opened(growable.volume) as fd:
        os.pwrite(fd, b"y", MIB)
    assert growable.volume.read_bytes() == bytes(MIB) + b"y"
    assert_mirrored(growable, far, "growable")


@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE, 1), (SIZE + 5 * MIB, 4096), (2**44, 1), (2**62, 1), (2**63 - 2, 1)],
)
def test_a_write_beyond_a_fixed_size_is_refused_and_leaves_nothing(
    fixed: Source, offset: int, length: int
) -> None:
    before = accepted(fixed)
    assert refused(fixed.volume, offset, bytes([1]) * length) == errno.EFBIG
    assert fixed.volume.stat().st_size == SIZE
    assert accepted(fixed) == before


def test_a_write_across_the_end_of_a_fixed_size_keeps_nothing_or_the_part_before(
    fixed: Source,
) -> None:
    """The kernel may send the two pages as one request, or the first one alone."""
    with opened(fixed.volume) as fd:
        before, written = os.pread(fd, 1, SIZE - 1), 0
        with contextlib.suppress(OSError):
            written = os.pwrite(fd, b"xy", SIZE - 1)
        assert written in {0, 1}
        assert os.pread(fd, 2, SIZE - 1) == (b"x" if written else before)
    assert refused(fixed.volume, SIZE, b"y") == errno.EFBIG
    assert fixed.volume.stat().st_size == SIZE


def test_a_write_across_the_end_of_a_fixed_size_by_many_pages_keeps_the_part_before(
    fixed: Source,
) -> None:
    data = os.urandom(2 * MIB)
    with opened(fixed.volume) as fd:
        written = os.pwrite(fd, data, SIZE - MIB)
        assert written in {0, MIB}
        assert os.pread(fd, written, SIZE - MIB) == data[:written]
    assert fixed.volume.stat().st_size == SIZE


def test_a_fixed_size_cannot_be_exceeded_by_truncate_or_by_zeros(fixed: Source) -> None:
    with pytest.raises(OSError, match="too large"):
        os.truncate(fixed.volume, SIZE + 1)
    with opened(fixed.volume) as fd:
        assert fallocate(fd, ZERO_RANGE, SIZE - 4096, 8192) == errno.EFBIG
    assert fixed.volume.stat().st_size == SIZE


def test_a_read_far_beyond_the_end_finds_nothing(fixed: Source) -> None:
    with opened(fixed.volume) as fd:
        for offset in (SIZE, 2**44, 2**62, 2**63 - 4097):
            assert os.pread(fd, 4096, offset) == b""


def test_a_growable_volume_grows_to_its_limit_and_its_mirror_with_it(
    growable: Source, far: FarHost
) -> None:
    with opened(growable.volume) as fd:
        os.pwrite(fd, b"end", SIZE_MAX - 3)
    assert growable.volume.stat().st_size == SIZE_MAX
    assert refused(growable.volume, SIZE_MAX, b"x") == errno.EFBIG
    assert_mirrored(growable, far, "growable")
    os.truncate(growable.volume, SIZE)
    assert_mirrored(growable, far, "growable")


def test_what_truncate_cut_off_does_not_come_back(growable: Source, far: FarHost) -> None:
    growable.volume.write_bytes(b"\xaa" * MIB)
    os.truncate(growable.volume, 1000)
    os.truncate(growable.volume, MIB)
    assert growable.volume.read_bytes() == b"\xaa" * 1000 + bytes(MIB - 1000)
    assert_mirrored(growable, far, "growable")


def test_a_request_of_one_mebibyte_is_one_record(recorded: Source) -> None:
    before = accepted(recorded)
    data = os.urandom(MIB)
    assert calls.write_direct(recorded.volume, 2 * MIB, data) == MIB
    assert new_records(recorded, before) == [(RecordType.WRITE, 2 * MIB, MIB)]
    (payload,) = (
        file.payload(record)
        for file in recorded.files()
        for record in file.records()
        if record.seq > before and record.type is RecordType.WRITE
    )
    assert payload == data


def test_a_buffered_write_is_recorded_whole_and_in_order(recorded: Source) -> None:
    before = accepted(recorded)
    with opened(recorded.volume) as fd:
        os.pwrite(fd, os.urandom(3 * MIB), 4096)
    found = new_records(recorded, before)
    assert found[0][1] == 4096
    assert [offset + length for _, offset, length in found[:-1]] == [at for _, at, _ in found[1:]]
    assert sum(length for _, _, length in found) == 3 * MIB
    assert len(found) <= 4


def test_a_punched_range_is_one_record_without_payload(recorded: Source) -> None:
    with opened(recorded.volume) as fd:
        os.pwrite(fd, os.urandom(MIB), 0)
        before = accepted(recorded)
        assert fallocate(fd, PUNCH, 4096, 512 * KIB) == 0
        assert os.pread(fd, 512 * KIB, 4096) == bytes(512 * KIB)
    assert new_records(recorded, before) == [(RecordType.ZERO, 4096, 512 * KIB)]


def test_preallocation_is_refused_and_not_pretended(recorded: Source) -> None:
    before = accepted(recorded)
    with opened(recorded.volume) as fd:
        for mode in (PLAIN, 1, 0x08, 0x20, 0x40):
            assert fallocate(fd, mode, 0, 4096) == errno.EOPNOTSUPP
    assert accepted(recorded) == before


def test_written_zeros_become_holes_in_image_and_mirror(fixed: Source, far: FarHost) -> None:
    with opened(fixed.volume) as fd:
        os.pwrite(fd, os.urandom(4 * MIB), 0)
    assert_mirrored(fixed, far, "fixed")
    full = fixed.image.stat().st_blocks
    for at in (MIB, 2 * MIB):
        calls.write_direct(fixed.volume, at, bytes(MIB))
    assert_mirrored(fixed, far, "fixed")
    assert fixed.image.stat().st_blocks <= full - 2 * MIB // 512 + 64
    assert far.mirror(store="fixed").stat().st_blocks <= full - 2 * MIB // 512 + 64
    calls.drop_cache(fixed.volume)
    until(lambda: fixed.volume.stat().st_blocks == fixed.image.stat().st_blocks)


def test_discarded_space_is_free_in_image_and_mirror(fixed: Source, far: FarHost) -> None:
    with opened(fixed.volume) as fd:
        os.pwrite(fd, os.urandom(SIZE), 0)
        assert fallocate(fd, PUNCH, 0, SIZE) == 0
    assert_mirrored(fixed, far, "fixed")
    assert fixed.image.stat().st_blocks <= 64
    assert far.mirror(store="fixed").stat().st_blocks <= 64


def test_two_mappings_of_a_volume_see_each_other_and_the_file(fixed: Source, far: FarHost) -> None:
    with (
        opened(fixed.volume) as one,
        opened(fixed.volume) as two,
        mmap.mmap(one, MIB) as left,
        mmap.mmap(two, MIB) as right,
    ):
        left[5000:5004] = b"left"
        assert right[5000:5004] == b"left"
        assert os.pread(two, 4, 5000) == b"left"
        os.pwrite(two, b"file", 9000)
        assert left[9000:9004] == b"file"
        left.flush()
    assert_mirrored(fixed, far, "fixed")


def test_a_direct_write_is_seen_through_the_page_cache_and_the_other_way_round(
    fixed: Source,
) -> None:
    with opened(fixed.volume) as fd:
        os.pwrite(fd, b"a" * 8192, 0)
        assert os.pread(fd, 8192, 0) == b"a" * 8192
        calls.write_direct(fixed.volume, 4096, b"b" * 4096)
        assert os.pread(fd, 8192, 0) == b"a" * 4096 + b"b" * 4096
        os.pwrite(fd, b"c", 4096)
    assert calls.read_direct(fixed.volume, 4096, 4096) == b"c" + b"b" * 4095


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["O_SYNC", "O_DSYNC"])
def test_a_synchronous_write_is_durable_when_it_returns(fixed: Source, flag: int) -> None:
    data = os.urandom(10000)
    with opened(fixed.volume, os.O_WRONLY | flag) as fd:
        os.pwrite(fd, data, 12345)
        status = fixed.status()
    assert status["durable_seq"] == status["accepted_seq"]
    with opened(fixed.volume, os.O_RDONLY) as fd:
        assert os.pread(fd, 10000, 12345) == data


WRITER = """
import mmap, os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 65536)
for i in range(100):
    page[:] = bytes([i + 1]) * 65536
    assert os.pwrite(fd, page, i * 65536) == 65536
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_signals_in_the_middle_of_writes_leave_one_whole_record_each(recorded: Source) -> None:
    before = accepted(recorded)
    subprocess.run([sys.executable, "-c", WRITER, str(recorded.volume)], check=True)
    expected = [(RecordType.WRITE, i * 65536, 65536) for i in range(100)]
    assert new_records(recorded, before) == expected


def test_a_writer_killed_in_the_middle_leaves_whole_records_only(recorded: Source) -> None:
    before = accepted(recorded)
    endless = WRITER.replace("range(100)", "__import__('itertools').cycle(range(100))")
    with subprocess.Popen([sys.executable, "-c", endless, str(recorded.volume)]) as writer:
        until(lambda: accepted(recorded) > before + 20)
        writer.kill()
    found = new_records(recorded, before)
    assert {length for _, _, length in found} == {65536}
    last, at, _ = found[-1]
    assert last is RecordType.WRITE
    with opened(recorded.volume) as fd:
        assert os.pread(fd, 65536, at) == bytes([at // 65536 + 1]) * 65536


def test_an_image_group_has_one_name_and_keeps_it(fixed: Source) -> None:
    other = fixed.mountpoint / "other"
    for change in (
        lambda: other.write_bytes(b""),
        fixed.volume.unlink,
        lambda: fixed.volume.rename(other),
        other.mkdir,
        lambda: other.symlink_to("v.img"),
        lambda: other.hardlink_to(fixed.volume),
        lambda: os.mkfifo(other),
    ):
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            change()
        assert caught.value.errno in {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}
    assert {entry.name for entry in fixed.mountpoint.iterdir()} == {".aimfuse", "v.img"}


def test_owner_mode_and_time_can_be_set(fixed: Source) -> None:
    fixed.volume.chmod(0o640)
    os.chown(fixed.volume, 12345, 54321)
    os.utime(fixed.volume, ns=(10**18, 10**18))
    found = fixed.volume.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (12345, 54321, 10**18)
    with opened(fixed.volume) as fd:
        os.pwrite(fd, b"x", 0)
    assert fixed.volume.stat().st_mtime_ns > 10**18
    os.chown(fixed.volume, os.getuid(), os.getgid())
    fixed.volume.chmod(0o600)


def test_extended_attributes_are_refused_as_unsupported(fixed: Source) -> None:
    for attempt in (
        lambda: os.getxattr(fixed.volume, "user.x"),
        lambda: os.setxattr(fixed.volume, "user.x", b"y"),
        lambda: os.removexattr(fixed.volume, "user.x"),
    ):
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            attempt()
        assert caught.value.errno == errno.EOPNOTSUPP


def test_a_volume_can_be_copied_by_the_usual_tools(fixed: Source, tmp_path: Path) -> None:
    with opened(fixed.volume) as fd:
        os.pwrite(fd, os.urandom(3 * MIB), 0)
    command = ["cp", "-a", "--sparse=always", str(fixed.volume), str(tmp_path / "copy")]
    subprocess.run(command, check=True)
    subprocess.run(["cmp", str(fixed.volume), str(tmp_path / "copy")], check=True)


def test_the_space_of_the_disk_below_is_shown(fixed: Source) -> None:
    above, below = os.statvfs(fixed.mountpoint), os.statvfs(fixed.image)
    assert above.f_bsize == BLOCK_BYTES
    assert above.f_namemax == 255
    total = below.f_blocks * below.f_frsize
    assert abs(above.f_blocks * above.f_frsize - total) < MIB
    assert subprocess.run(["df", str(fixed.volume)], check=True, capture_output=True).stdout


def test_holders_of_a_lock_exclude_each_other_across_processes(fixed: Source) -> None:
    with opened(fixed.volume) as fd:
        os.lockf(fd, os.F_TLOCK, 0)
        attempt = (
            "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX|fcntl.LOCK_NB)"
        )
        command = [sys.executable, "-c", attempt, str(fixed.volume)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "BlockingIOError" in done.stderr


@pytest.mark.usefixtures("require_root_loop")
def test_other_users_are_let_in_on_request_only_and_then_by_the_mode(tmp_path: Path) -> None:
    def read_as_nobody() -> str:
        for directory in (tmp_path, *tmp_path.parents[:-2]):
            directory.chmod(directory.stat().st_mode | 0o011)
        command = ["head", "-c", "3", str(source.volume)]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, user=65534, group=65534,
            extra_groups=[],
        )  # fmt: skip
        return done.stdout or done.stderr

    with Source(tmp_path / "near", SIZE) as source:
        source.init()
        source.image.write_bytes(b"abc" + bytes(SIZE - 3))
        with pytest.raises(MountFailed, match="changed"):
            source.mount()
        source.mount("--resync")
        source.volume.chmod(0o644)
        assert "Permission denied" in read_as_nobody()
        source.remount("--allow-other")
        source.volume.chmod(0o600)
        assert "Permission denied" in read_as_nobody()
        source.volume.chmod(0o644)
        assert read_as_nobody() == "abc"
