"""A far host with a replayer, for each test that asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import FarHost


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarHost]:
    with FarHost(tmp_path / "far") as host:
        host.start()
        yield host
