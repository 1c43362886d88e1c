"""`aimfuse verify` with real processes: what differs is found, named and repaired."""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aimfuse.config import DestinationConfig
from aimfuse.units import KIB, MIB
from tests.e2e.host import QUICK, FarHost, Source, aimfuse, until

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

GRAIN = 256 * KIB
Place = tuple[str, int, int]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with Source(tmp_path / "near", 16 * MIB) as made:
        with made.image.open("r+b") as file:
            file.write(os.urandom(2 * MIB))
        yield made


def verify(source: Source, *options: str, code: int = 0) -> dict[str, Any]:
    done = aimfuse("verify", source.image, "--json", *options)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def places(found: dict[str, Any], name: str = "v") -> list[Place]:
    (one,) = [one for one in found["destinations"] if one["name"] == name]
    return [(each["volume"], each["offset"], each["length"]) for each in one["differences"]]


def reach(far: FarHost) -> str:
    """Return the oldest point of the mirror's past."""
    done = aimfuse("history", far.store(), "--json")
    assert done.returncode == 0, done.stderr
    oldest: str = json.loads(done.stdout)["oldest"]["position"]
    return oldest


def flip(far: FarHost, at: int, store: str = "v") -> None:
    """Change a byte of the mirror by hand."""
    with far.mirror(store=store).open("r+b") as file:
        file.seek(at)
        held = file.read(1)
        file.seek(at)
        file.write(bytes([held[0] ^ 1]))


def test_what_was_edited_by_hand_is_named_and_repaired(source: Source, far: FarHost) -> None:
    source.init(to=[far.url()])
    source.mount()
    source.wait_mirrored(far)
    assert places(verify(source)) == []
    flip(far, MIB + 5)
    flip(far, 9 * MIB)
    named = [("v.img", MIB, GRAIN), ("v.img", 9 * MIB, MIB)]
    assert places(verify(source, code=17)) == named
    told = aimfuse("status", source.image, far.store(), "--check")
    assert told.returncode == 1
    assert told.stdout.count("the mirror differs from the image at v.img:1048576+262144") == 2
    done = aimfuse("verify", source.image)
    assert (done.returncode, "--repair" in done.stderr) == (17, True)
    before = reach(far)
    repaired = verify(source, "--repair")
    assert places(repaired) == []
    assert reach(far) == before  # What the mirror held can be had.
    assert len(repaired["destinations"][0]["repaired"]) == 2
    assert aimfuse("status", source.image, far.store(), "--check").returncode == 0
    source.wait_mirrored(far)
    assert far.mirror().read_bytes() == source.volume.read_bytes()


def test_of_very_much_that_differs_a_mirror_gets_a_copy(tmp_path: Path, far: FarHost) -> None:
    with Source(tmp_path / "near", 300 * MIB) as source:
        source.init(to=[far.url()])
        source.mount()
        source.wait_mirrored(far)
        for at in range(0, 300 * MIB, MIB):
            flip(far, at)
        repaired = verify(source, "--repair")
        assert places(repaired) == []
        assert len(repaired["destinations"][0]["repaired"]) == 1
        assert "a resync begins: it differs from the image" in source.log.read_text()
        assert not any(far.mirror().read_bytes())


def test_writers_kills_and_restarts_make_no_mismatch(source: Source, far: FarHost) -> None:
    source.init(to=[far.url()])
    source.mount()
    source.wait_mirrored(far)
    stop = threading.Event()

    def write() -> None:
        with source.volume.open("r+b", buffering=0) as file:
            while not stop.is_set():
                os.pwrite(file.fileno(), os.urandom(4096), ord(os.urandom(1)) * 16 * KIB)

    for turn in range(3):
        stop.clear()
        writer = threading.Thread(target=write)
        writer.start()
        try:
            found = verify(source, code=0)
            assert places(found) == []
        finally:
            stop.set()
            writer.join()
        if turn == 0:
            source.kill()
            source.mount()
        elif turn == 1:
            far.kill()
            far.start()
    source.wait_mirrored(far)
    assert far.ack()["verified"]["mismatches"] == []


def test_a_destination_that_is_away_is_said_to_be_and_holds_up_no_other(
    source: Source, far: FarHost
) -> None:
    away = DestinationConfig("away", far.url("away"), paused=True)
    source.init(to=[far.url(), away])
    source.mount()
    source.wait_mirrored(far)
    found = verify(source, code=20)
    assert [(one["name"], one["compared"]) for one in found["destinations"]] == [
        ("v", True), ("away", False),
    ]  # fmt: skip
    assert verify(source, "--dest", "v")["ok"]
    assert aimfuse("pause", far.store(), "apply", "--reason", "a backup").returncode == 0
    (held,) = verify(source, "--dest", "v", code=20)["destinations"]
    assert held["problem"] == "held back on purpose: apply is paused there (a backup)"
    assert aimfuse("resume", far.store(), "apply").returncode == 0
    assert aimfuse("verify", source.image, "--dest", "nobody").returncode == 2
    assert aimfuse("verify", source.image, "--volume", "other.img").returncode == 2
    source.umount()
    assert aimfuse("verify", source.image).returncode == 3


def test_a_scrub_finds_what_was_edited_and_repairs_it_where_told_to(
    source: Source, far: FarHost
) -> None:
    source.init(to=[far.url()], journal=replace(QUICK, scrub_repair=True))
    source.mount()
    source.wait_mirrored(far)
    flip(far, MIB)
    aimfuse("verify", source.image)  # As the scrub does it, but now.
    until(lambda: "it gets 256.0 KiB again" in source.log.read_text())
    until(lambda: not far.ack()["verified"]["mismatches"])
    assert far.mirror().read_bytes() == source.volume.read_bytes()


def test_volumes_of_a_directory_are_compared_each_by_its_name(tmp_path: Path, far: FarHost) -> None:
    with Source(tmp_path / "group", size=None, name="group") as source:
        source.init(to=[far.url()])
        source.mount()
        for name in ("one", "two", "three"):
            (source.mountpoint / name).write_bytes(os.urandom(300_000))
        (source.mountpoint / "one").rename(source.mountpoint / "uno")
        (source.mountpoint / "three").unlink()
        source.wait_mirrored(far)
        with far.mirror("uno").open("r+b") as file:
            file.truncate(1000)
        with far.mirror("two").open("ab") as file:
            file.write(b"more")
        found = verify(source, code=17)
        assert found["volumes"] == ["two", "uno"]
        assert places(found) == [("uno", 0, 300_000)]
