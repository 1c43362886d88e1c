"""What goes wrong before, during and between mounts: refusals, halts and the ways out."""

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.errors import BusyError
from aimfuse.units import MIB
from tests.e2e.host import QUICK, FarHost, MountFailed, Source, aimfuse, is_mountpoint, until

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

BROKEN = Path(__file__).with_name("broken_driver.py")


def write(path: Path, data: bytes, offset: int = 0, *, sync: bool = True) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, data, offset)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def refusal(source: Source, *options: str, mountpoint: Path | None = None) -> MountFailed:
    """Return how a mount fails, and make sure that it leaves nothing mounted."""
    with pytest.raises(MountFailed) as caught:
        source.mount(*options, mountpoint=mountpoint)
    assert "Traceback" not in caught.value.said
    return caught.value


# Before a mount.


def test_an_image_that_is_missing_is_refused_with_the_command_to_make_one(tmp_path: Path) -> None:
    with Source(tmp_path / "near") as source:
        source.image.unlink()
        found = refusal(source)
        assert found.exit_code == 2
        assert "aimfuse init" in found.said
        assert not source.state_dir.exists()


def test_an_image_that_vanished_after_init_is_refused(tmp_path: Path) -> None:
    with Source(tmp_path / "near") as source:
        source.init()
        source.image.rename(source.root / "elsewhere")
        found = refusal(source)
        assert found.exit_code == 2
        assert "put it back" in found.said
        assert not source.image.exists()


