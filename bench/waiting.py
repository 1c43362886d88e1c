"""How long a start and a look take while 100,000 journal files wait for a dead destination.

The files are copies of one under the names that follow: neither program reads them.
"""

import json
import time
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.journal.header import NO_DIGEST, Identity
from aimfuse.journal.names import JournalName
from aimfuse.journal.records import RecordType
from aimfuse.journal.slots import Slots
from aimfuse.journal.writer import AimWriter
from aimfuse.units import Epoch, FileNumber, Seq
from bench.load import MIB
from bench.ours import Group
from bench.rig import MOUNTPOINT
from bench.running import AIMFUSE, Runner

FILES = 100_000
SIZE = 16 * MIB
_START_S_MAX = 120.0


def measure(runner: Runner, directory: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each start of a coordinator, and of each `aimfuse status`.

    A start ends when the coordinator has reported the whole queue. The looks are taken beside
    it and after its end, and the slower of the two counts.
    """
    near = directory / "near"
    (near / MOUNTPOINT).mkdir(parents=True)
    group = Group(runner, near)
    group.initialise(SIZE)
    dead = near / "nowhere" / "v"
    runner.run(*AIMFUSE, "destination", "add", group.image, f"dir://{dead}", "--name", "dead")
    _fill(group)
    found: dict[str, list[float]] = {"start": [], "status": []}
    for _ in range(rounds):
        report = group.state_dir / "destinations" / "dead" / "status.json"
        report.unlink(missing_ok=True)
        log = near / "ship.log"
        began_s = time.monotonic()
        with runner.running((*AIMFUSE, "ship", group.image), log):
            runner.until(
                lambda report=report: _queued(report) >= FILES,  # type: ignore[misc]
                "the coordinator knows its queue", _START_S_MAX, 0.005,
            )  # fmt: skip
            found["start"].append(time.monotonic() - began_s)
            beside_s = _look_s(runner, group)
        found["status"].append(max(beside_s, _look_s(runner, group)))
    return found


def _fill(group: Group) -> None:
    disk = Disk()
    state = Slots(disk, group.state_dir / "checkpoint", "checkpoint").read() or {}
    who = Identity(bytes.fromhex(state["group"]), Epoch(1), FileNumber(1), time.time_ns())
    writer = AimWriter.create(disk, group.spool, who, None)
    writer.append(RecordType.FLUSH, 0, Seq(1), 0, 0, time.time_ns())
    writer.seal(NO_DIGEST, Epoch(1), FileNumber(2))
    writer.close()
    data = writer.path.read_bytes()
    writer.path.unlink()
    for number in range(1, FILES + 1):
        name = JournalName(Epoch(1), FileNumber(number))
        (group.spool / name.sealed).write_bytes(data)


def _queued(report: Path) -> int:
    try:
        return int(json.loads(report.read_bytes())["queued"]["files"])
    except (FileNotFoundError, ValueError):
        return 0


def _look_s(runner: Runner, group: Group) -> float:
    began_s = time.monotonic()
    runner.run(*AIMFUSE, "status", group.image)
    return time.monotonic() - began_s
