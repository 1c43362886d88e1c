"""The way on from a mirror: files that its store has received and not applied yet. Changes nothing.

They lie in ``work/``, durable and checked. A replayer that applies one meanwhile keeps it in the
history, so it is looked for there, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import CorruptRecord, JournalError
from aimfuse.journal.header import Seal
from aimfuse.journal.names import JournalName, parse
from aimfuse.journal.reader import AimFile, read_header, read_sealed
from aimfuse.replay.chain import follow
from aimfuse.replay.kept import HISTORY
from aimfuse.replay.plan import Plan, plan_journal, plan_until
from aimfuse.replay.state import Head, StoreState
from aimfuse.units import FileNumber

WORK = "work"


@dataclass(frozen=True, slots=True)
class Step:
    """One file on the way: its name and its seal, by which it is known again."""

    name: JournalName
    seal: Seal

    def holds(self, epoch: int, seq: int) -> bool:
        """Tell whether record *epoch*:*seq* is in it."""
        seal = self.seal
        in_it = bool(seal.record_count) and seal.first_seq <= seq <= seal.last_seq
        return in_it and self.name.epoch == epoch


def find_steps(disk: Disk, store: Path, head: Head) -> list[Step]:
    """Return the unbroken row of files behind *head* that wait in the store.

    Raises:
        OSError: the directory, or a file of it, could not be read.
    """
    try:
        names = [one for one in map(parse, disk.listdir(store / WORK)) if one is not None]
    except (FileNotFoundError, PermissionError):
        return []
    by_number = {one.number: one for one in names if isinstance(one, JournalName)}
    steps: list[Step] = []
    digest = head.digest
    while (name := by_number.get(FileNumber(head.number + 1 + len(steps)))) is not None:
        try:
            _identity, seal = read_header(disk, store / WORK / name.sealed)
        except (FileNotFoundError, JournalError):
            break
        if seal is None or seal.prev_digest != digest:
            break
        steps.append(Step(name, seal))
        digest = seal.digest
    return steps


def read_step(disk: Disk, store: Path, step: Step) -> AimFile:
    """Return the file, checked.

    Raises:
        FileNotFoundError: it is neither here nor there any more. Begin again.
        JournalError: it is damaged, or another one.
        OSError: it could not be read.
    """
    try:
        aim = read_sealed(disk, store / WORK / step.name.sealed)
    except FileNotFoundError:
        aim = read_sealed(disk, store / HISTORY / step.name.sealed)
    if aim.seal.digest != step.seal.digest:
        raise CorruptRecord(aim.path, 0, "it is not the file that was here")
    return aim


def go(
    disk: Disk, store: Path, state: StoreState, steps: Sequence[Step], seq: int
) -> Iterator[tuple[AimFile, Plan]]:
    """Yield each file and what it does to *state*, the last one up to record *seq*.

    Raises:
        HistoryBroken: one of them cannot be applied.
        JournalError, OSError: as `read_step`.
    """
    for step in steps:
        aim = read_step(disk, store, step)
        assert state.head is not None
        head = follow(state.head, aim)
        is_last = step is steps[-1]
        plan = plan_until(state, aim, seq) if is_last else plan_journal(state, aim)
        yield aim, plan
        state = replace(
            state, head=head, volumes=plan.table(),
            volume_id_max=plan.id_max, volume_ids_exact=plan.ids_exact,
        )  # fmt: skip
