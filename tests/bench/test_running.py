"""What a benchmark starts is gone afterwards, however it ended."""

from pathlib import Path

import pytest

from aimfuse.units import MIB
from bench.running import unmounting
from tests.e2e.host import Source


@pytest.mark.fuse
@pytest.mark.usefixtures("require_fuse")
def test_the_mount_of_a_driver_that_was_killed_is_not_left_behind(tmp_path: Path) -> None:
    with Source(tmp_path, MIB) as source:
        source.init()
        source.mount()
        with unmounting(source.mountpoint):
            source.kill()
        assert str(source.mountpoint) not in Path("/proc/self/mounts").read_text()
