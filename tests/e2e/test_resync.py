"""Mirrors that cannot follow the journal come back by themselves, and stay readable until then."""

import contextlib
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.config import DestinationConfig
from aimfuse.units import GIB, KIB, MIB
from tests.e2e.host import QUICK, FarHost, Source, aimfuse, until
from tests.e2e.loop_disk import LoopDisk
from tests.e2e.programs import run
from tests.e2e.writing import put

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

SIZE = 8 * MIB
NAME = "s"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with Source(tmp_path / "near", SIZE) as made:
        yield made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return an empty file system of 64 MiB."""
    disk = LoopDisk(tmp_path, tmp_path / "small", 64 * MIB)
    place = tmp_path / "mounted"
    place.mkdir()
    run("mkfs.ext4", "-q", disk.device)
    run("mount", disk.device, place)
    yield place
    run("umount", place)
    disk.remove()


def write(source: Source, at: int, size: int = 64 * KIB) -> None:
    put(source.volume, at, os.urandom(size))


def wait_identical(source: Source, far: FarHost, store: str = NAME) -> None:
    """Wait until the mirror is what the volume is."""
    mirror = far.mirror(source.image.name, store)
    until(lambda: mirror.exists() and mirror.read_bytes() == source.volume.read_bytes())


def test_behind_an_image_that_was_taken_as_it_is_the_mirror_comes_back(
    far: FarHost, source: Source
) -> None:
    source.init(to=[far.url("s")])
    source.mount()
    write(source, 0)
    wait_identical(source, far)
    assert source.umount() == 0
    with source.image.open("r+b") as image:
        image.seek(3 * MIB)
        image.write(os.urandom(MIB))  # Nobody recorded this.
    source.mount("--resync")
    write(source, 5 * MIB)
    wait_identical(source, far)


def test_a_spool_that_is_gone_costs_no_new_store(far: FarHost, source: Source) -> None:
    source.init(to=[far.url("s")])
    source.mount()
    write(source, 0)
    wait_identical(source, far)
    source.kill()
    shutil.rmtree(source.state_dir / "spool")
    source.mount("--resync")
    write(source, MIB)
    wait_identical(source, far)


def test_ranges_are_repaired_and_everything_is_copied_by_command_and_at_once(
    far: FarHost, source: Source
) -> None:
    source.init(to=[far.url("s")], journal=replace(QUICK, checkpoint_interval_s=600))
    source.mount()
    write(source, 0, MIB)
    wait_identical(source, far)
    mirror = far.mirror(source.image.name, "s")
    for asked in (("--range", f"{source.image.name}:64KiB+64KiB"), ("--full",)):
        with mirror.open("r+b") as file:
            file.seek(64 * KIB)
            file.write(b"rot" * 1000)
        done = aimfuse("sync", source.image, NAME, *asked, "--wait")
        assert done.returncode == 0, done.stderr
        assert "is there" in done.stdout
        assert mirror.read_bytes() == source.volume.read_bytes()
        write(source, 2 * MIB)
        wait_identical(source, far)
    assert "No copy" in aimfuse("sync", source.image, NAME).stdout


def test_a_destination_with_a_rule_is_copied_by_command_while_all_is_quiet(
    far: FarHost, tmp_path: Path
) -> None:
    with Source(tmp_path / "near", None, "images") as source:
        source.init(to=[DestinationConfig(NAME, far.url(NAME), exclude=("own",))], journal=SMALL)
        source.mount()
        for name in ("a", "own"):
            (source.mountpoint / name).write_bytes(os.urandom(64 * KIB))
        source.wait_mirrored(far, NAME)
        (source.mountpoint / "own").write_bytes(os.urandom(4 * KIB))
        source.wait_mirrored(far, NAME)
        refused = aimfuse("sync", source.image, NAME, "--range", "own:0+4KiB")
        assert (refused.returncode, "does not get 'own'" in refused.stderr) == (2, True)
        (source.mountpoint / "a").rename(source.mountpoint / "own")  # For good: it is sent.
        done = aimfuse("sync", source.image, NAME, "--range", "own:0+4KiB", "--wait")
        assert done.returncode == 0, done.stderr
        (source.mountpoint / "own").rename(source.mountpoint / "a")
        done = aimfuse("sync", source.image, NAME, "--full")
        assert done.returncode == 0, done.stderr
        asked = source.state_dir / "destinations" / NAME / "request.json"
        until(lambda: not asked.exists())
        until(lambda: source.told(NAME)["state"] == "idle", lambda: source.told(NAME))
        (source.mountpoint / "a").write_bytes(os.urandom(64 * KIB))
        source.wait_mirrored(far, NAME)
        assert far.mirror("a", NAME).read_bytes() == (source.mountpoint / "a").read_bytes()


def test_who_follows_a_copy_that_waits_for_somebody_is_told_so(
    far: FarHost, source: Source
) -> None:
    source.init(to=[far.url("s")])
    source.mount()
    write(source, 0, MIB)
    wait_identical(source, far)
    assert aimfuse("destination", "pause", source.image, NAME).returncode == 0
    done = aimfuse("sync", source.image, NAME, "--full", "--wait")
    assert done.returncode == 21
    assert "does not go on: paused" in done.stderr
    assert aimfuse("destination", "resume", source.image, NAME).returncode == 0
    assert aimfuse("sync", source.image, NAME).returncode == 0
    assert not (source.state_dir / "destinations" / NAME / "request.json").exists()
    wait_identical(source, far)


SMALL = replace(
    QUICK, file_bytes=64 * KIB, spool_bytes_max=MIB, spool_reserve_bytes=0,
    checkpoint_interval_s=0.5,
)  # fmt: skip
"""A spool a tenth of what is written in these tests."""


def rewrite(source: Source, written_bytes: int, seed: int) -> None:
    """Write 4 KiB at random places of the first half, as an application does."""
    dice = random.Random(seed)
    with source.volume.open("r+b", buffering=0) as file:
        for count in range(written_bytes // (4 * KIB)):
            file.seek(dice.randrange(SIZE // 2 // (4 * KIB)) * 4 * KIB)
            file.write(dice.randbytes(4 * KIB))
            if count % 256 == 0:
                os.fsync(file.fileno())
        os.fsync(file.fileno())


def test_a_dead_destination_is_folded_and_comes_back_by_what_changed(
    far: FarHost, source: Source, tmp_path: Path
) -> None:
    with FarHost(tmp_path / "dead") as dead:
        dead.start()
        source.init(to=[far.url("s"), f"{dead.url('s')}", far.url("t")], journal=SMALL)
        source.mount()
        wait_identical(source, far)
        wait_identical(source, dead)
        dead.kill()
        gone = dead.stores.rename(tmp_path / "gone")
        rewrite(source, 10 * MIB, seed=1)
        for store in ("s", "t"):
            wait_identical(source, far, store)
        until(lambda: source.status()["spool"]["level"] != "full", source.status)
        assert source.status()["spool"]["bytes"] <= SMALL.spool_bytes_max
        quiet_ns = time.time_ns()  # From here on nothing is written, nor folded.
        until(lambda: source.told("s-2")["updated_ns"] > quiet_ns)
        folded = source.told("s-2")["folded"]["dirty_bytes"]
        assert folded <= SIZE // 2
        before = source.told("s-2")["sent_bytes"]
        gone.rename(dead.stores)
        dead.start()
        wait_identical(source, dead)
        until(lambda: source.told("s-2")["state"] == "idle")
        sent = source.told("s-2")["sent_bytes"] - before
        assert sent <= 1.15 * folded + 1.15 * SMALL.spool_bytes_max
        assert source.told("s-2")["folded"] is None
        rewrite(source, MIB, seed=2)
        wait_identical(source, dead)


def test_who_has_used_up_its_share_is_folded_while_there_is_room_for_others(
    far: FarHost, source: Source, tmp_path: Path
) -> None:
    ways = [
        DestinationConfig("s", far.url("s"), spool_share_bytes=MIB, retry_s_max=0.5),
        DestinationConfig("t", far.url("t"), retry_s_max=0.5),
    ]
    # What is to go has to be in the image first, and nobody else asks for that here.
    journal = replace(SMALL, spool_bytes_max=64 * MIB, checkpoint_interval_s=3600.0)
    source.init(to=ways, journal=journal)
    source.mount()
    for name in ("s", "t"):
        wait_identical(source, far, name)
    far.kill()
    gone = far.stores.rename(tmp_path / "gone")
    rewrite(source, 3 * MIB, seed=6)
    until(lambda: source.told("s")["folded"])
    until(lambda: source.told("s")["pinned"]["bytes"] <= MIB, lambda: source.told("s"))
    until(lambda: source.told("t")["pinned"]["bytes"] >= 3 * MIB, lambda: source.told("t"))
    assert source.told("t")["folded"] is None
    assert source.status()["spool"]["level"] == "fine"
    gone.rename(far.stores)
    far.start()
    for name in ("s", "t"):
        wait_identical(source, far, name)


def test_either_end_is_killed_while_it_folds_copies_and_switches(
    far: FarHost, source: Source, tmp_path: Path
) -> None:
    dice = random.Random(3)
    source.init(to=[far.url("s")], journal=SMALL)
    source.mount()
    write(source, 0, SIZE)
    wait_identical(source, far)
    for _ in range(3):
        far.kill()
        gone = far.stores.rename(tmp_path / "gone")
        rewrite(source, 2 * MIB, seed=dice.randrange(1000))
        if dice.random() < 0.5:
            source.kill()
            source.mount()
        gone.rename(far.stores)
        far.start()
        time.sleep(dice.uniform(0.0, 0.7))
        if dice.random() < 0.5:
            far.kill()
            far.start()
    rewrite(source, MIB, seed=4)
    wait_identical(source, far)


@pytest.mark.usefixtures("require_root_loop")
def test_a_disk_that_something_else_fills_is_folded_for(small_disk: Path, tmp_path: Path) -> None:
    with Source(tmp_path / "near", SIZE) as source, FarHost(tmp_path / "far") as far:
        far.start()
        fold_on(small_disk, source, far)


def fold_on(disk: Path, source: Source, far: FarHost) -> None:
    journal = replace(SMALL, spool=disk / "spool", spool_bytes_max=GIB, spool_reserve_bytes=4 * MIB)
    source.init(to=[far.url("s")], journal=journal)
    source.mount()
    write(source, 0, SIZE)
    wait_identical(source, far)
    far.kill()
    gone = far.stores.rename(far.root / "gone")
    with (disk / "another").open("wb", buffering=0) as file:
        # Less room may be left, where files that the mirror has are still to go.
        with contextlib.suppress(OSError):
            for _ in range(40):
                file.write(bytes(MIB))
        os.fsync(file.fileno())
    rewrite(source, 12 * MIB, seed=5)
    gone.rename(far.stores)
    far.start()
    wait_identical(source, far)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("s", "--range", "no.img:0+1"), "no volume 'no.img'"),
        (("s", "--range", "1GiB+1"), "beyond the end"),
        (("s", "--full", "--range", "0+1"), "together"),
        (("s", "--range", "half of it"), "is no range"),
        (("s", "--range", "0+0"), "is empty"),
        (("elsewhere", "--full"), "elsewhere"),
        (("s", "--full"), "nothing was sent"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    source: Source, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    source.init(to=[f"dir://{tmp_path}/s"])
    done = aimfuse("sync", source.image, *words)
    assert done.returncode == 2
    assert said in done.stderr
