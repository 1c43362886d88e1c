"""A machine for each test, which leaves no process and no mount behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dice import draw_seed
from tests.e2e.crash.machine import Machine


@pytest.fixture
def machine(tmp_path: Path, require_fuse: None) -> Iterator[Machine]:
    del require_fuse
    machine = Machine(tmp_path)
    try:
        yield machine
    finally:
        machine.clean_up()


@pytest.fixture
def seed() -> int:
    return draw_seed()
