"""The source is dead: its mirror is promoted, mounted, written to, and mirrored on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aimfuse.units import MIB
from tests.e2e.host import FarHost, Source, aimfuse, until
from tests.e2e.writing import put

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.slow,
    pytest.mark.usefixtures("require_fuse"),
    pytest.mark.expects_warnings,
]

KILLED_AT = """
import os, signal, sys
from aimfuse import disk
class Dying(disk.Disk):
    def step(self, label):
        if label == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
wanted = sys.argv.pop(1)
disk.install(Dying())
from aimfuse.cli.main import main
main()
"""


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
    return done.stdout


def ours(*words: object) -> str:
    done = aimfuse(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mirrored(old: Source, far: FarHost) -> None:
    """Give a source with 3 MiB in its mirror, a bookmark, and 1 MiB more."""
    far.start()
    old.init(to=[far.url()])
    old.mount()
    put(old.volume, 0, os.urandom(2 * MIB))
    old.wait_mirrored(far)
    put(old.volume, 2 * MIB, os.urandom(MIB))
    ours("bookmark", old.image, "good")
    put(old.volume, MIB, b"bad" * 300_000)
    old.wait_mirrored(far)


class Mounted:
    """A promoted store, named as its operator names it, mounted at *place*."""

    def __init__(self, store: Path, place: Path) -> None:
        self.store, self.place = store, place
        place.mkdir()

    def __enter__(self) -> Path:
        ours("mount", self.store, self.place, "--background")
        return self.place / "v.img"

    def __exit__(self, *_exc: object) -> None:
        ours("umount", self.place)


def test_a_file_system_goes_on_where_its_source_died_and_is_mirrored_to_a_third_site(
    tmp_path: Path,
) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", 32 * MIB) as old:
        far.start()
        old.init(to=[far.url()])
        old.mount()
        device = old.attach()
        run("mkfs.ext4", "-q", device)
        with old.file_system(device) as place:
            (place / "letter").write_text("from the old site")
        old.detach(device)
        old.wait_mirrored(far)
        old.kill()
        said = json.loads(ours("promote", far.store(), "--json"))  # Beside a replayer at work.
        assert said["lacking"]["files"] == 0
        until(lambda: bool(far.ack().get("promoted")))
        assert far.ack()["promoted"]["epoch"] == said["epoch"]
        with Mounted(far.store(), tmp_path / "mnt") as volume:
            device = run("losetup", "--find", "--show", volume).strip()
            try:
                run("e2fsck", "-f", "-p", device)
                (tmp_path / "fs").mkdir()
                run("mount", device, tmp_path / "fs")
                assert (tmp_path / "fs" / "letter").read_text() == "from the old site"
                (tmp_path / "fs" / "answer").write_text("from the new site")
                run("umount", tmp_path / "fs")
            finally:
                run("losetup", "--detach", device)
            ours("destination", "add", far.store(), far.url("third"), "--name", "third")
            ours("flush", far.store(), "--wait", "applied", "--destination", "third")
        assert far.mirror(store="third").read_bytes() == far.mirror().read_bytes()


def test_a_mirror_goes_back_in_place_beside_a_running_replayer(tmp_path: Path) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near") as old:
        mirrored(old, far)
        old.kill()
        good = tmp_path / "good.img"
        ours("restore", far.store(), "-o", good, "--at", "good")
        foretold = json.loads(ours("promote", far.store(), "--at", "good", "--dry-run", "--json"))
        assert far.ack()["phase"] == "consistent"
        said = json.loads(ours("promote", far.store(), "--at", "good", "--json"))
        assert said["position"] == foretold["position"]
        assert far.mirror().read_bytes() == good.read_bytes()
        assert "promoted already" in ours("promote", far.store())
        refused = aimfuse("promote", far.store(), "--at", "good")
        assert refused.returncode == 2
        with Mounted(far.store(), tmp_path / "mnt") as volume:
            assert volume.read_bytes() == good.read_bytes()
            put(volume, 5 * MIB, b"after")
        assert far.process is not None
        assert far.process.poll() is None


def test_a_promotion_that_was_killed_is_finished_by_the_replayer(tmp_path: Path) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near") as old:
        mirrored(old, far)
        old.kill()
        good = tmp_path / "good.img"
        ours("restore", far.store(), "-o", good, "--at", "good")
        words = (
            sys.executable,
            "-c",
            KILLED_AT,
            "rewind:sync",
            "promote",
            far.store(),
            "--at",
            "good",
        )
        done = subprocess.run([str(word) for word in words], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        until(lambda: bool(far.ack().get("promoted")))
        assert far.mirror().read_bytes() == good.read_bytes()
        with Mounted(far.store(), tmp_path / "mnt") as volume:
            assert volume.read_bytes() == good.read_bytes()


def test_a_store_with_the_fork_s_prefix_goes_on_without_a_copy_and_one_ahead_is_refused(
    tmp_path: Path,
) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near") as old:
        far.start()
        old.init(to=[far.url(), far.url("prefix"), far.url("ahead")])
        old.mount()
        put(old.volume, 0, os.urandom(MIB))
        for store in ("v", "prefix", "ahead"):
            old.wait_mirrored(far, store)
        ours("destination", "pause", old.image, "v")
        ours("destination", "pause", old.image, "prefix")
        put(old.volume, 0, b"only ahead has this")
        old.wait_mirrored(far, "ahead")
        old.kill()
        copies = {one: far.ack(one)["sync"]["id"] for one in ("prefix", "ahead")}
        ours("promote", far.store())
        with Mounted(far.store(), tmp_path / "mnt") as volume:
            put(volume, 2 * MIB, b"the new site")
            for one in copies:
                ours("destination", "add", far.store(), far.url(one), "--name", one)
            ours("flush", far.store(), "--wait", "applied", "--destination", "prefix")
            until(lambda: "halted" in ours("destination", "list", far.store()))
        assert far.mirror(store="prefix").read_bytes() == far.mirror().read_bytes()
        assert far.ack("prefix")["sync"]["id"] == copies["prefix"]
        assert far.ack("ahead")["sync"]["id"] == copies["ahead"]
        assert far.mirror(store="ahead").read_bytes()[:19] == b"only ahead has this"
