"""Where the store's file system shares blocks, the past outlives a promotion."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aimfuse.cli.past import register
from aimfuse.cli.plain import App
from aimfuse.disk import Disk
from aimfuse.errors import OutOfReach
from aimfuse.replay.exhibit import opened as shown
from aimfuse.replay.past import describe
from aimfuse.replay.point import Wanted
from aimfuse.replay.promote import Request, promote_open
from aimfuse.units import MIB
from tests.e2e.loop_disk import LoopDisk
from tests.e2e.programs import run
from tests.replay.recorder import at, recorded, restored, silent
from tests.replay.source import deliver
from tests.replay.stores import catch_up, opened

pytestmark = [pytest.mark.usefixtures("require_root_loop"), pytest.mark.expects_warnings]


app = App()
app.callback()(lambda: None)
register(app)


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "xfs"
    place.mkdir()
    disk = LoopDisk(tmp_path, tmp_path / "device", 320 * MIB)
    try:
        run("mkfs.xfs", "-q", disk.device)
        run("mount", disk.device, place)
        try:
            yield place
        finally:
            run("umount", place)
    finally:
        disk.remove()


@pytest.mark.parametrize("seq", [27, 30])
def test_states_in_front_of_the_fork_can_be_had_though_the_mirror_is_written_to(
    xfs: Path, tmp_path: Path, seq: int
) -> None:
    (xfs / "store").mkdir()
    (xfs / "store" / "store.toml").write_text('keep_free = "1MiB"')
    source, store, rest = recorded(xfs)
    deliver(store, *rest)
    catch_up(store)
    with opened(store) as session:
        said = promote_open(session, Request(at((1, seq))), silent)
    assert said["past"]
    with (store / "mirror" / "v.img").open("r+b") as volume:  # As the driver does.
        volume.write(b"the new source" * 1000)
    told = describe(Disk(), store)["newest"]
    assert told["position"] == f"1:{seq}"
    last = seq
    for newest in (Wanted("now"), Wanted("then", time_ns=told["time_ns"])):
        assert restored(store, newest, tmp_path / f"{newest.text}") == source.states[1, seq]
        with shown(Disk(), store, newest) as frozen:
            names = {one.name: frozen.read(one, 0, one.size_bytes) for one in frozen.volumes}
            assert names == source.states[1, seq]
    done = CliRunner().invoke(app, ["restore", str(store), "-o", f"{tmp_path}/cli/"])
    assert f"restored 1:{seq} in file" in done.stdout
    assert ", where it was promoted" in done.stdout
    for where in range(4, last + 1, 5):
        output = tmp_path / f"restored-{where}"
        assert restored(store, at((1, where)), output) == source.states[1, where], where
    with pytest.raises(OutOfReach):
        restored(store, at((1, last + 1)), tmp_path / "behind")
