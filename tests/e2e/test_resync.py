"""Mirrors that cannot follow the journal come back by themselves, and stay readable until then."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aimfuse.units import KIB, MIB
from tests.e2e.host import FarHost, Source, aimfuse, until

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

SIZE = 8 * MIB
NAME = "s"


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarHost]:
    with FarHost(tmp_path / "far") as host:
        host.start()
        yield host


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with Source(tmp_path / "near", SIZE) as made:
        yield made


def write(source: Source, at: int, size: int = 64 * KIB) -> None:
    with source.volume.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(size))
        os.fsync(file.fileno())


def told(source: Source, name: str) -> dict[str, Any]:
    path = source.state_dir / "destinations" / name / "status.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def wait_identical(source: Source, far: FarHost) -> None:
    """Wait until the mirror is what the volume is."""
    mirror = far.mirror(source.image.name, "s")
    until(lambda: mirror.exists() and mirror.read_bytes() == source.volume.read_bytes())


def test_behind_an_image_that_was_taken_as_it_is_the_mirror_comes_back(
    source: Source, far: FarHost
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


def test_a_spool_that_is_gone_costs_no_new_store(source: Source, far: FarHost) -> None:
    source.init(to=[far.url("s")])
    source.mount()
    write(source, 0)
    wait_identical(source, far)
    source.kill()
    shutil.rmtree(source.state_dir / "spool")
    source.mount("--resync")
    write(source, MIB)
    wait_identical(source, far)


def test_ranges_are_repaired_and_everything_is_copied_by_command(
    source: Source, far: FarHost
) -> None:
    source.init(to=[far.url("s")])
    source.mount()
    write(source, 0, MIB)
    wait_identical(source, far)
    mirror = far.mirror(source.image.name, "s")
    for asked in (("--range", f"{source.image.name}:64KiB+64KiB"), ("--full",)):
        with mirror.open("r+b") as file:
            file.seek(64 * KIB)
            file.write(b"rot" * 1000)
        done = aimfuse("sync", source.image, NAME, *asked)
        assert done.returncode == 0, done.stderr
        write(source, 2 * MIB)
        wait_identical(source, far)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("s",), "nothing to copy"),
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
