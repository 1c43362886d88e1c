"""Drive a group on a simulated disk as the pump does, beside a model that is a dictionary.

The model knows what the volumes hold after each record of the running epoch. After a crash,
`recover` opens the group on what is left and checks the promises:

S1  every record that an fsync had acknowledged is there;
S2  images and reads are what the model says for the last record of the recovered journal;
S3  so the state is a prefix of what was accepted, in order;
S4  no byte of a record reaches an image before that record is durable (checked at each write);
S6  numbers go on without holes, a new epoch names its parent;
P5  no sealed file ever showed a record that the recovered journal lacks;
P7  no sealed file is missing that was not released.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from aimfuse.driver.engine import Engine
from aimfuse.driver.group import GroupLimits, GroupPaths, close_group, init_group, open_group
from aimfuse.driver.volumes import Volume
from aimfuse.errors import HaltedError, ImageMismatch
from aimfuse.journal.journal import Head
from aimfuse.journal.names import SEALED, JournalName, parse
from aimfuse.journal.reader import check_sealed
from aimfuse.journal.recovery import follow, recover
from aimfuse.journal.spool import release
from aimfuse.units import FileNumber
from tests.disks.machine import Mutation
from tests.disks.simdisk import SimDisk
from tests.disks.simpath import SimPath

HOST = SimPath("/host")
STATE = HOST / "state"
SPOOL = STATE / "spool"
IMAGE = HOST / "v.img"
IMAGES = HOST / "images"
FILE_BYTES = 40 * 1024
SIZE_MAX = 64 * 1024
FIRST_BYTES = bytes(1 + at % 250 for at in range(10_000))
PATTERN = bytes(1 + at * at % 251 for at in range(2 * len(FIRST_BYTES)))

Contents = dict[str, bytes]
Op = tuple[str | int, ...]

LIMITS = GroupLimits(FILE_BYTES, memory_bytes_max=1 << 20, size_max=SIZE_MAX)


@dataclass(slots=True)
class Model:
    """What a run promised: per record of the epoch the contents, and what was shown of them."""

    history: dict[int, Contents]
    base: Head = field(default_factory=Head)
    epoch: int = 1
    acked: int = 0
    released: int = 0
    shown: dict[int, bytes] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.history)

    @property
    def now(self) -> Contents:
        return self.history[self.last]


class Rig:
    """One group on one disk: the engine, its model, and the steps of the pump."""

    def __init__(
        self, disk: SimDisk, *, directory: bool = False, limits: GroupLimits = LIMITS
    ) -> None:
        self.disk = disk
        self.limits = limits
        self.paths = GroupPaths(IMAGES if directory else IMAGE, STATE, SPOOL)
        self._stamp = 0
        self._may_reach_image: tuple[int, int] = (0, 0)
        self._durable: tuple[int, Head] | None = None

    @classmethod
    def create(cls, *, directory: bool = False, limits: GroupLimits = LIMITS) -> "Rig":
        disk = SimDisk(Path(HOST), Path(IMAGES))
        # A directory of images is renamed in at the users' wish, between two syncs: like any
        # program that renames, it relies on the file system to keep the order of one name.
        disk.names_in_order = directory
        rig = cls(disk, directory=directory, limits=limits)
        name = "a" if directory else IMAGE.name
        disk.plant(Path(rig.image(name)), FIRST_BYTES)
        SimPath.use(disk)
        init_group(disk, rig.paths)
        rig.model = Model({0: {name: FIRST_BYTES}})
        rig.engine = open_group(disk, rig.paths, limits)
        rig._watch()
        return rig

    model: Model
    engine: Engine

    @property
    def directory(self) -> bool:
        return self.paths.image == IMAGES

    def image(self, name: str) -> Path:
        return IMAGES / name if self.directory else IMAGE

    def survivor(self, disk: SimDisk) -> "Rig":
        """Return a rig that recovered *disk*; this one stays as it was, for the next cut."""
        other = Rig(disk, directory=self.directory, limits=self.limits)
        other._stamp = self._stamp
        other.model = replace(
            self.model, history=dict(self.model.history), shown=dict(self.model.shown)
        )
        other.recover(disk)
        return other

    # Operations, by name. Each first says what the model expects, then does it.

    def do(self, op: Op) -> None:
        """Carry out one operation; an `OSError` halts the engine where the pump halts it."""
        name, *args = op
        try:
            getattr(self, f"do_{name}")(*args)
        finally:
            self._forget_unaccepted()
            self._note_shown()

    def try_(self, op: Op) -> bool:
        """Carry out one operation; tell whether it came to its end."""
        try:
            self.do(op)
        except (OSError, HaltedError, ImageMismatch):
            return False
        return True

    @contextmanager
    def _halting(self, *, when_full: bool = False) -> Iterator[None]:
        """Halt the engine on a disk error; a full disk is tried again, but for checkpoints."""
        try:
            yield
        except OSError as exc:
            if when_full or exc.errno != errno.ENOSPC:
                self.engine.halted = self.engine.halted or str(exc)
            raise

    def do_write(self, name: str, offset: int, length: int) -> None:
        data = self._payload(length)
        volume = self._volume(name)
        if volume is not None and self._room(length):
            self._expect(pasted(self.model.now, name, offset, data))
            self.engine.write(volume, offset, data)

    def do_holey(self, name: str) -> None:
        """Write data, a block of zeros and data: three records."""
        volume = self._volume(name)
        if volume is None or not self._room(3 * 4096):
            return
        first, third = self._payload(4096), self._payload(4096)
        state = self.model.now
        for at, part in ((0, first), (4096, bytes(4096)), (8192, third)):
            state = pasted(state, name, at, part)
            self._expect(state)
        self.engine.write(volume, 0, first + bytes(4096) + third)

    def do_zero(self, name: str, offset: int, length: int) -> None:
        volume = self._volume(name)
        if volume is not None and self._room(0):
            self._expect(pasted(self.model.now, name, offset, bytes(length)))
            self.engine.zero(volume, offset, length)

    def do_truncate(self, name: str, size: int) -> None:
        volume = self._volume(name)
        if volume is not None and volume.size_bytes != size and self._room(0):
            data = self.model.now[name]
            self._expect({**self.model.now, name: data[:size].ljust(size, b"\0")})
            self.engine.truncate(volume, size)

    def do_create(self, name: str) -> None:
        if self.directory and name not in self.model.now and self._room(100):
            self._expect({**self.model.now, name: b""})
            self.engine.create(name)

    def do_rename(self, old: str, new: str) -> None:
        volume = self._volume(old)
        if self.directory and volume is not None and old != new and self._room(100):
            state = dict(self.model.now)
            state[new] = state.pop(old)
            self._expect(state)
            self.engine.rename(volume, new)

    def do_unlink(self, name: str) -> None:
        volume = self._volume(name)
        if self.directory and volume is not None and self._room(0):
            self._expect({n: data for n, data in self.model.now.items() if n != name})
            self.engine.remove(volume)

    def do_fsync(self) -> None:
        volume = next(iter(self.engine.volumes), None)
        if volume is None or not self._room(0):
            return
        self._expect(self.model.now)  # A FLUSH record, if there is anything to flush.
        seq = self.engine.flush(volume)
        self.do_commit()
        if self.engine.journal.durable_seq >= seq:
            self.model.acked = max(self.model.acked, seq)

    def do_commit(self) -> None:
        commit = self.engine.begin_commit()
        if commit is not None:
            with self._halting():
                self.engine.journal.sync(commit)
            self.engine.finish_commit(commit)

    def do_apply(self) -> None:
        while self.engine.halted is None and (batch := self.engine.begin_apply()):
            self._may_reach_image = (self.engine.journal.epoch, batch[-1].seq)
            with self._halting():
                self.engine.images.apply(batch)
            self._may_reach_image = (0, 0)
            self.engine.finish_apply(batch)

    def do_roll(self) -> None:
        active = self.engine.journal.active
        if active is not None and active.record_count and self.engine.halted is None:
            self._make_ready()
            self.engine.roll()

    def do_seal(self) -> None:
        if self.engine.journal.closing and self.engine.halted is None:
            with self._halting():
                head = self.engine.journal.seal_next()
            self.engine.finish_seal(head)

    def do_checkpoint(self) -> None:
        step = None if self.engine.halted else self.engine.begin_checkpoint()
        if step is not None:
            with self._halting(when_full=True):
                self.engine.write_checkpoint(*step)
            self.engine.finish_checkpoint(step[0])

    def do_release(self) -> None:
        through = self.engine.released_through
        self.model.released = max(self.model.released, through)
        with self._halting():
            release(self.disk, SPOOL, through)
            self.engine.journal.look_for_free_files()

    def do_cycle(self) -> None:
        """Do all that leads from accepted to released."""
        for name in ("commit", "apply", "roll", "seal", "checkpoint", "release"):
            self.do((name,))

    def do_reopen(self) -> None:
        """End cleanly, and start again in the same epoch."""
        if self.engine.halted is not None:
            return
        self._may_reach_image = (self.engine.journal.epoch, self.engine.journal.last_seq)
        with self._halting(when_full=True):
            close_group(self.disk, self.engine)
        self._may_reach_image = (0, 0)
        assert not self.disk.open_paths or self.disk.faults, "a descriptor was left open"
        self.recover(self.disk)
        assert self.engine.journal.epoch == self.model.epoch

    # Crashes.

    def recover(self, disk: SimDisk) -> None:
        """Start on what a crash left, check every promise, and go on from there."""
        model = self.model
        SimPath.use(disk)
        self.disk = disk
        self._may_reach_image = (0, 0)
        self._watch()
        engine = open_group(disk, self.paths, self.limits)
        self.check_recovered(engine)
        head = engine.checkpoint.head
        clean = engine.journal.epoch == model.epoch and bool(head.number or not model.last)
        seq = head.seq if head.epoch == model.epoch else 0
        state = model.history[seq]
        self.engine = engine
        if clean:
            model.history = {seq: state}
        else:
            model.history, model.base = {0: state}, head
            model.epoch = engine.journal.epoch
            model.acked = 0
        self._note_shown()

    def check_recovered(self, engine: Engine) -> None:
        model, head = self.model, engine.checkpoint.head
        seq = head.seq if head.epoch == model.epoch else 0
        assert head.epoch == model.epoch or head == model.base, "an epoch without its parent"
        assert seq >= model.acked, f"S1: {model.acked} was acknowledged, {seq} is what is left"
        assert seq in model.history, f"record {seq} was never accepted"
        self._check_contents(engine, model.history[seq])
        self._check_files(engine, head)
        journal = engine.journal
        assert journal.active is not None
        assert journal.active.identity.epoch == journal.epoch
        if journal.epoch != model.epoch:
            assert journal.epoch == head.epoch + 1
            assert journal.active.identity.parent == head.as_parent()
            assert journal.last_seq == 0

    def _check_contents(self, engine: Engine, expected: Contents) -> None:
        on_disk = {name: self.disk.contents(Path(self.image(name))) for name in expected}
        assert on_disk == expected, "S2: the images are not what the journal says"
        if self.directory:
            assert self.disk.listdir(IMAGES) == sorted(expected)
        read = {v.name: engine.read(v, 0, v.size_bytes) for v in engine.volumes}
        assert read == expected, "S2: reads are not what the journal says"
        sizes = {v.name: v.size_bytes for v in engine.volumes}
        assert sizes == {name: len(data) for name, data in expected.items()}

    def _check_files(self, engine: Engine, head: Head) -> None:
        """Hold the spool against what was shown to the coordinator before the crash."""
        shown = self.model.shown
        assert max(shown, default=0) <= head.number, "P5: a file was shown that is no more"
        names = {name.number: name for name in sealed_names(self.disk)}
        missing = set(range(self.model.released + 1, head.number + 1)) - set(names)
        assert not missing, f"P7: files {missing} were not released and are gone"
        follows: Head | None = None
        for number in sorted(names):
            data = self.disk.contents(SPOOL / names[FileNumber(number)].sealed)
            assert shown.get(number, data) == data, f"P5: file {number} is another one now"
            file = check_sealed(SPOOL / names[FileNumber(number)].sealed, data)
            if follows is not None and number == follows.number + 1:
                follows = follow(follows, engine.checkpoint.group, file)
            else:
                follows = Head(
                    file.identity.epoch, file.identity.number, file.seal.last_seq, file.seal.digest
                )
        assert follows is None or follows.digest == head.digest

    # The I/O layer.

    def _watch(self) -> None:
        self.disk.on_write = self._check_write
        self._durable = None

    def _check_write(self, change: Mutation) -> None:
        """S4: what reaches an image must be durable in the journal at this moment."""
        if not change.label.startswith("image:"):
            return
        if self._durable is None or self._durable[0] != self.disk.sync_count:
            self._durable = (self.disk.sync_count, durable_head(self.disk))
        head = self._durable[1]
        if self._may_reach_image == (0, 0):  # Recovery: it redoes files, and has closed them.
            assert any(name.number == head.number for name in sealed_names(self.disk))
            return
        assert (head.epoch, head.seq) >= self._may_reach_image, f"S4: {change} is not durable yet"

    # Inside.

    def _payload(self, length: int) -> bytes:
        """Return bytes without zeros that differ from those of the calls before."""
        self._stamp += 1
        start = self._stamp * 41 % len(FIRST_BYTES)
        return (PATTERN[start:] + PATTERN * (length // len(PATTERN) + 1))[:length]

    def _volume(self, name: str) -> Volume | None:
        return self.engine.volumes.named(name)

    def _room(self, payload_bytes: int) -> bool:
        """Do what the pump does until a request fits."""
        if self.engine.halted is not None:
            return False
        while not self.engine.has_room(payload_bytes):
            self._make_ready()
        return True

    def _make_ready(self) -> None:
        if self.engine.journal.ready is None:
            with self._halting():
                writer = self.engine.journal.make_ready()
            self.engine.journal.adopt(writer)

    def _expect(self, state: Contents) -> None:
        self.model.history[self.model.last + 1] = state

    def _forget_unaccepted(self) -> None:
        if self.disk.is_dead:
            return  # What the dead program had accepted is for recovery to tell.
        last = self.engine.journal.last_seq
        assert last <= self.model.last, "a record was accepted that nobody asked for"
        self.model.history = {s: c for s, c in self.model.history.items() if s <= last}
        assert self.model.last == last

    def _note_shown(self) -> None:
        """Take note of every sealed file: from now on it may be anywhere."""
        for name in sealed_names(self.disk):
            if name.number not in self.model.shown:
                self.model.shown[name.number] = self.disk.contents(SPOOL / name.sealed)


def pasted(state: Contents, name: str, offset: int, data: bytes) -> Contents:
    old = state[name]
    new = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
    return {**state, name: new}


def sealed_names(disk: SimDisk) -> list[JournalName]:
    names = (parse(name, SEALED) for name in disk.names_in(Path(SPOOL)))
    return sorted(name for name in names if isinstance(name, JournalName))


def durable_head(disk: SimDisk) -> Head:
    """Return the journal's end if the power went now and nothing more got to the disk."""
    from aimfuse.driver.checkpoint import CheckpointFile  # noqa: PLC0415 - only S4 needs it

    cut = disk.power_cut()
    checkpoint = CheckpointFile(cut, STATE).read()
    assert checkpoint is not None
    return recover(cut, SPOOL, checkpoint.group, checkpoint.head).head
