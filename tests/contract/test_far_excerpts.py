"""From afar only what is needed of undo files comes over the line, and all of it is checked."""

import random
from pathlib import Path

import pytest

from aimfuse.errors import JournalError
from aimfuse.replay.past import describe
from aimfuse.replay.restore import Request, restore_from
from aimfuse.units import KIB
from tests.contract.far_past import Counted, reaching, restored_from
from tests.contract.far_sides import EmbeddedSide, OpensshSide
from tests.replay.recorder import Recorder, at, silent
from tests.replay.source import deliver
from tests.replay.stores import begin, catch_up

Server = OpensshSide | EmbeddedSide
VOLUMES = 4
VOLUME_BYTES = 640 * KIB
FILES = 2


def past_of_several(root: Path) -> tuple[Recorder, Path]:
    """Return a source and a store with four volumes, each of which every file overwrites."""
    source, store = Recorder(root / "spool"), root / "store"
    for volume in range(1, VOLUMES + 1):
        source.create(f"{volume}.img", VOLUME_BYTES)
        source.write(volume, 0, random.Random(volume).randbytes(VOLUME_BYTES))
    source.roll()
    begin(store, source)
    source.states.clear()
    for index in range(FILES):
        for volume in range(1, VOLUMES + 1):
            source.write(volume, index * 300 * KIB, bytes([index, volume]) * (100 * KIB))
            source.zero(volume, index * 300 * KIB + 220 * KIB, 4 * KIB)
        deliver(store, source.roll())
    catch_up(store)
    return source, store


@pytest.fixture(autouse=True)
def _nothing_came_yet() -> None:
    Counted.got.clear()


async def test_of_one_volume_only_its_own_before_images_come_over_the_line(
    server: Server, tmp_path: Path
) -> None:
    source, store = past_of_several(server.root)
    where = min(source.states)
    request = Request(tmp_path / "out", at(where), "3.img")
    with reaching(server, store, answer_s_max=0.1, files_kind=Counted) as access:
        restore_from(access, request, silent)
    assert request.output.read_bytes() == source.states[where]["3.img"]
    held = sum(one.stat().st_size for one in (store / "history").glob("*.undo"))
    assert held > FILES * VOLUMES * 200 * KIB
    assert FILES * 200 * KIB <= Counted.got[".undo"] < held // 2
    assert Counted.got["list of history"] == 2  # What there is, and what came while it copied.


async def test_what_is_not_needed_may_be_damaged_and_what_is_needed_is_not_given_out(
    openssh: OpensshSide, tmp_path: Path
) -> None:
    source, store = past_of_several(openssh.root)
    where = min(source.states)
    damaged = sorted((store / "history").glob("*.undo"))[1]
    data = bytearray(damaged.read_bytes())
    place = data.index(source.states[where]["2.img"][300 * KIB : 301 * KIB])
    data[place] ^= 16
    damaged.write_bytes(data)
    with reaching(openssh, store, answer_s_max=0.0) as access:
        for volume, is_hurt in ((1, False), (2, True), (3, False)):
            request = Request(tmp_path / f"{volume}", at(where), f"{volume}.img")
            if is_hurt:
                with pytest.raises(JournalError, match=damaged.name):
                    restore_from(access, request, silent)
                assert not [*tmp_path.glob(f"{volume}*")]
            else:
                restore_from(access, request, silent)
                expected = source.states[where][f"{volume}.img"]
                assert request.output.read_bytes() == expected
        with pytest.raises(JournalError, match=damaged.name):
            restored_from(access, at(where), tmp_path / "all")


async def test_what_a_history_holds_is_said_by_one_list_without_its_data(
    openssh: OpensshSide,
) -> None:
    _source, store = past_of_several(openssh.root)
    (store / "ack.json").unlink()  # Nobody says how far it reaches.
    with reaching(openssh, store, files_kind=Counted) as access:
        assert describe(access.disk, access.path, access.look)["files"] == FILES
    assert Counted.got[".undo"] <= 32 * KIB
    assert Counted.got["list of history"] == 1


async def test_a_point_is_found_without_the_data_of_its_file(
    openssh: OpensshSide, tmp_path: Path
) -> None:
    source, store = past_of_several(openssh.root)
    where = sorted(source.states)[5]
    request = Request(tmp_path / "out", at(where), "3.img")
    with reaching(openssh, store, answer_s_max=0.1, files_kind=Counted) as access:
        said = restore_from(access, request, silent, dry_run=True)
        assert said["position"] == f"{where[0]}:{where[1]}"
        file = store / "history" / f"00000001-{said['file']:012d}.aim"
        assert Counted.got[".aim"] < file.stat().st_size + 400 * KIB  # Once, and not thrice.
        assert Counted.got[".undo"] <= 4 * 32 * KIB
        assert Counted.got["list of history"] == 1
        restore_from(access, request, silent)
    assert request.output.read_bytes() == source.states[where]["3.img"]
