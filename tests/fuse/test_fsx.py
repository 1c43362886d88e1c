"""A volume against a bytearray, through everything that can change a file."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.units import KIB
from tests.dice import draw_seed
from tests.e2e.host import QUICK, FarHost, Source
from tests.fuse.calls import opened
from tests.fuse.fsx import Fsx

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

SIZE_MAX = 512 * KIB
RUN_LENGTH = 150
GROWABLE = replace(QUICK, size_bytes_max=SIZE_MAX, file_bytes=256 * KIB)


@pytest.fixture
def chance() -> random.Random:
    return random.Random(draw_seed())


def kill_after_sync(source: Source) -> None:
    with opened(source.volume) as fd:
        os.fsync(fd)
    source.kill()


@pytest.mark.parametrize("options", [(), ("--writeback",)], ids=["write-through", "writeback"])
def test_a_volume_and_its_mirror_hold_what_a_bytearray_holds(
    tmp_path: Path, chance: random.Random, options: tuple[str, ...]
) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", SIZE_MAX // 2) as source:
        far.start()
        source.init(to=[far.url()], journal=GROWABLE)
        source.mount(*options)
        # A kernel that holds writes back learns of a limit when it is too late for its own
        # idea of the file's size: that is part of the price of --writeback.
        fsx = Fsx(source.volume, SIZE_MAX, chance, too_far=not options)
        fsx.run(RUN_LENGTH)
        assert source.umount() == 0
        assert source.image.read_bytes() == fsx.model, fsx.told()
        source.mount(*options)
        fsx.run(RUN_LENGTH)
        kill_after_sync(source)
        source.mount(*options)
        fsx.run(RUN_LENGTH)
        with opened(source.volume) as fd:
            os.fsync(fd)
        source.wait_mirrored(far)
        assert far.mirror().read_bytes() == fsx.model, fsx.told()
