"""SIGKILL of either end at labelled steps of folding, of a staged copy and of its switch.

One scene reaches them all, see scene.py. What runs when: always, a relay, in which each process
dies at every label that it comes by, the first time. With AIMFUSE_SWEEP=long also one life for
each label and its first, second and fourth time.
"""

import random
import re

import pytest

from tests.dice import LONG
from tests.e2e.crash.machine import REPO, Cruelty, Machine
from tests.e2e.crash.names import held
from tests.e2e.crash.scene import PAGE, SPOOL_BYTES, Scene

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(1800)]

NEVER = "no such label"
_SLOT = ("open", "write", "sync", "rename", "sync_dir")
_PUBLISHED = ("create", "write", "sync", "rename", "sync_dir")

FOLDER = {
    *(f"fold:{one}" for one in (*_SLOT, "read", "unlink")), *(f"dirty:{one}" for one in _PUBLISHED),
    "contents:open", "spool:recycle", "spool:release_sync_dir",
}  # fmt: skip
COPIER = {
    "retention:open", "fold:read", *(f"dirty:{one}" for one in _PUBLISHED), "todo:unlink",
    "sync:mkdir", "sync:open", "sync:rename", "sync:unlink", "sync:begun", "request:unlink",
    "route:mkdir", "route:create", "route:write", "route:unlink", "cursor:write", "cursor:sync",
}  # fmt: skip
SWITCHER = {
    "staging:link", "staging:sync_dir", "staging:tidy", "staging:unlink", "switch:look",
    "switch:open", "switch:cut", "switch:sync", "switch:size", "switch:size_sync",
    "switch:sync_dir", "store-state:write", "store-state:sync", "mirror:unlink", "volumes:tidy",
    "volumes:unlink", "forward:mkdir", "forward:link", "forward:sync_dir", "forward:volume",
    "forward:write",
}  # fmt: skip
OF_COPIES = (
    "retention:", "fold:", "dirty:", "todo:", "sync:", "request:", "route:", "cursor:", "staging:",
    "switch:", "store-state:", "mirror:unlink", "volumes:", "forward:",
)  # fmt: skip
"""At the others these processes die in every run of test_kill_anybody.py."""

MODULES = (
    "journal/fold.py", "journal/contents.py", "driver/folding.py", "coordinator/todo.py",
    "coordinator/request.py", "coordinator/sync.py", "coordinator/route.py",
    "coordinator/retention.py", "replay/staging.py", "replay/switch.py", "replay/forward.py",
)  # fmt: skip
ELSEWHERE = {
    "forward:unlink": "where the spool of the next hop is full: replay/test_forward.py",
    "forward:end": "where the store is promoted: replay/test_promote.py",
    "forward:end_sync_dir": "the same",
    "staging:unlink_left": "left by an attempt that failed, not by one that was killed",
}


def mount_relay(scene: Scene) -> None:
    """Mount a driver that dies once at each of the labels of folding."""
    source = scene.source
    only = ("fold:", "dirty:", "contents:", "spool:")
    source.machine.will_be_mounted(source.mountpoint)
    source.driver = source.machine.start(
        "mount", source.image, source.mountpoint, "--state", source.state,
        cruelty=Cruelty("mount", do="relay", once=False, only=only),
    )  # fmt: skip


def test_either_end_dies_once_at_every_step_of_folding_copying_and_switching(
    machine: Machine, seed: int
) -> None:
    scene = Scene(machine, machine.root / "scene", random.Random(seed))
    scene.leave()
    scene.source.kill()
    mount_relay(scene)
    for _ in range(100):
        scene.write(SPOOL_BYTES // PAGE // 4)
        if machine.met("mount") >= FOLDER:
            break
    print("mount died at", *sorted(machine.met("mount")))
    assert machine.met("mount") >= FOLDER, FOLDER - machine.met("mount")
    scene.source.kill()
    relay = Cruelty("ship,replay", do="relay", once=False, only=OF_COPIES)
    scene.source.must_mount(relay)
    scene.come_back(relay)
    scene.wait_mirrored()
    scene.ask_for_a_part()
    scene.remove("late")
    scene.write(64)
    scene.wait_mirrored()
    scene.end()
    for role, wanted in (("ship", COPIER), ("replay", SWITCHER)):
        print(role, "died at", *sorted(machine.met(role)))
        assert machine.met(role) >= wanted, wanted - machine.met(role)


def test_no_step_of_folding_copying_and_switching_is_left_out() -> None:
    label = re.compile(r'"([a-z-]+:[a-z_-]+)"')
    sources = [(REPO / "src" / "aimfuse" / one).read_text() for one in MODULES]
    found = {one for text in sources for one in label.findall(text)}
    assert found
    assert found <= FOLDER | COPIER | SWITCHER | ELSEWHERE.keys()


if LONG:

    @pytest.mark.parametrize("role", ["mount", "ship", "replay"])
    def test_either_end_is_killed_at_any_step_of_folding_copying_and_switching(
        machine: Machine, seed: int, role: str
    ) -> None:
        live(machine, "rehearsal", seed, Cruelty(role, NEVER))
        steps = machine.steps()
        assert len(steps) > 20, steps
        for label, nth in steps:
            live(machine, f"{label}-{nth}", seed, Cruelty(role, label, nth))


def live(machine: Machine, name: str, seed: int, cruelty: Cruelty) -> None:
    """Play the scene while one process is treated with *cruelty*."""
    scene = Scene(machine, machine.root / name, random.Random(seed))
    scene.leave()
    scene.source.kill()
    scene.source.mount(None if cruelty.role == "replay" else cruelty)
    scene.write(3 * SPOOL_BYTES // PAGE)
    scene.come_back(cruelty if cruelty.role == "replay" else None)
    with scene.far.kept_running():
        scene.wait_mirrored()
        scene.source.try_to_unmount()
        if scene.source.exit_code() != 0:
            scene.source.must_mount()
            scene.source.unmount()
    assert held(scene.source.image) == scene.volumes
    scene.far.kill()
    print(cruelty, "not met" if machine.armed.exists() else "died")
