"""Fixtures of the contract suite: each far side in turn, and files to send there."""

import random
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from tests.contract.far_sides import DirectorySide, EmbeddedSide, OpensshSide

MakeFile = Callable[[str, int], Path]


@pytest.fixture(params=[DirectorySide, OpensshSide, EmbeddedSide])
async def far(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[DirectorySide | OpensshSide | EmbeddedSide]:
    side = request.param(tmp_path / "far")
    await side.start()
    yield side
    await side.close()


@pytest.fixture(params=[OpensshSide, EmbeddedSide])
async def server(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[OpensshSide | EmbeddedSide]:
    side = request.param(tmp_path / "far")
    await side.start()
    yield side
    await side.close()


@pytest.fixture
async def openssh(tmp_path: Path) -> AsyncGenerator[OpensshSide]:
    side = OpensshSide(tmp_path / "far")
    await side.start()
    yield side
    await side.close()


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncGenerator[EmbeddedSide]:
    side = EmbeddedSide(tmp_path / "far")
    await side.start()
    yield side
    await side.close()


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Return a function that makes a file of a given name and size, the same each time."""
    directory = tmp_path / "spool"
    directory.mkdir()

    def make(name: str, size: int) -> Path:
        path = directory / name
        path.write_bytes(random.Random(name).randbytes(size))
        return path

    return make
