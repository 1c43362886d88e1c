"""SIGKILL of either end at labelled steps of folding, of a staged copy and of its switch.

One scene reaches them all: a destination that is away while several times the spool is written,
with volumes made, removed, grown and cut meanwhile; then it comes back. What runs when: always,
a relay, in which each process dies at every label that it comes by, the first time. With
AIMFUSE_SWEEP=long also one life for each label and its first, second and fourth time.
"""

import os
import random
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from aimfuse.config import DestinationConfig
from aimfuse.units import KIB, MIB
from tests.e2e.crash.machine import PATIENCE_S, REPO, Cruelty, Far, Machine, eventually
from tests.e2e.crash.names import DirectorySource, Held, held

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = os.environ.get("AIMFUSE_SWEEP") == "long"
NEVER = "no such label"
PAGE = 4 * KIB
VOLUME_BYTES = 512 * KIB
SPOOL_BYTES = MIB

_SLOT = ("open", "write", "sync", "rename", "sync_dir")
_PUBLISHED = ("create", "write", "sync", "rename", "sync_dir")

FOLDER = {
    *(f"fold:{one}" for one in (*_SLOT, "read", "unlink")), *(f"dirty:{one}" for one in _PUBLISHED),
    "contents:open", "spool:recycle", "spool:release_sync_dir",
}  # fmt: skip
COPIER = {
    "retention:open", "fold:read", *(f"dirty:{one}" for one in _PUBLISHED), "todo:unlink",
    "sync:mkdir", "sync:open", "sync:rename", "sync:unlink", "request:unlink", "route:mkdir",
    "route:create", "route:write", "route:unlink", "cursor:write", "cursor:sync",
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
    "staging:unlink_left": "left by an attempt that failed, not by one that was killed",
}


def changed(volume: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    """Return *volume* after the writes."""
    data = bytearray(volume)
    for at, page in writes:
        data[at : at + len(page)] = page
    return bytes(data)


@dataclass
class Scene:
    """A group of volumes, its far side, and what an application has made sure of."""

    machine: Machine
    place: Path
    dice: random.Random
    volumes: Held = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bring a mirror up that leaves one volume out and passes on what it receives."""
        self.place.mkdir(exist_ok=True)
        self.source = DirectorySource(self.machine, self.place)
        self.far = Far(self.machine, self.place)
        self.source.begin(DestinationConfig("v", self.far.url, exclude=("own-*",)))
        self.source.configure(
            lambda old: replace(old, journal=replace(old.journal, spool_bytes_max=SPOOL_BYTES))
        )
        self.far.start()
        self.source.must_mount()
        for name in ("a", "cut", "early", "own-notes"):
            self._create(name, self.dice.randbytes(VOLUME_BYTES // 2))
        self.source.flush()
        forward = self.far.store / "forward"
        forward.mkdir()
        (forward / "group.toml").write_text('image = "../mirror"')
        self.write(8)
        self.wait_mirrored()
        self.far.kill()

    def _create(self, name: str, data: bytes) -> None:
        with (self.source.mountpoint / name).open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        self.volumes[name] = data

    def remove(self, name: str) -> None:
        """Remove a volume."""
        (self.source.mountpoint / name).unlink()
        del self.volumes[name]

    def leave(self) -> None:
        """Take the far side away, and change which volumes there are, and their sizes."""
        self.far.stores.rename(self.place / "away")
        self._create("late", self.dice.randbytes(VOLUME_BYTES // 4))
        self.remove("early")
        os.truncate(self.source.mountpoint / "cut", PAGE)
        self.volumes["cut"] = self.volumes["cut"][:PAGE]
        os.truncate(self.source.mountpoint / "a", VOLUME_BYTES)
        self.volumes["a"] += bytes(VOLUME_BYTES // 2)
        self.write(SPOOL_BYTES // PAGE // 4)

    def come_back(self, cruelty: Cruelty | None) -> None:
        """Bring the far side back."""
        (self.place / "away").rename(self.far.stores)
        self.far.start(cruelty)

    def write(self, pages: int) -> None:
        """Write so many pages, some to each volume, and insist until they are durable."""
        for _ in range(0, pages, 16):
            name = self.dice.choice(("a", "a", "a", "late", "own-notes"))
            if name not in self.volumes:
                continue
            size = len(self.volumes[name])
            places = [self.dice.randrange(size // PAGE) * PAGE for _ in range(16)]
            writes = [(at, self.dice.randbytes(PAGE)) for at in places]
            self._insist(self.source.mountpoint / name, writes)
            self.volumes[name] = changed(self.volumes[name], writes)

    def _insist(self, path: Path, writes: list[tuple[int, bytes]]) -> None:
        """Write, again from the first one when the driver dies under it."""
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                fd = os.open(path, os.O_RDWR)
                try:
                    for at, page in writes:
                        os.pwrite(fd, page, at)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError:
                assert time.monotonic() < end_s, "the volume never came back"
                self._mount_again()
            else:
                return

    def _mount_again(self) -> None:
        """Mount if the driver has died and nobody else brings it back."""
        time.sleep(0.02)
        if self.source.exit_code() is not None:
            self.source.must_mount()

    def wait_mirrored(self) -> None:
        """Wait until the mirror is what the volumes are, but for the one that is left out."""
        wanted = {name: data for name, data in self.volumes.items() if name != "own-notes"}
        mirror = self.far.store / "mirror"

        def is_mirrored() -> bool:
            self._mount_again()
            return _held_quietly(mirror) == wanted

        eventually(is_mirrored, "the mirror is the same")

    def ask_for_a_part(self) -> None:
        """Have some of the mirror copied by command, and wait until it is done."""
        self.machine.run(
            "sync", self.source.image, "v", "--state", self.source.state, "--range", "a:0+64KiB"
        )
        asked = self.source.state / "destinations" / "v" / "request.json"
        eventually(lambda: not asked.exists(), "the copy has begun")
        eventually(lambda: self.source.destination("v").get("sync") is None, "the copy is done")

    def end(self) -> None:
        """Unmount; the images hold what the application was promised."""
        assert held(self.source.mountpoint) == self.volumes
        self.source.unmount()
        assert held(self.source.image) == self.volumes
        self.far.kill()
        assert not list(self.far.store.rglob("*.part"))


def _held_quietly(directory: Path) -> Held:
    try:
        return held(directory)
    except OSError:  # A name that went while we looked.
        return {}


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
