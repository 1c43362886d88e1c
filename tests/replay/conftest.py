"""A source with one journal file, and a store that has its first sync behind it."""

from pathlib import Path

import pytest

from tests.replay.source import Source
from tests.replay.stores import begun, made_source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return made_source(tmp_path / "spool")


@pytest.fixture
def store(tmp_path: Path, source: Source) -> Path:
    return begun(tmp_path / "store", source)
