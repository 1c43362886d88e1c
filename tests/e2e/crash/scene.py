"""A scene that reaches every step of folding, of a staged copy and of its switch.

A destination is away while more than the spool holds is written, and volumes are made, removed,
grown and cut; then it comes back. It gets only some of the volumes, and passes them on.
"""

import os
import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from aimfuse.config import DestinationConfig
from aimfuse.manager.files import read_slots
from aimfuse.units import KIB, MIB
from tests.e2e.crash.machine import PATIENCE_S, Cruelty, Far, Machine, eventually
from tests.e2e.crash.names import DirectorySource, Held, held

PAGE = 4 * KIB
VOLUME_BYTES = 512 * KIB
SPOOL_BYTES = MIB


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

        eventually(is_mirrored, "the mirror is the same", self.machine.deaths)

    def ask_for_a_part(self) -> None:
        """Have some of the mirror copied by command, and wait until it is done."""
        self.machine.run(
            "sync", self.source.image, "v", "--state", self.source.state, "--range", "a:0+64KiB"
        )
        books = self.source.state / "destinations" / "v"
        request, deaths = books / "request.json", self.machine.deaths
        eventually(lambda: not request.exists(), "the copy has begun", deaths)
        eventually(lambda: not _is_copying(books), "the copy is done", deaths)

    def end(self) -> None:
        """Unmount; the images hold what the application was promised."""
        assert held(self.source.mountpoint) == self.volumes
        self.source.unmount()
        assert held(self.source.image) == self.volumes
        self.far.kill()
        self.far.finish()  # And tidy up what it was just writing.
        assert not self.far.unfinished()


def _is_copying(books: Path) -> bool:
    """Ask the cursor: the status of a coordinator that was killed is one of before."""
    cursor, problem = read_slots(books / "cursor")
    assert cursor is not None, problem
    return cursor["sync"] is not None


def _held_quietly(directory: Path) -> Held:
    try:
        return held(directory)
    except OSError:  # A name that went while we looked.
        return {}
