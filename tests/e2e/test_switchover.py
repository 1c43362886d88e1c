"""Handed over by plan, killed in the middle, and back again: nothing is lost, nothing is copied."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from aimfuse.units import MIB
from tests.e2e.crash.machine import REPO, SEAM
from tests.e2e.host import AIMFUSE, FarHost, MountFailed, Source, aimfuse
from tests.e2e.replaying import replaying, wait_mirrored
from tests.e2e.writing import put

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.usefixtures("require_fuse")]

HERE, THERE, BACK = (word.ljust(4096) for word in (b"here", b"there", b"back"))


def killed_at(label: str, *arguments: object) -> None:
    """Run a command that is killed at the first step of that label."""
    plan = {
        "role": str(arguments[0]),
        "at": label,
        "nth": 1,
        "do": "kill",
        "times": 1,
        "only": [""],
    }
    env = {
        **os.environ,
        "PYTHONPATH": f"{REPO / 'src'}:{SEAM}",
        "AIMFUSE_CRUELTY": json.dumps(plan),
    }
    command = (*AIMFUSE, *map(str, arguments))
    done = subprocess.run(command, check=False, capture_output=True, env=env, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def done(*arguments: object) -> str:
    """Run a command, which has to succeed, and return what it printed."""
    said = aimfuse(*arguments)
    assert said.returncode == 0, said.stderr
    return said.stdout


@pytest.mark.expects_warnings
def test_handed_over_and_back_with_a_kill_at_each_turn(tmp_path: Path) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near") as near:
        far.start()
        near.init(to=[far.url()])
        near.mount()
        put(near.volume, 0, os.urandom(MIB))
        put(near.volume, 2 * MIB, HERE)
        killed_at("superseded:sync_dir", "switchover", near.image, "v")
        near.wait_ended()
        with pytest.raises(MountFailed, match="switch-over to v is under way"):
            near.mount()
        told = json.loads(done("switchover", near.image, "v", "--json"))
        assert told["state"] == "promoted"

        killed_at("rejoin:rename", "rejoin", near.image, far.url())
        joined = json.loads(done("rejoin", near.image, far.url(), "--json"))
        assert (joined["writes"], joined["differing_bytes"], joined["branch"]) == (0, 0, None)
        store, home = Path(joined["store"]), far.store() / "source"
        with Source.at(tmp_path / "there", far.store(), home) as there, replaying(store):
            there.mount()
            there.image = far.mirror()
            assert there.volume.read_bytes()[2 * MIB :].startswith(HERE)
            put(there.volume, 3 * MIB, THERE)
            done("destination", "url", far.store(), "former", f"dir://{store}")
            wait_mirrored(there, store)

            put(there.volume, 4 * MIB, THERE)
            done("switchover", far.store(), "former", "--rejoin")
            there.wait_ended()
        with Source.at(tmp_path / "back", store, store / "source") as back, replaying(store):
            back.mount()
            back.image = store / "mirror" / "v.img"
            held = back.volume.read_bytes()
            assert held[2 * MIB :].startswith(HERE)
            assert held[3 * MIB :].startswith(THERE)
            assert held[4 * MIB :].startswith(THERE)
            put(back.volume, 5 * MIB, BACK)
            done("destination", "url", store, "former", far.url())
            wait_mirrored(back, far.store())
            back.wait_applied()
            assert far.mirror().read_bytes() == back.volume.read_bytes()
            assert near.image.read_bytes() == back.volume.read_bytes()
            assert back.umount() == 0
