"""A spool that is gone or cannot be read, before a mount and during one: told, and nothing lost."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.units import KIB, MIB
from tests.e2e.host import QUICK, FarHost, MountFailed, Source, aimfuse, until
from tests.e2e.writing import put

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

SIZE = 4 * MIB
STATE_LOST = 12
HALTED = 13


@pytest.fixture
def source(far: FarHost, tmp_path: Path) -> Iterator[Source]:
    """Give a mounted and mirrored volume."""
    with Source(tmp_path / "near", SIZE) as made:
        made.init(to=[far.url()], journal=QUICK)
        made.mount()
        write(made, 0)
        wait_identical(made, far)
        yield made


def write(source: Source, at: int, data: bytes = b"") -> None:
    put(source.volume, at, data or os.urandom(64 * KIB))


def write_until_refused(source: Source) -> tuple[bytes, bytes]:
    """Write and sync until that fails.

    Returns:
        What the volume then has to hold: with the last write that was synced, or with the one
        that was not, too.
    """
    held = wanted = bytearray(source.volume.read_bytes())

    def is_refused() -> bool:
        nonlocal held, wanted
        data = os.urandom(64 * KIB)
        wanted = bytearray(held)
        wanted[2 * MIB : 2 * MIB + len(data)] = data
        try:
            write(source, 2 * MIB, data)
        except OSError:
            return True
        held = wanted
        return False

    until(is_refused)
    return bytes(held), bytes(wanted)


def wait_identical(source: Source, far: FarHost) -> None:
    until(
        lambda: far.mirror().exists() and far.mirror().read_bytes() == source.volume.read_bytes(),
        far.ack,
    )


def remove_in_use(spool: Path) -> None:
    """Remove the directory and what is in it, whatever comes and goes there meanwhile."""

    def is_gone() -> bool:
        shutil.rmtree(spool, ignore_errors=True)
        return not spool.exists()

    until(is_gone)


def a_file(spool: Path) -> None:
    """Put a file in its place."""
    spool.write_bytes(b"no directory")


def an_endless_link(spool: Path) -> None:
    """Put a link to itself in its place."""
    spool.symlink_to(spool)


def a_link_to_nowhere(spool: Path) -> None:
    """Put a link in its place that leads to a disk that is not there."""
    spool.symlink_to(spool.with_name("not mounted"))


def refused(source: Source) -> str:
    """Mount, which is refused because of the spool; return what was said."""
    with pytest.raises(MountFailed) as failure:
        source.mount()
    assert failure.value.exit_code == STATE_LOST, failure.value.said
    said = failure.value.said
    assert f"{source.spool}: the spool" in said
    assert "--resync" in said
    assert "Traceback" not in said
    return said


def test_a_spool_that_cannot_be_read_refuses_the_mount_and_resync_begins_another(
    source: Source, far: FarHost
) -> None:
    write(source, MIB)
    source.wait_applied()
    held = source.volume.read_bytes()
    source.kill()
    shutil.rmtree(source.spool)
    assert "missing" in refused(source)
    for instead in (a_link_to_nowhere, an_endless_link, a_file):
        source.spool.unlink(missing_ok=True)
        instead(source.spool)
        refused(source)
    assert aimfuse("status", source.image).returncode == 0
    source.mount("--resync")
    assert source.volume.read_bytes() == held
    write(source, 3 * MIB)
    wait_identical(source, far)
    assert source.umount() == 0


def test_a_spool_that_goes_while_mounted_halts_the_volume_and_takes_nothing_that_was_synced(
    source: Source, far: FarHost
) -> None:
    remove_in_use(source.spool)
    a_file(source.spool)
    either = write_until_refused(source)
    until(lambda: source.status()["state"] == "halted", source.status)
    reason = source.status()["reason"]
    assert str(source.spool) in reason, reason
    assert source.volume.read_bytes()  # What was accepted can still be read.
    assert source.umount() == HALTED
    image = source.image.read_bytes()
    assert image in either
    refused(source)
    source.mount("--resync")
    assert source.volume.read_bytes() == image
    write(source, 3 * MIB)
    wait_identical(source, far)
    assert "Traceback" not in source.log.read_text()


def test_an_idle_volume_notices_that_its_spool_was_moved_and_goes_on_once_it_is_back(
    source: Source, far: FarHost
) -> None:
    away = source.spool.rename(source.root / "away")
    until(lambda: source.status()["state"] == "halted", source.status)
    assert source.umount() == HALTED
    away.rename(source.spool)
    source.mount()
    write(source, 3 * MIB)
    wait_identical(source, far)
    assert source.umount() == 0
