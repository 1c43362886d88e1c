"""A block device as the image: its size stays, its name stays, nobody else gets it meanwhile."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.units import MIB
from tests.e2e.host import FarHost, MountFailed, Source, aimfuse, until
from tests.e2e.loop_disk import LoopDisk
from tests.e2e.programs import run

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.usefixtures("require_fuse", "require_root_loop"),
]

SIZE = 24 * MIB


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with Source(tmp_path / "near", SIZE) as source:
        yield source


@pytest.fixture
def disk(tmp_path: Path, source: Source) -> Iterator[LoopDisk]:
    disk = LoopDisk(tmp_path, source.image, SIZE)
    yield disk
    source.close()
    disk.remove()


def mount(source: Source, *options: str) -> None:
    source.mount("--state", str(source.state_dir), *options)


def refusal(source: Source) -> MountFailed:
    with pytest.raises(MountFailed) as caught:
        mount(source)
    assert "Traceback" not in caught.value.said
    return caught.value


def write(path: Path | str, data: bytes, offset: int = 0) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def test_a_file_system_on_a_device_outlives_a_killed_driver_and_is_the_same_on_both_sides(
    tmp_path: Path, source: Source, disk: LoopDisk
) -> None:
    with FarHost(tmp_path / "far") as far:
        far.start()
        arguments = (source.image, "--state", source.state_dir, "--to", far.url())
        assert aimfuse("init", *arguments).returncode == 0
        mount(source)
        device = source.attach()
        run("mkfs.ext4", "-q", device)
        place = source.root / "fs"
        place.mkdir()
        run("mount", "-o", "discard", device, place)
        try:
            (place / "gone").write_bytes(os.urandom(8 * MIB))
            (place / "kept").write_bytes(b"kept" * 50_000)
            run("sync", "-f", place)
            source.wait_applied()
            held = disk.held_bytes()
            (place / "gone").unlink()
            run("fstrim", place)
            run("sync", "-f", place)
            # ext4 discards freed blocks some time after the commit that freed them.
            until(lambda: disk.held_bytes() < held - 6 * MIB, disk.held_bytes)
            source.wait_applied()
            (place / "later").write_bytes(b"later" * 50_000)
            run("sync", "-f", place)
            (place / "perhaps").write_bytes(b"perhaps" * 50_000)
            source.kill()
        finally:
            run("umount", place)
        source.detach(device)
        mount(source)
        device = source.attach()
        with source.file_system(device) as again:
            assert (again / "kept").read_bytes() == b"kept" * 50_000
            assert (again / "later").read_bytes() == b"later" * 50_000
        source.detach(device)
        source.wait_mirrored(far)
        assert source.umount() == 0
        run("cmp", disk.device, far.mirror())
        run("fsck.ext4", "-f", "-n", far.mirror())
        assert far.mirror().stat().st_blocks * 512 < held


@pytest.mark.usefixtures("disk")
def test_a_volume_on_a_device_keeps_its_size_and_goes_on(source: Source) -> None:
    source.init()
    mount(source)
    write(source.volume, b"before")
    for size in (0, MIB, SIZE - 1):
        with pytest.raises(PermissionError):
            os.truncate(source.volume, size)
    for size in (SIZE + 1, 2 * SIZE):
        with pytest.raises(OSError, match="File too large"):
            os.truncate(source.volume, size)
    with pytest.raises(OSError, match="File too large"):
        write(source.volume, b"too far", SIZE)
    with pytest.raises(PermissionError):  # Open for writing, but not with O_TRUNC.
        source.volume.write_bytes(b"x")
    os.truncate(source.volume, SIZE)
    write(source.volume, b"after", 6)
    assert source.status()["state"] == "active"
    source.kill()
    mount(source)
    assert source.volume.read_bytes()[:11] == b"beforeafter"
    assert source.volume.stat().st_size == SIZE
    assert source.umount() == 0


def test_a_device_that_something_else_uses_is_refused_and_ours_is_refused_to_others(
    tmp_path: Path, source: Source, disk: LoopDisk
) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    run("mkfs.ext4", "-q", disk.device)
    run("mount", disk.device, place)
    try:
        done = aimfuse("init", disk.device, "--state", source.state_dir)
        assert done.returncode == 3
        assert f"findmnt {disk.device}" in done.stderr
        assert not source.state_dir.exists()
    finally:
        run("umount", place)
    source.init()
    run("mount", "-o", "ro", disk.device, place)
    try:
        found = refusal(source)
        assert found.exit_code == 3
        assert "busy" in found.said
        assert "Unmount what lies on it" in found.said
    finally:
        run("umount", place)
    mount(source)
    with pytest.raises(AssertionError, match=r"already mounted|busy"):
        run("mount", disk.device, place)
    done = aimfuse("mount", disk.device, place, "--state", tmp_path / "other")
    assert done.returncode == 3, done.stderr
    assert source.umount() == 0


def test_a_device_that_was_changed_or_has_another_size_is_refused(
    source: Source, disk: LoopDisk
) -> None:
    source.init()
    mount(source)
    write(source.volume, b"first")
    assert source.umount() == 0
    write(disk.device, b"edited")
    found = refusal(source)
    assert (found.exit_code, "blocks changed" in found.said) == (11, True)
    write(disk.device, b"first\0")
    mount(source)
    write(source.volume, b"second")
    source.kill()
    for size in (SIZE // 2, 2 * SIZE):
        disk.resize(size)
        before = Path(disk.device).read_bytes()
        found = refusal(source)
        assert (found.exit_code, f"has {size} bytes" in found.said) == (11, True), found.said
        assert Path(disk.device).read_bytes() == before
    mount(source, "--resync")
    assert source.volume.stat().st_size == 2 * SIZE
    assert source.umount() == 0


@pytest.mark.usefixtures("disk")
def test_a_device_is_known_by_the_name_it_was_given_and_no_other_is_taken_for_it(
    tmp_path: Path, source: Source
) -> None:
    assert aimfuse("init", source.image, "--state", source.state_dir).returncode == 0
    mount(source)
    assert source.status()["image"] == str(source.image)
    write(source.volume, b"mine")
    assert source.umount() == 0
    (tmp_path / "second").mkdir()
    other = LoopDisk(tmp_path / "second", tmp_path / "other-name", SIZE)
    try:
        done = aimfuse("mount", other.name, source.mountpoint, "--state", source.state_dir)
        assert done.returncode == 2
        assert f"belongs to {source.image}" in done.stderr
    finally:
        other.remove()
    mount(source)
    assert source.volume.read_bytes()[:4] == b"mine"


@pytest.mark.parametrize("option", ["--size", "--size-max"])
def test_a_device_cannot_be_given_a_size(source: Source, disk: LoopDisk, option: str) -> None:
    done = aimfuse("init", disk.device, "--state", source.state_dir, option, "1GiB")
    assert done.returncode == 2
    assert f"Leave {option} out" in done.stderr
    assert not source.state_dir.exists()


def test_a_device_needs_no_space_beside_its_node(tmp_path: Path, source: Source) -> None:
    """The file system of /dev has room for a few megabytes on many machines."""
    dev = tmp_path / "dev"
    dev.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "none", dev)
    disk = LoopDisk(tmp_path, tmp_path / "link", SIZE)
    try:
        source.image.unlink()
        node = dev / "v.img"
        os.mknod(node, 0o60600, Path(disk.device).stat().st_rdev)
        source.image = node
        source.init()
        mount(source)
        for i in range(0, SIZE, MIB):
            write(source.volume, b"x" * MIB, i)
        assert source.status()["state"] == "active"
        assert source.umount() == 0
    finally:
        source.close()
        disk.remove()
        run("umount", dev)
