"""Real file systems on a loop device over the volume: here and in the mirror they are clean."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aimfuse.units import MIB
from tests.e2e.host import QUICK, FarHost, Source
from tests.e2e.programs import run

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.usefixtures("require_fuse", "require_root_loop"),
]


@dataclass(frozen=True)
class Kind:
    """A file system: how it is made, checked, and mounted beside its twin."""

    size: int
    make: tuple[str, ...]
    check: tuple[str, ...]
    options: str


KINDS = {
    "ext4": Kind(32 * MIB, ("mkfs.ext4", "-q"), ("fsck.ext4", "-f", "-n"), "discard"),
    "xfs": Kind(320 * MIB, ("mkfs.xfs", "-q"), ("xfs_repair", "-n"), "discard,nouuid"),
    "btrfs": Kind(
        128 * MIB, ("mkfs.btrfs", "-q"), ("btrfs", "check", "--readonly"), "discard=sync"
    ),
}


def work_on(place: Path) -> None:
    """Create, overwrite, rename, truncate and remove files of many sizes."""
    for i in range(60):
        directory = place / f"d{i % 4}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{i}").write_bytes(bytes([i]) * (i * 1733))
    (place / "big").write_bytes(b"big" * MIB)
    run("sync", "-f", place)
    for i in range(0, 60, 3):
        (place / f"d{i % 4}" / f"f{i}").unlink()
    for i in range(1, 60, 6):
        file = place / f"d{i % 4}" / f"f{i}"
        file.rename(file.with_name(f"renamed{i}"))
    with (place / "big").open("r+b") as big:
        big.truncate(MIB)
        big.seek(100_000)
        big.write(b"changed")
    (place / "link").symlink_to("big")
    (place / "hard").hardlink_to(place / "big")


def tree(place: Path) -> dict[str, object]:
    """Return names, modes and contents of everything below *place*."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        data = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(place))] = (path.lstat().st_mode, data)
    return found


def mounted_copy(source: Source, image: Path, options: str, tmp_path: Path) -> dict[str, object]:
    """Return the tree in a copy of *image*, so that mounting changes nothing."""
    copy = tmp_path / f"copy-{image.parent.name}"
    run("cp", "--sparse=always", image, copy)
    with source.file_system(source.attach(volume=str(copy)), "-o", options) as place:
        return tree(place)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_system_is_clean_and_the_same_on_both_sides(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    if shutil.which(kind.make[0]) is None:
        pytest.skip(f"{kind.make[0]} is not installed")
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", kind.size) as source:
        far.start()
        source.init(to=[far.url()])
        source.mount()
        device = source.attach()
        run(*kind.make, device)
        with source.file_system(device, "-o", kind.options) as place:
            work_on(place)
            run("fstrim", place)
            expected = tree(place)
        source.detach(device)
        source.wait_mirrored(far)
        assert source.umount() == 0
        run("cmp", source.image, far.mirror())
        run(*kind.check, source.image)
        run(*kind.check, far.mirror())
        assert mounted_copy(source, far.mirror(), kind.options, tmp_path) == expected
        assert far.mirror().stat().st_blocks <= kind.size // 512 // 2

        source.mount()
        device = source.attach()
        with source.file_system(device, "-o", kind.options) as place:
            assert tree(place) == expected
        source.detach(device)


def test_many_requests_at_once_through_a_loop_device_are_all_verified(tmp_path: Path) -> None:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", 16 * MIB) as source:
        far.start()
        source.init(to=[far.url()])
        source.mount()
        device = source.attach()
        run(
            "fio", "--name=verify", f"--filename={device}", "--rw=randrw", "--bsrange=512-64k",
            "--direct=1", "--ioengine=libaio", "--iodepth=16", "--size=16M", "--io_size=24M",
            "--verify=crc32c", "--verify_backlog=64", "--fsync=50", "--randseed=7",
            "--allow_file_create=0", f"--aux-path={tmp_path}",
        )  # fmt: skip
        source.detach(device)
        source.wait_mirrored(far)
        assert source.umount() == 0
        run("cmp", source.image, far.mirror())


def test_a_killed_driver_costs_a_file_system_no_synced_file(tmp_path: Path) -> None:
    kind = KINDS["ext4"]
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", kind.size) as source:
        far.start()
        source.init(to=[far.url()])
        source.mount()
        device = source.attach()
        run(*kind.make, device)
        place = source.root / "fs"
        place.mkdir()
        run("mount", device, place)
        try:
            (place / "synced").write_bytes(b"kept" * 10000)
            run("sync", "-f", place)
            (place / "unsynced").write_bytes(b"perhaps" * 10000)
            source.kill()
        finally:
            run("umount", place)
        source.detach(device)
        source.mount()
        device = source.attach()
        with source.file_system(device) as place:
            assert (place / "synced").read_bytes() == b"kept" * 10000
        source.detach(device)
        source.wait_mirrored(far)
        assert source.umount() == 0
        run("cmp", source.image, far.mirror())
        run(*kind.check, far.mirror())


def test_a_volume_grows_beneath_an_attached_loop_device(tmp_path: Path) -> None:
    kind, room = KINDS["ext4"], 48 * MIB
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", 16 * MIB) as source:
        far.start()
        source.init(to=[far.url()], journal=replace(QUICK, size_bytes_max=room))
        source.mount()
        device = source.attach()
        run(*kind.make, device)
        with source.file_system(device) as place:
            (place / "before").write_bytes(b"before" * 10_000)
            os.truncate(source.volume, room)
            assert int(run("blockdev", "--getsize64", device)) == 16 * MIB
            run("losetup", "--set-capacity", device)
            assert int(run("blockdev", "--getsize64", device)) == room
        run("fsck.ext4", "-f", "-p", device)
        run("resize2fs", device)  # While it is mounted this takes rights that containers lack.
        with source.file_system(device) as place:
            assert (place / "before").read_bytes() == b"before" * 10_000
            (place / "after").write_bytes(b"after" * 5 * MIB)  # More than there was before.
        source.detach(device)
        source.wait_mirrored(far)
        assert source.umount() == 0
        assert source.image.stat().st_size == room
        run("cmp", source.image, far.mirror())
        run(*kind.check, far.mirror())
