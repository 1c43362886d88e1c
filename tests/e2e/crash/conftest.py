"""A machine for each test, which leaves no process and no mount behind."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    """Return the seed of a test's dice: AIMFUSE_SEED, or a new one, which is printed."""
    chosen = os.environ.get("AIMFUSE_SEED")
    number = int(chosen) if chosen else random.SystemRandom().randrange(2**32)
    print(f"AIMFUSE_SEED={number}")
    return number
