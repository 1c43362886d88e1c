"""A store that is copied by hand and used as two, or in the place of the first one."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse import config as configuration
from aimfuse.config import DestinationConfig
from aimfuse.units import KIB, MIB
from tests.e2e.host import QUICK, FarHost, Source, aimfuse, until
from tests.e2e.writing import put

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

SIZE = MIB


@pytest.fixture
def source(far: FarHost, tmp_path: Path) -> Iterator[Source]:
    """Give a mounted volume that is mirrored to the store `one`."""
    with Source(tmp_path / "near", SIZE) as made:
        made.init(to=[DestinationConfig("one", far.url("one"))], journal=QUICK)
        made.mount()
        write(made, 0)
        made.wait_mirrored(far, "one")
        yield made


def write(source: Source, at: int) -> None:
    put(source.volume, at, os.urandom(64 * KIB))


def copy_if_there(path: str, to: str) -> None:
    """Copy a file of a store in use, as `cp` does: one that has just gone is left out."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(path, to)


def lead(source: Source, **urls: str) -> None:
    """Change where the destinations lead to, and wait until that is in force."""
    config = configuration.load(source.state_dir)
    destinations = tuple(DestinationConfig(name, url) for name, url in urls.items())
    configuration.save(replace(config, destinations=destinations))
    assert aimfuse("reload", source.image).returncode == 0


def test_a_copy_of_a_closed_store_is_a_second_mirror_and_can_take_the_place_of_the_first(
    source: Source, far: FarHost
) -> None:
    assert far.stop() == 0
    for name in ("two", "older"):
        shutil.copytree(far.store("one"), far.store(name))
    far.start()
    lead(source, one=far.url("one"), two=far.url("two"))
    write(source, 128 * KIB)
    for name in ("one", "two"):
        source.wait_mirrored(far, name)
        assert far.mirror(store=name).read_bytes() == source.volume.read_bytes()
    assert far.ack("two")["sync"]["id"] == far.ack("one")["sync"]["id"]  # It was not copied anew.
    lead(source, one=far.url("older"), two=far.url("two"))
    write(source, 256 * KIB)
    for name in ("older", "two"):
        source.wait_mirrored(far, name)
        assert far.mirror(store=name).read_bytes() == source.volume.read_bytes()
    assert far.ack("one")["applied"]["number"] < far.ack("two")["applied"]["number"]


def test_a_copy_of_a_store_in_use_is_noticed_and_gets_everything_anew(
    source: Source, far: FarHost
) -> None:
    beside = far.root / "beside"
    shutil.copytree(far.store("one"), beside, copy_function=copy_if_there)
    damaged = beside / "volumes" / "00000001"
    damaged.write_bytes(b"?" * SIZE)  # As if it had changed while it was copied.
    beside.rename(far.store("two"))
    until(lambda: "copied" in (far.ack("two").get("needs_sync") or ""), lambda: far.ack("two"))
    assert far.ack("two")["phase"] == "catching_up"
    assert "copied, moved or restored" in aimfuse("status", far.store("two")).stdout
    lead(source, one=far.url("one"), two=far.url("two"))
    source.wait_mirrored(far, "two")
    assert far.mirror(store="two").read_bytes() == source.volume.read_bytes()
    until(lambda: source.told("two")["state"] == "idle", lambda: source.told("two"))
    assert far.ack("two")["needs_sync"] is None