def test_a_mount_initialises_a_new_image_by_itself(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.mount()
        write(source.volume, b"first")
        source.remount()
        assert source.volume.read_bytes()[:5] == b"first"


def test_a_second_init_changes_nothing(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        done = aimfuse("init", source.image)
        assert done.returncode == 2
        assert "initialised already" in done.stderr


def test_a_second_mount_is_refused_and_names_the_first_one_s_process(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        source.mount()
        assert source.process is not None
        other = source.root / "other"
        other.mkdir()
        for place in (other, source.mountpoint):
            done = aimfuse("mount", source.image, place)
            assert done.returncode == 3
            assert str(source.process.pid) in done.stderr
        assert not is_mountpoint(other)
        write(source.volume, b"goes on")


def test_a_mountpoint_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        missing = refusal(source, mountpoint=source.root / "missing")
        assert missing.exit_code == 2
        assert "mkdir" in missing.said
        assert refusal(source, mountpoint=source.image).exit_code == 2


def test_a_mountpoint_above_the_image_is_refused(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        found = refusal(source, mountpoint=source.root)
        assert found.exit_code == 2
        assert "below the mountpoint" in found.said
        link = tmp_path / "link"
        link.symlink_to(source.root)
        assert refusal(source, mountpoint=link).exit_code == 2


def test_a_mountpoint_with_something_in_it_is_refused(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        (source.mountpoint / "file").write_bytes(b"")
        found = refusal(source)
        assert found.exit_code == 2
        assert "empty" in found.said


def test_paths_with_blanks_commas_and_backslashes_work(tmp_path: Path) -> None:
    with Source(tmp_path / "ne ar, with\\odd ✓", MIB, name="v, 1 ✓.img") as source:
        source.init()
        source.mount()
        write(source.volume, b"odd")
        assert source.status()["image"] == str(source.image)
        source.kill()
        source.mount()
        assert source.volume.read_bytes()[:3] == b"odd"
        assert source.umount() == 0


def test_a_state_directory_elsewhere_works(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        state = tmp_path / ("long" * 30) / "state"
        state.parent.mkdir()
        source.state_dir = state
        source.mount("--state", str(state))
        write(source.volume, b"elsewhere")
        assert source.status()["image"] == str(source.image)
        assert source.umount() == 0
        assert source.image.read_bytes()[:9] == b"elsewhere"


# Between two mounts.


def edit(image: Path) -> None:
    write(image, b"two")


def grow(image: Path) -> None:
    os.truncate(image, 2 * MIB)


def replace_by_a_copy(image: Path) -> None:
    copy = image.with_name("copy")
    shutil.copy2(image, copy)
    copy.rename(image)


def put_back_an_older_one(image: Path) -> None:
    image.with_name("older").rename(image)


def test_an_image_changed_in_between_is_refused_until_resync_takes_it(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init(journal=replace(QUICK, size_bytes_max=4 * MIB))
        shutil.copy2(source.image, source.root / "older")
        source.mount()
        for change in (edit, grow, replace_by_a_copy, put_back_an_older_one):
            write(source.volume, b"one")
            assert source.umount() == 0
            change(source.image)
            expected = source.image.read_bytes()
            found = refusal(source)
            assert found.exit_code == 11, change
            assert "--resync" in found.said
            assert source.image.read_bytes() == expected
            source.mount("--resync")
            assert source.volume.read_bytes() == expected
        write(source.volume, b"three")
        source.remount()
        assert source.volume.read_bytes()[:5] == b"three"


def test_an_image_whose_time_alone_was_touched_is_refused_too(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        source.mount()
        assert source.umount() == 0
        os.utime(source.image)
        assert refusal(source).exit_code == 11


def test_a_missing_spool_is_refused_and_never_begun_anew(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        source.mount()
        write(source.volume, b"in the spool")
        source.kill()
        aside = source.spool.rename(source.state_dir / "aside")
        found = refusal(source)
        assert found.exit_code == 12
        assert "spool" in found.said
        assert not source.spool.exists()
        aside.rename(source.spool)
        source.mount()
        assert source.volume.read_bytes()[:12] == b"in the spool"


def test_a_dead_mount_is_cleaned_up_by_the_next_one(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        for i in range(2):
            source.mount()
            write(source.volume, bytes([i + 1]) * 1000, i * 1000)
            source.kill()
            assert is_mountpoint(source.mountpoint)
        source.mount()
        assert source.volume.read_bytes()[:2000] == b"\1" * 1000 + b"\2" * 1000
        assert source.umount() == 0
        assert not is_mountpoint(source.mountpoint)


def test_a_dead_mount_of_another_image_is_left_alone(tmp_path: Path) -> None:
    with Source(tmp_path / "one", MIB) as one, Source(tmp_path / "two", MIB) as two:
        one.init()
        two.init()
        one.mount()
        one.kill()
        found = refusal(two, mountpoint=one.mountpoint)
        assert found.exit_code == 3
        assert str(one.image) in found.said
        assert is_mountpoint(one.mountpoint)


@pytest.mark.usefixtures("require_root_loop")
def test_a_group_on_a_memory_file_system_works_and_warns(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", memory], check=True)
    try:
        with Source(memory / "near", MIB) as source:
            source.init()
            source.mount()
            write(source.volume, b"kept in memory")
            source.kill()
            source.mount()
            assert source.volume.read_bytes()[:14] == b"kept in memory"
            assert source.umount() == 0
            said = source.log.read_text()
            assert all(f"{path} is in memory" in said for path in (source.image, source.spool))
        assert f"{memory} is in memory" in aimfuse("replay", str(memory), "--once").stderr
    finally:
        subprocess.run(["umount", memory], check=True)


# During a mount.


@pytest.mark.usefixtures("require_root_loop")
def test_a_full_spool_holds_writers_up_and_nobody_else_until_there_is_room(
    tmp_path: Path,
) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", memory], check=True)
    try:
        with Source(tmp_path / "near", 8 * MIB) as source:
            ballast = memory / "ballast"
            source.init(journal=replace(QUICK, spool=memory / "spool", file_bytes=MIB))
            source.mount()
            write(source.volume, b"before")
            ballast.write_bytes(bytes(34 * MIB))
            until(lambda: source.status()["state"] == "spool-full", source.status)
            blocked = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR), b'during', 0)"
            with subprocess.Popen([sys.executable, "-c", blocked, source.volume]) as writer:
                command = f"stat {source.volume}; ls -la {source.mountpoint}; df {source.volume}"
                subprocess.run(["sh", "-ec", command], check=True, timeout=60, capture_output=True)
                with pytest.raises(subprocess.TimeoutExpired):
                    writer.wait(0.5)
                assert source.status()["accepted_seq"] == source.status()["durable_seq"]
                ballast.unlink()
                assert writer.wait(60) == 0
            assert source.volume.read_bytes()[:6] == b"during"
            until(lambda: source.status()["state"] == "active", source.status)
            assert source.umount() == 0
    finally:
        subprocess.run(["umount", memory], check=True)


def break_on_demand(source: Source, fault: str) -> Path:
    armed = source.root / "ARMED"
    source.mount(command=(sys.executable, str(BROKEN), fault, str(armed)))
    write(source.volume, b"before")
    return armed


@pytest.mark.parametrize("fault", ["memory", "flush"])
def test_a_bug_costs_the_request_and_further_writes_but_not_the_mount(
    tmp_path: Path, fault: str
) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        armed = break_on_demand(source, fault)
        armed.touch()
        with pytest.raises(OSError, match="Input/output error"):
            write(source.volume, b"during")
        armed.unlink()
        status = source.status()
        assert status["state"] == "halted"
        assert "bug" in status["reason"]
        with pytest.raises(OSError, match="Input/output error"):
            write(source.volume, b"after")
        with source.volume.open("rb") as file:
            assert file.read(6) in {b"before", b"during"}
        assert ".aimfuse" in {entry.name for entry in source.mountpoint.iterdir()}
        assert "bug" in source.log.read_text()
        assert source.umount() == 13
        source.mount()
        assert source.volume.read_bytes()[:6] in {b"before", b"during"}
        write(source.volume, b"again")


def test_a_bug_in_a_read_is_an_error_for_the_reader(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        armed = break_on_demand(source, "read")
        armed.touch()
        with source.volume.open("rb") as file, pytest.raises(OSError, match="Input/output"):
            os.preadv(file.fileno(), [bytearray(4096)], 512 * 1024)
        armed.unlink()
        assert source.volume.read_bytes()[:6] == b"before"
        assert source.status()["mounted"] is True


def test_an_error_of_the_journal_s_disk_is_told_to_the_writer_and_nothing_is_half_done(
    tmp_path: Path,
) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        armed = break_on_demand(source, "write-eio")
        before = source.status()["accepted_seq"]
        armed.touch()
        with pytest.raises(OSError, match="Input/output error"):
            write(source.volume, b"during")
        armed.unlink()
        assert source.status()["accepted_seq"] == before
        write(source.volume, b"after")


@pytest.mark.parametrize("fault", ["sync", "commit-bug", "apply"])
def test_a_failing_disk_halts_the_volume_and_the_next_mount_recovers(
    tmp_path: Path, fault: str
) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", MIB) as source:
        far.start()
        source.init(to=[far.url()])
        armed = break_on_demand(source, fault)
        source.wait_mirrored(far)
        armed.touch()
        with contextlib.suppress(OSError):  # Told to this writer or to the next.
            write(source.volume, b"during", MIB - 6)
        until(lambda: source.status()["state"] == "halted", source.status)
        with pytest.raises(OSError, match="Input/output error"):
            write(source.volume, b"after")
        assert source.volume.stat().st_size == MIB
        assert source.umount() == 13
        source.mount()
        held = source.volume.read_bytes()
        assert held[:6] == b"before"
        assert held[-6:] in {bytes(6), b"during"}
        write(source.volume, b"healed")
        source.wait_mirrored(far)
        assert far.mirror().read_bytes() == b"healed" + held[6:]


def test_a_destination_that_nobody_serves_does_not_disturb_the_volume(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init(to=["sftp://127.0.0.1:1/nowhere", "dir:///proc/no/such/place"])
        source.mount()
        write(source.volume, b"alone")
        source.wait_applied()
        assert source.image.read_bytes()[:5] == b"alone"
        assert source.umount() == 0
        with pytest.raises(BusyError):
            source.status()
