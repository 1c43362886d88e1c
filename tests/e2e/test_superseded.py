"""A source whose mirror was promoted: it refuses writes, and says where the source is now."""

import errno
import json
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.journal.journal import Head
from aimfuse.journal.superseded import Promotion, Superseded, write_superseded
from aimfuse.units import Epoch, FileNumber, Seq
from tests.e2e.host import MountFailed, Source, aimfuse, until

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

FORK = Head(Epoch(1), FileNumber(1), Seq(1), bytes(32))
NOTE = Superseded("far", "dir:///far", Promotion(2, FORK))


def is_refused(volume: Path) -> bool:
    try:
        with volume.open("r+b", buffering=0) as file:
            file.write(b"b")
    except OSError as exc:
        return exc.errno == errno.EROFS
    return False


def test_a_superseded_source_reads_and_refuses_until_it_is_told_to_go_on(tmp_path: Path) -> None:
    with Source(tmp_path) as source:
        source.init()
        source.mount()
        source.volume.write_bytes(b"before" * 1000)
        write_superseded(Disk(), source.state_dir, NOTE)
        until(lambda: is_refused(source.volume))
        assert source.volume.read_bytes().startswith(b"before")
        told = source.status()
        assert told["state"] == "superseded"
        assert "dir:///far" in told["reason"]
        assert source.umount() == 0

        with pytest.raises(MountFailed, match=r"far was promoted") as refused:
            source.mount()
        assert refused.value.exit_code == 16
        assert "aimfuse rejoin" in refused.value.said
        assert "--diverge" in refused.value.said
        said = json.loads(aimfuse("status", source.image, "--json").stdout)
        assert said["sources"][0]["state"] == "superseded"

        source.mount("--diverge")
        source.volume.write_bytes(b"after!" * 1000)
        assert source.status()["state"] == "diverging"
        assert source.umount() == 0
