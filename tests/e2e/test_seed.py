"""A first copy that is carried on a disk: exported, imported, and gone on from."""

import os
import subprocess
from pathlib import Path

import pytest

from aimfuse.units import KIB, MIB
from tests.e2e.host import AIMFUSE, FarHost, Source, aimfuse, until

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]


def write(source: Source, at: int) -> None:
    with source.volume.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(64 * KIB))
        os.fsync(file.fileno())


def test_a_seed_is_brought_up_to_date_and_carried_and_the_journal_goes_on(tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", 4 * MIB) as source:
        source.image.write_bytes(os.urandom(MIB) + bytes(3 * MIB))
        source.init()
        export = ("seed", "export", source.image, seed, "--to", far.url(), "--name", "v")
        with subprocess.Popen([*AIMFUSE, *map(str, export)]) as interrupted:
            until(lambda: str(seed) in (source.state_dir / "group.toml").read_text())
            interrupted.kill()
        done = aimfuse(*export)
        assert done.returncode == 0, done.stderr
        assert "aimfuse destination resume" in done.stdout
        source.mount()
        write(source, 2 * MIB)
        done = aimfuse(*export)
        assert done.returncode == 0, done.stderr
        assert (seed / "mirror" / "v.img").read_bytes() == source.volume.read_bytes()
        assert not far.store().exists()
        write(source, 0)
        done = aimfuse("seed", "import", seed, far.store())
        assert done.returncode == 0, done.stderr
        far.start()
        until(lambda: far.ack().get("phase") == "consistent")
        carried = far.ack()["sync"]["id"]
        assert aimfuse("destination", "resume", source.image, "v").returncode == 0
        source.wait_mirrored(far)
        assert far.ack()["sync"]["id"] == carried
        assert far.mirror().read_bytes() == source.volume.read_bytes()
        refused = aimfuse(*export)
        assert (refused.returncode, "needs no seed" in refused.stderr) == (2, True)
