"""Keep the spool within its bounds: release what nobody needs, and say when there is no room."""

import contextlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.driver.ballast import Ballast
from aimfuse.driver.engine import Engine
from aimfuse.driver.folding import fold_files, forget_fold
from aimfuse.driver.ladder import (
    Account,
    Load,
    Policy,
    excess,
    folds,
    level,
    policy_of_lowest,
    why_share_full,
)
from aimfuse.driver.pins import Pins, lowest
from aimfuse.errors import BusyError
from aimfuse.journal.journal import Head
from aimfuse.journal.names import JournalName
from aimfuse.journal.spool import (
    MARGIN_FILES,
    RESERVED_FILES,
    free_files,
    full_mark,
    release,
    sealed_names,
)
from aimfuse.units import MIB, FileNumber, format_bytes

log = logging.getLogger(__name__)

FOLD_FILES_MIN = 8
FOLD_FILES_MAX = 512
FOLD_BYTES_MAX = 512 * MIB
"""Folded in one round, at most: reading files takes the interpreter from everybody else."""

BALLAST = "ballast"

RECORD_BYTES_MAX = 512
"""What a request takes in the journal besides its payload and an eighth of it, at most: each
piece that `split` makes of it has two IOCBs and padding."""


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much the spool may hold, what it must leave free, and one file; all in bytes."""

    bytes_max: int
    reserve_bytes: int
    file_bytes: int
    when_full: str = "block"


REQUEST_BYTES_MAX = MIB
"""The largest write that the kernel sends."""

LOW_FILES = 16
"""From room for fewer files on, space is reclaimed at once and not at intervals."""


class SpoolKeeper:
    """The books of a spool. `release` and `sealed_size` block; the rest is trio's thread's."""

    def __init__(
        self, disk: Disk, engine: Engine, spool: Path, limits: SpoolLimits, pins: Pins
    ) -> None:
        """Begin with what lies in *spool*; *pins* tell what the destinations still need."""
        self.limits = limits
        self.bytes = 0
        self.free_bytes = disk.free_bytes(spool)
        self._disk = disk
        self._engine = engine
        self._spool = spool
        images = engine.images
        self._image_place = images.root if images.is_directory else images.root.parent
        self._shares_disk = spool.stat().st_dev == self._image_place.stat().st_dev
        self._pins = pins
        self._released = FileNumber(0)
        self._room_bytes = 0
        self.policies: Mapping[str, Policy] = {}
        self.level = "fine"
        self._lowest_policy: str | None = None
        self._ballast = Ballast(disk, pins.state_dir / BALLAST)
        self._share_full: str | None = None
        self._awaits_checkpoint = False
        self._sizes: deque[tuple[FileNumber, int]] = deque()
        for name in sealed_names(disk, spool):
            self.note_sealed(name.number, (spool / name.sealed).stat().st_size)

    @property
    def files(self) -> int:
        """Return how many sealed files the spool holds."""
        return len(self._sizes)

    @property
    def is_low(self) -> bool:
        """Tell whether files should go and soon, by the last look: little room, a share used up."""
        return self._awaits_checkpoint or self._room_bytes < LOW_FILES * self.limits.file_bytes

    @property
    def when_full(self) -> str:
        """Return what writers get while there is no room: fold and block let them wait."""
        return self._lowest_policy or self.limits.when_full

    def sealed_size(self, head: Head) -> int:
        """Return the bytes of a file that was just sealed."""
        name = JournalName(head.epoch, head.number)
        return (self._spool / name.sealed).stat().st_size

    def note_sealed(self, number: FileNumber, size: int) -> None:
        """Count a sealed file in."""
        self._sizes.append((number, size))
        self.bytes += size

    def load(self) -> Load:
        """Return what `release` has to know of the spool, to be taken on trio's thread."""
        limits = self.limits
        mark = full_mark(limits.bytes_max, limits.file_bytes)
        more = excess(self.bytes, mark)
        short = self._needed_bytes() - self.free_bytes
        if short > 0:
            more = max(more, short + MARGIN_FILES * limits.file_bytes)
        self._note_level(is_full=more > 0)
        return Load(tuple(self._sizes), more, short > 0)

    def release(self, load: Load) -> FileNumber:
        """Let go of what image and destinations have; return through which file; blocks.

        In front of that the oldest unsent files are folded where *load* and a destination's
        policy say so: from then on its copy has to bring what they changed.

        Raises:
            OSError: some files are gone; calling again goes on.
        """
        self._ballast.keep()
        if load.is_disk_short:
            self._drop_free_files()
        through = self._engine.released_through
        if through <= self._released and not load.sizes:
            return self._released
        # If another process holds the lock, the next round comes in a second.
        with contextlib.suppress(BusyError), self._pins.held() as found:
            accounts = self._fold(found, load, through)
            self._share_full = why_share_full(accounts, self._policy, load)
            self._lowest_policy = policy_of_lowest(accounts, self._policy)
            pinned = lowest(accounts)
            if pinned is not None:
                through = FileNumber(min(through, pinned))
            if through > self._released:
                release(self._disk, self._spool, through, recycle=not load.is_disk_short)
                self._engine.journal.look_for_free_files()
                self._released = through
        return self._released

    def _drop_free_files(self) -> None:
        """Give the disk back what was kept to be used again: it is not counted as free."""
        free = free_files(self._disk, self._spool)
        for path in free:
            self._disk.unlink("spool:give_back", path)
        if free:
            self._engine.journal.look_for_free_files()

    def _fold(
        self, accounts: tuple[Account, ...], load: Load, through_max: FileNumber
    ) -> tuple[Account, ...]:
        """Fold what is to be folded; return the accounts as they are then."""
        changed = {}
        for one in accounts:
            if one.state == "shipping" and 0 < one.folded <= one.pin:
                forget_fold(self._disk, one.directory, one.pin)
        wanted_folds = folds(accounts, self._policy, load, through_max)
        newest = load.sizes[-1][0] if load.sizes else through_max
        self._awaits_checkpoint = wanted_folds != folds(accounts, self._policy, load, newest)
        names = sealed_names(self._disk, self._spool) if wanted_folds else []
        for one, through in wanted_folds:
            wanted = [name for name in names if one.needs_behind < name.number <= through]
            wanted = wanted[: self._fold_files_max()]
            if wanted and self._fold_one(one, wanted):
                changed[one.directory] = replace(one, folded=wanted[-1].number)
        return tuple(changed.get(one.directory, one) for one in accounts)

    def _fold_files_max(self) -> int:
        return max(FOLD_FILES_MIN, min(FOLD_FILES_MAX, FOLD_BYTES_MAX // self.limits.file_bytes))

    def _fold_one(self, one: Account, names: Sequence[JournalName]) -> bool:
        try:
            try:
                fold = fold_files(self._disk, self._spool, one.directory, one.pin, names)
            except OSError:
                if not self._ballast.give_up():
                    raise
                fold = fold_files(self._disk, self._spool, one.directory, one.pin, names)
        except OSError as exc:  # Nothing was folded, so nothing goes; the next round tries again.
            log.log(
                logging.DEBUG if one.folded > one.pin else logging.WARNING,
                "%s: folding: %s",
                one.directory.name,
                exc,
            )
            return False
        log.log(
            logging.DEBUG if one.folded > one.pin else logging.WARNING,
            "%s: files through %d left the full spool unsent; what they changed, %d bytes, will "
            "be copied", one.directory.name, fold.through, fold.dirty_bytes(one.pin),
        )  # fmt: skip
        return True

    def _policy(self, one: Account) -> Policy:
        return self.policies.get(one.directory.name) or Policy(self.limits.when_full)

    def _note_level(self, *, is_full: bool) -> None:
        found = level(self.bytes / self.limits.bytes_max, self.level, is_full=is_full)
        if found != self.level:
            log.log(logging.INFO if found == "fine" else logging.WARNING, "spool: %s", found)
        self.level = found

    def _needed_bytes(self) -> int:
        """Return what has to be free on the spool's disk for writers not to wait."""
        limits = self.limits
        reserve = limits.reserve_bytes + RESERVED_FILES * limits.file_bytes
        slack = limits.file_bytes + 2 * REQUEST_BYTES_MAX  # What `why_full` asks for to go on.
        return reserve + self._engine.journal.unwritten_bytes + slack

    def note_released(self, through: FileNumber) -> None:
        """Count out what `release` let go."""
        while self._sizes and self._sizes[0][0] <= through:
            self.bytes -= self._sizes.popleft()[1]

    def all_confirmed(self) -> bool:
        """Tell whether every destination that gets any has the newest file; looks at the disk."""
        if self._engine.superseded is not None:  # Nothing is sent any more.
            return True
        newest = self._engine.journal.head.number
        known = (one for one in self._pins.accounts() if one.directory.name in self.policies)
        awaited = (one for one in known if self._policy(one).is_awaited)
        return all(one.pin >= newest for one in awaited)

    def take(self, payload_bytes: int) -> str | None:
        """Count in a request that is about to be accepted, or return why there is no room for it.

        The disk is asked only when what was free at the last look may be used up. So nothing is
        accepted that could not be made durable, however fast it comes.
        """
        need = payload_bytes + payload_bytes // 8 + RECORD_BYTES_MAX
        if need > self._room_bytes:
            why = self.why_full(was_full=False, need=need)
            if why is not None:
                return why
        self._room_bytes -= need
        return None

    def why_full(self, *, was_full: bool, need: int = 0) -> str | None:
        """Look at the disks; return why *need* bytes more may not be accepted, or None.

        What *was_full* must have drained by a file and the largest request before it goes on: no
        flapping, and no request that waits for ever beside smaller ones.
        """
        limits, engine = self.limits, self._engine
        self._room_bytes = 0
        if self._share_full:
            return self._share_full
        slack = limits.file_bytes + 2 * REQUEST_BYTES_MAX if was_full else 0
        held = self.bytes + engine.journal.open_bytes
        if held + was_full * limits.file_bytes >= limits.bytes_max:
            had, most = format_bytes(held), format_bytes(limits.bytes_max)
            return f"the spool holds {had}; its limit is {most}"
        self.free_bytes = self._disk.free_bytes(self._spool)
        reserve = limits.reserve_bytes + RESERVED_FILES * limits.file_bytes
        room = self.free_bytes - reserve - engine.journal.unwritten_bytes
        if room < slack + need:
            left, kept = format_bytes(self.free_bytes), format_bytes(reserve)
            return f"{self._spool} has {left} left, {kept} are reserved"
        image_room = self._image_room(room)
        if image_room < room:
            if image_room >= need:
                room = image_room
            elif not engine.images.are_allocated():
                return f"{self._image_place} has no space left for the image"
        self._room_bytes = min(room, limits.bytes_max - held)
        return None

    def _image_room(self, room: int) -> int:
        """Return how much more the images take, where the spool takes *room* bytes."""
        engine = self._engine
        if self._shares_disk and not engine.images.are_allocated():
            return (room - engine.unapplied_bytes) // 2  # What is written goes there twice.
        free = self._disk.free_bytes(self._image_place)
        return free - engine.unapplied_bytes - self.limits.file_bytes
