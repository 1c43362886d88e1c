"""What only the program ``ssh`` can get wrong: missing, killed, or minding other settings."""

from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import psutil
import pytest

from aimfuse.errors import Refused, Unavailable
from aimfuse.units import MIB
from tests.contract.far_sides import ProgramSide

MakeFile = Callable[[str, int], Path]


@pytest.fixture
async def side(tmp_path: Path) -> AsyncGenerator[ProgramSide]:
    side = ProgramSide(tmp_path / "far")
    await side.start()
    yield side
    await side.stop()


def programs() -> list[psutil.Process]:
    """Return the programs that serve this process's connections."""
    found = psutil.Process().children()
    return [one for one in found if one.name() == "ssh" and one.status() != psutil.STATUS_ZOMBIE]


async def test_without_the_program_it_says_what_to_install(
    side: ProgramSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refused, match="no program ssh") as caught:
        await side.transport(side.root / "store").open()
    assert "built-in" in caught.value.hint


async def test_a_program_that_is_killed_makes_the_store_unavailable(
    side: ProgramSide, make_file: MakeFile
) -> None:
    transport = side.transport(side.root / "store")
    await transport.open()

    async def kill(_count_bytes: int) -> None:
        for one in programs():
            one.kill()

    with pytest.raises(Unavailable):
        await transport.put(make_file("a", 4 * MIB), "a.aim", pace=kill)
    with pytest.raises(Unavailable):
        await transport.get("ack.json", 10)
    await transport.aclose()


async def test_nothing_of_it_is_left_once_the_connection_is_closed(side: ProgramSide) -> None:
    transport = side.transport(side.root / "store")
    await transport.open()
    assert len(programs()) == 1
    await transport.aclose()
    assert programs() == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("NoSuchOption yes\n", "onfiguration option", id="an unknown option"),
        pytest.param("KexAlgorithms diffie-hellman-group1-sha1\n", "negotiate", id="no algorithm"),
    ],
)
async def test_a_configuration_that_only_the_program_minds_is_refused(
    side: ProgramSide, text: str, says: str
) -> None:
    assert side.settings.ssh_config is not None
    side.settings.ssh_config.write_text(text)
    with pytest.raises(Refused, match=says) as caught:
        await side.transport(side.root / "store").open()
    assert caught.value.hint


async def test_a_configuration_that_others_may_write_is_refused(side: ProgramSide) -> None:
    assert side.settings.ssh_config is not None
    side.settings.ssh_config.chmod(0o666)
    with pytest.raises(Refused, match="permissions"):
        await side.transport(side.root / "store").open()
