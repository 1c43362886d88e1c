"""Both sides were active after a forced promotion: the old source rejoins, and nothing is lost."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.journal.spool import sealed_names
from aimfuse.units import KIB, MIB
from tests.e2e.host import FarHost, Source, aimfuse, until
from tests.e2e.replaying import replaying, wait_mirrored
from tests.e2e.writing import put

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.usefixtures("require_fuse")]

BAD = b"gone back over".ljust(4096)
OLD, NEW = b"written by the old source".ljust(4096), b"written by the new source".ljust(4096)


def write_until_released(old: Source, number: int) -> None:
    """Write and checkpoint until the journal file of that number has left the spool."""

    def is_gone() -> bool:
        put(old.volume, 15 * MIB, os.urandom(4096))
        old.call("checkpoint")
        old.call("roll")
        names = sealed_names(Disk(), old.spool)
        return bool(names) and names[0].number > number

    until(is_gone)


@contextmanager
def forked(root: Path, *, goes_back: bool = False) -> Iterator[tuple[Source, FarHost, Source]]:
    """Give an old source with a tail, the promoted store's host, and the new source, mounted.

    The store *goes_back* over what has left the old source's spool.
    """
    at: list[str] = []
    with FarHost(root / "far") as far, Source(root / "old") as old:
        far.start()
        old.init(to=[far.url()])
        old.mount()
        put(old.volume, 0, os.urandom(3 * MIB))
        old.wait_mirrored(far)
        if goes_back:
            good = far.ack()["applied"]
            at = ["--at", f"{good['epoch']}:{good['seq']}"]
            put(old.volume, 7 * MIB, BAD)
            old.wait_mirrored(far)
            write_until_released(old, int(far.ack()["applied"]["number"]))
            old.wait_mirrored(far)
        far.stop()
        put(old.volume, 5 * MIB, OLD)
        old.call("roll")
        old.kill()
        promoted = aimfuse("promote", far.store(), *at)
        assert promoted.returncode == 0, promoted.stderr
        far.start()
        until(lambda: bool(far.ack().get("promoted")))
        with Source.at(root / "new", far.store(), far.store() / "source") as new:
            new.mount()
            new.image = far.mirror()
            put(new.volume, MIB, NEW)
            put(new.volume, 5 * MIB + 64 * KIB, NEW)
            yield old, far, new


def sent_bytes(new: Source) -> int:
    status = new.state_dir / "destinations" / "former" / "status.json"
    until(status.exists)
    return int(json.loads(status.read_bytes())["sent_bytes"])


@pytest.mark.expects_warnings
def test_an_old_source_rejoins_and_only_what_either_side_touched_is_copied(tmp_path: Path) -> None:
    with forked(tmp_path) as (old, far, new):
        old.mount()
        until(lambda: old.status()["state"] == "superseded")
        old.umount()
        listed = json.loads(aimfuse("branch", "list", old.image, "--json").stdout)["branches"]
        assert [one["is_image"] for one in listed] == [True]
        done = aimfuse("rejoin", old.image, far.url(), "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        store = Path(said["store"])
        assert store == old.state_dir / "store"
        assert (said["is_whole"], said["differing_bytes"]) == (False, 4 * KIB)

        aimfuse("destination", "url", new.state_dir, "former", f"dir://{store}")
        with replaying(store):
            wait_mirrored(new, store)
            until(lambda: sent_bytes(new) > 0)
        assert sent_bytes(new) < 256 * KIB  # Of 3 MiB that were written before.
        assert (store / "mirror" / "v.img").read_bytes() == new.volume.read_bytes()
        assert old.image.read_bytes() == new.volume.read_bytes()
        assert new.volume.read_bytes()[5 * MIB :].startswith(bytes(4096))

        out = tmp_path / "branch.img"
        assert aimfuse("branch", "export", old.image, "--output", out).returncode == 0
        kept = out.read_bytes()
        assert kept[5 * MIB :].startswith(OLD)
        assert NEW not in kept
        again = aimfuse("rejoin", old.image, far.url(), "--json")
        assert json.loads(again.stdout)["state"] == "rejoined"
        refused = aimfuse("mount", old.image, old.mountpoint, "--diverge")
        assert refused.returncode == 16
        assert "mirror" in refused.stderr


@pytest.mark.expects_warnings
def test_after_going_back_behind_what_left_the_spool_little_is_copied(tmp_path: Path) -> None:
    with forked(tmp_path, goes_back=True) as (old, far, new):
        done = aimfuse("rejoin", old.image, far.url(), "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["is_whole"] is False, said["why_whole"]
        assert 8 * KIB <= said["differing_bytes"] <= 12 * KIB
        at_end = old.image.read_bytes()
        store = Path(said["store"])
        aimfuse("destination", "url", new.state_dir, "former", f"dir://{store}")
        with replaying(store):
            wait_mirrored(new, store)
            until(lambda: sent_bytes(new) > 0)
        assert sent_bytes(new) < 256 * KIB
        assert old.image.read_bytes() == new.volume.read_bytes()
        assert BAD not in new.volume.read_bytes()
        (kept,) = (old.state_dir / "branches").glob("*/volumes/*")
        assert kept.read_bytes() == at_end
        assert at_end[5 * MIB :].startswith(OLD)
        assert at_end[7 * MIB :].startswith(BAD)
