"""The runbook of docs/recovery.md, typed as it is written, from its first step to its last.

Two directories stand for the two hosts, plain copying for SFTP, and a moment of this run for
14:04:59.
"""

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.units import MIB
from tests.e2e.host import FarHost, Source, aimfuse, is_mountpoint, until

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.slow,
    pytest.mark.expects_warnings,
    pytest.mark.usefixtures("require_fuse", "require_root_loop"),
]

MANUAL = Path(__file__).parents[2] / "docs" / "recovery.md"
PRECIOUS = b"precious" * 1000


class Hosts:
    """What `near$` and `far$` stand for, and the lines of the runbook that are still to come."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.moment = ""
        self.mounts = [root / name for name in ("past", "fs", "vol", "near/mnt")]
        for mount in self.mounts[:3]:
            mount.mkdir()
        self._services: list[subprocess.Popen[bytes]] = []
        self._lines = iter(lines())
        tool = root / "bin" / "aimfuse"
        tool.parent.mkdir()
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m aimfuse "$@"\n')
        tool.chmod(0o755)
        self._environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}

    def type(self, begins: str) -> str:
        """Type the runbook's next line, which begins so, and return what it printed."""
        line = next(self._lines)
        assert line.startswith(begins), line
        host, words = line.split("$ ", 1)
        command = ["bash", "-c", self._here(words)]
        place = self.root / host
        if words.endswith(" &"):
            command[2] = "exec " + command[2].removesuffix(" &")
            self._services.append(
                subprocess.Popen(
                    command, cwd=place, env=self._environment, stdout=subprocess.DEVNULL
                )
            )
            return ""
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=120, cwd=place,
            env=self._environment,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def is_done(self) -> bool:
        return next(self._lines, None) is None

    def _here(self, words: str) -> str:
        far, near = self.root / "far" / "stores", self.root / "near"
        for written, meant in {
            "sftp://mirror@far/srv/aim": f"dir://{far}",
            "sftp://mirror@near/srv": f"dir://{near}",
            "/srv/aim": str(far),
            "/mnt/past": str(self.mounts[0]),
            "/mnt/fs": str(self.mounts[1]),
            "/mnt/vol": str(self.mounts[2]),
            "~/vol": str(self.mounts[3]),
            "14:04:59": self.moment,
        }.items():
            words = words.replace(written, meant)
        return words

    def close(self) -> None:
        for mount in self.mounts:
            if is_mountpoint(mount):
                subprocess.run(["umount", "-l", mount], check=False)
        for service in self._services:
            service.terminate()
            service.wait(60)


def lines() -> list[str]:
    """Return the commands of the runbook, in their order."""
    runbook = MANUAL.read_text().split("## The runbook\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", runbook, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


def lose_a_file(source: Source, far: FarHost, hosts: Hosts) -> None:
    """Write a file, note the time, and remove it again."""
    source.wait_mirrored(far, "disk")  # The past begins where the first copy ends.
    device = source.attach()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    with source.file_system(device) as place:
        (place / "table").write_bytes(PRECIOUS)
        os.sync()
        hosts.moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 1)) + "Z"
        time.sleep(1.1)
        (place / "table").unlink()
        os.sync()
    source.detach(device)


def come_back_and_write(source: Source, store: str) -> None:
    """Mount, and write as an application that does not know, until the volume takes no more.

    The *store* is not asked before something was written.
    """
    ours("destination", "pause", source.image, store)
    source.mount()
    with source.volume.open("r+b", buffering=0) as volume:
        assert takes(volume.fileno())
        ours("destination", "resume", source.image, store)
        until(lambda: not takes(volume.fileno()))


def ours(*words: object) -> None:
    """Run a command of ours, which has to succeed."""
    done = aimfuse(*words)
    assert done.returncode == 0, done.stderr


def takes(volume: int) -> bool:
    """Write, and tell whether that was taken."""
    try:
        os.pwrite(volume, b"only here" * 500, 9 * MIB)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
        return False
    return True


def phase_of(store: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        phase: str = json.loads((store / "ack.json").read_bytes())["phase"]
        return phase
    return ""


def test_the_runbook_works_as_it_is_written(tmp_path: Path, hosts: Hosts) -> None:
    past, fs, vol_far, _vol_near = hosts.mounts
    with (
        FarHost(tmp_path / "far") as far,
        Source(tmp_path / "near", name="disk.img") as near,
    ):
        far.start()
        (store,) = near.init(to=[far.url("disk")]).destinations
        near.mount()
        lose_a_file(near, far, hosts)
        near.wait_mirrored(far, "disk")

        hosts.type("far$ aimfuse view")
        hosts.type("far$ mount")
        assert (fs / "table").read_bytes() == PRECIOUS
        (fs / "table").write_bytes(b"try this")
        hosts.type("far$ umount")
        hosts.type("far$ aimfuse umount")
        assert not is_mountpoint(past)

        hosts.type("far$ aimfuse restore")
        held = subprocess.run(
            ["debugfs", "-R", "cat table", tmp_path / "far" / "was.img"],
            check=True, capture_output=True,
        )  # fmt: skip
        assert held.stdout == PRECIOUS
        assert "the same" in hosts.type("near$ aimfuse verify")

        near.kill()
        hosts.type("far$ aimfuse promote")
        hosts.type("far$ aimfuse mount")
        with (vol_far / "disk.img").open("r+b", buffering=0) as volume:
            os.pwrite(volume.fileno(), b"written over there", 5 * MIB)
            os.fsync(volume.fileno())

        come_back_and_write(near, store.name)
        hosts.type("near$ aimfuse umount")
        near.wait_ended()
        assert "the image itself" in hosts.type("near$ aimfuse branch list")
        hosts.type("near$ aimfuse rejoin")
        hosts.type("near$ aimfuse replay")
        hosts.type("far$ aimfuse destination url")
        joined = near.state_dir / "store"
        until(lambda: phase_of(joined) == "consistent", lambda: phase_of(joined))

        hosts.type("far$ aimfuse switchover")
        hosts.type("near$ aimfuse mount")
        data = near.volume.read_bytes()
        assert data[5 * MIB :].startswith(b"written over there")
        assert not data[9 * MIB :].startswith(b"only here")
        assert hosts.is_done()
