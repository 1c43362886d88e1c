"""An old source with a fork behind it, without a driver, and a far end that is only a report."""

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aimfuse.config import GroupConfig, save
from aimfuse.disk import Disk
from aimfuse.driver.checkpoint import CheckpointFile
from aimfuse.driver.engine import Engine
from aimfuse.driver.group import (
    GroupLimits,
    GroupPaths,
    close_group,
    drain,
    init_group,
    open_group,
)
from aimfuse.journal.contents import fold_into, read_contents
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.journal import Head
from aimfuse.journal.rewound import REWOUND, Rewound
from aimfuse.journal.slots import Slots
from aimfuse.journal.spool import release, sealed_names
from aimfuse.replay.state import StoreState
from aimfuse.units import KIB, MIB

BLOCK = 4 * KIB
BLOCKS = 64
LIMITS = GroupLimits(file_bytes=64 * KIB, memory_bytes_max=MIB, size_max=2 * BLOCKS * BLOCK)


class OldSource:
    """One image, or with *names* a directory of them; `fork` makes the present end the fork."""

    def __init__(self, root: Path, names: tuple[str, ...] = ()) -> None:
        self.root = root
        self.far = root / "far"
        self.image = root / "v.img"
        (self.far / "inbox").mkdir(parents=True)
        if names:
            self.image.mkdir()
        for path in [self.image / one for one in names] or [self.image]:
            path.touch()
            os.truncate(path, BLOCKS * BLOCK)
        state_dir = root / "v.img.aim"
        self.config = GroupConfig(state_dir, self.image)
        self.paths = GroupPaths(self.image, state_dir, self.config.spool)
        init_group(Disk(), self.paths)
        save(self.config)
        self.head = Head()
        self.at_fork: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"dir://{self.far}"

    @contextmanager
    def served(self, *, clean: bool = True) -> Iterator[Engine]:
        """Open the group for the block; an end that is not *clean* leaves it to recovery."""
        engine = open_group(Disk(), self.paths, LIMITS)
        yield engine
        if clean:
            close_group(Disk(), engine)
        else:
            drain(engine)
            engine.journal.close()
            engine.images.close()

    def write(self, *blocks: int, byte: int = 1, clean: bool = True) -> None:
        """Write blocks of the first volume, in a life of their own."""
        with self.served(clean=clean) as engine:
            volume = next(iter(engine.volumes))
            for block in blocks:
                engine.write(volume, block * BLOCK, bytes([byte]) * BLOCK)

    def live(self, dice: random.Random, count: int) -> None:
        """Do *count* random things of all kinds."""
        with self.served() as engine:
            for _ in range(count):
                do_something(engine, dice, is_directory=self.image.is_dir())
                if dice.random() < 0.2:
                    roll(engine)

    def fork(self) -> Head:
        """Let the other side go on from here: its store says that it was promoted."""
        checkpoint = CheckpointFile(Disk(), self.config.state_dir).read()
        assert checkpoint is not None
        self.head = checkpoint.head
        self.at_fork = self.contents()
        promoted = {"epoch": self.head.epoch + 1, "fork": self.head.to_json(), "at_ns": 1}
        report = {
            "version": 1, "generation": 1, "group": checkpoint.group.hex(), "phase": "promoted",
            "applied": self.head.to_json(), "promoted": promoted,
        }  # fmt: skip
        (self.far / "ack.json").write_text(json.dumps(report))
        return self.head

    def go_back(self, fork: Head) -> Rewound:
        """Let the other side go on from *fork*, over all up to the present end, and say so.

        The files that it goes back over leave the spool here, as it had confirmed them.
        """
        contents = self.at_fork
        newest = self.fork()
        report = json.loads((self.far / "ack.json").read_bytes())
        report["applied"] = report["promoted"]["fork"] = fork.to_json()
        (self.far / "ack.json").write_text(json.dumps(report))
        names = [one for one in sealed_names(Disk(), self.paths.spool) if one.number > fork.number]
        files = [read_contents(Disk(), self.paths.spool / one.sealed) for one in names]
        touched = DirtyMap()
        fold_into(touched, files)
        found = Rewound(fork, newest, files[0].table, touched)
        (self.far / REWOUND).write_bytes(found.encode())
        release(Disk(), self.paths.spool, newest.number)
        self.head, self.at_fork = fork, contents
        return found

    def contents(self) -> dict[str, bytes]:
        """Return what the images hold, by name."""
        if self.image.is_dir():
            return {one.name: one.read_bytes() for one in self.image.iterdir()}
        return {self.image.name: self.image.read_bytes()}


def roll(engine: Engine) -> None:
    """Begin the next journal file, if the active one holds anything."""
    active = engine.journal.active
    if active is not None and active.record_count:
        if engine.journal.ready is None:
            engine.journal.adopt(engine.journal.make_ready())
        engine.roll()
        drain(engine)


def do_something(engine: Engine, dice: random.Random, *, is_directory: bool) -> None:
    drain(engine)
    volumes = [one for one in engine.volumes if not one.removed]
    kind = dice.random()
    if is_directory and (kind < 0.1 or not volumes):
        engine.create(f"new-{dice.getrandbits(40)}")
        return
    volume = dice.choice(volumes)
    if is_directory and kind < 0.15:
        engine.remove(volume)
    elif is_directory and kind < 0.2:
        engine.rename(volume, dice.choice([f"other-{dice.getrandbits(40)}", volumes[0].name]))
    elif kind < 0.3:
        engine.truncate(volume, dice.randrange(BLOCKS) * BLOCK)
    elif kind < 0.4:
        engine.zero(volume, dice.randrange(BLOCKS) * BLOCK, BLOCK)
    else:
        data = dice.randbytes(dice.randrange(1, 3 * BLOCK))
        engine.write(volume, dice.randrange(BLOCKS * BLOCK), data)


def state_of(store: Path) -> StoreState:
    """Return what a store has noted of itself."""
    data = Slots(Disk(), store / "state", "state").read()
    assert data is not None
    return StoreState.from_json(data)
