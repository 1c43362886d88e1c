"""A source without a driver: image, checkpoint, settings and a spool of real AIM files."""

import random
from pathlib import Path

from aimfuse.config import DestinationConfig, GroupConfig, save
from aimfuse.disk import Disk
from aimfuse.driver.folding import fold_files, folded_through
from aimfuse.errors import StateLost
from aimfuse.journal.fold import Fold
from aimfuse.journal.header import NO_DIGEST, Identity, Parent
from aimfuse.journal.journal import Head
from aimfuse.journal.names import JournalName
from aimfuse.journal.records import RecordType, VolumeEntry, encode_table
from aimfuse.journal.slots import Slots
from aimfuse.journal.spool import release, sealed_names
from aimfuse.journal.writer import AimWriter
from aimfuse.units import SECOND_NS, Epoch, FileNumber, Seq, VolumeId
from tests.dice import draw_seed

GROUP = bytes(range(16))
BLOCK = 4096
VOLUME = VolumeId(1)
START_NS = 1_700_000_000 * SECOND_NS


class Wall:
    """A wall clock that stands still unless told otherwise, and may step."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns


class SampleSource:
    """Plays the driver: writes to the image and seals journal files, one record each or more."""

    def __init__(self, root: Path, *destinations: DestinationConfig, blocks: int = 16) -> None:
        self.disk = Disk()
        self.wall = Wall()
        self.root = root
        self.image = root / "v.img"
        self.state_dir = root / "v.img.aim"
        self.spool = self.state_dir / "spool"
        self.spool.mkdir(parents=True)
        self.image.write_bytes(b"")
        self.head = Head()
        self.epoch = Epoch(1)
        self.parent = Parent()
        self.size = blocks * BLOCK
        with self.image.open("r+b") as file:
            file.truncate(self.size)
        self.configure(*destinations)
        self.is_passed_on = False
        self._slots = Slots(self.disk, self.state_dir / "checkpoint", "checkpoint")
        self.checkpoint()

    def configure(self, *destinations: DestinationConfig) -> None:
        save(GroupConfig(self.state_dir, self.image, destinations=destinations))

    def fill(self, *blocks: int) -> None:
        """Put data into the image that was there before it was mirrored."""
        with self.image.open("r+b") as file:
            for block in blocks:
                file.seek(block * BLOCK)
                file.write(bytes([block % 255 + 1]) * BLOCK)

    def write(self, block: int, byte: int, records: int = 1) -> JournalName:
        """Seal the next journal file with writes to *block*, and apply them to the image."""
        data = bytes([byte]) * BLOCK
        who = Identity(
            GROUP, self.epoch, FileNumber(self.head.number + 1), self.wall.now_ns,
            self.parent if self.parent.epoch != self.epoch else Parent(),
        )  # fmt: skip
        writer = AimWriter.create(self.disk, self.spool, who, None)
        first = self.head.seq if self.head.epoch == self.epoch else Seq(0)
        table = encode_table([VolumeEntry(VOLUME, "v.img", self.size)])
        writer.mark(RecordType.TABLE, first, 0, self.wall.now_ns, table)
        for seq in range(first + 1, first + records + 1):
            writer.append(
                RecordType.WRITE, VOLUME, Seq(seq), block * BLOCK, BLOCK, self.wall.now_ns, data
            )
        seal = writer.seal(self.head.digest, self.epoch, FileNumber(who.number + 1))
        writer.close()
        name = JournalName(who.epoch, who.number)
        writer.path.rename(self.spool / name.sealed)
        self.head = Head(who.epoch, who.number, Seq(first + records), seal.digest, self.wall.now_ns)
        with self.image.open("r+b") as file:
            file.seek(block * BLOCK)
            file.write(data)
        return name

    def next_epoch(self) -> None:
        """Begin a new epoch, as after a recovery that dropped a tail."""
        self.parent = self.head.as_parent()
        self.epoch = Epoch(self.epoch + 1)

    def leave_open_file(self) -> Path:
        """Leave an unsealed file as the driver has one; it must never be shipped."""
        who = Identity(GROUP, self.epoch, FileNumber(self.head.number + 1), self.wall.now_ns)
        writer = AimWriter.create(self.disk, self.spool, who, None)
        writer.append(RecordType.FLUSH, 0, Seq(self.head.seq + 1), 0, 0, self.wall.now_ns)
        writer.close()
        return writer.path

    def checkpoint(self, *, clean: bool = True, gap: str | None = None) -> None:
        """Say that the image holds everything up to the newest sealed file."""
        head = self.head
        self._slots.write({
            "group": GROUP.hex(), "epoch": head.epoch, "number": head.number, "seq": head.seq,
            "digest": head.digest.hex(), "time_ns": head.time_ns, "running_epoch": self.epoch,
            "parent": {"epoch": 0, "seq": 0, "digest": NO_DIGEST.hex()}, "clean": clean,
            "next_volume": 2, "fingerprint": None, "gap": gap,
            "passed_on": self.is_passed_on,
            "volumes": [{
                "id": VOLUME, "name": "v.img", "size": self.size,
                "inode": self.image.stat().st_ino,
            }],
        })  # fmt: skip

    def fold(self, name: str, through: int | None = None) -> Fold:
        """Let the files that a destination has not got go, as the driver does when full."""
        directory = self.state_dir / "destinations" / name
        pin = self.cursor(name).get("pin") or 0
        assert isinstance(pin, int)
        through = self.head.number if through is None else through
        start = max(pin, folded_through(self.disk, directory))
        names = [
            one for one in sealed_names(self.disk, self.spool) if start < one.number <= through
        ]
        fold = fold_files(self.disk, self.spool, directory, pin, names)
        release(self.disk, self.spool, FileNumber(through))
        return fold

    def cursor(self, name: str) -> dict[str, object]:
        """Return a destination's cursor as the driver reads it."""
        base = self.state_dir / "destinations" / name / "cursor"
        try:
            return Slots(self.disk, base, "cursor").read() or {}
        except StateLost:  # Just being written for the first time.
            return {}

    def contents(self) -> bytes:
        return self.image.read_bytes()


def make_dice(seed: int | None = None) -> random.Random:
    """Return dice; without a *seed* it is drawn and printed."""
    return random.Random(draw_seed() if seed is None else seed)
