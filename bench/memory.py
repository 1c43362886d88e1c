"""What each process takes of memory while 10,000 journal files wait to be shipped and applied.

And what the coordinator takes while it sends a first copy, whose files it makes in memory.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from aimfuse.config import JournalConfig
from bench.load import KIB, MB, MIB, fio_words
from bench.ours import FarHost, Group
from bench.rig import MOUNTPOINT
from bench.running import Failed, Runner
from bench.sshd import children

FILES = 10_000
SIZE = 64 * MIB
FILE_BYTES = 64 * KIB
WRITE_BYTES = 36 * KIB
"""Two do not fit into one file."""
COPIED_BYTES = 1024 * MIB
COPY_S = 60.0
NEAR_S = 3.0
FAR_S = 25.0
SAMPLE_S = 0.1

Peaks = dict[str, float]


def measure(runner: Runner, directory: Path) -> Peaks:
    """Return the largest resident size in MB of each process, by its name.

    The files wait at the source first; then the same files wait in the store's inbox as well,
    as after a break just before their confirmation, and all four processes work them off.
    """
    near = directory / "near"
    (near / MOUNTPOINT).mkdir(parents=True)
    (directory / "far").mkdir()
    far, group = FarHost(runner, directory / "far"), Group(runner, near)
    group.initialise(SIZE, JournalConfig(file_bytes=FILE_BYTES))
    peaks: Peaks = {}
    with far.serving():
        group.add_destination(far.url, far.known_hosts, far.identity)
    with group.mounted() as driver:
        with far.serving():
            group.drain(far)
        group.pause(paused=True)  # Else it would be waiting for its next try later on.
        _fill_spool(runner, group, near / "fio.json")
        pids = {"driver": driver.pid, "coordinator": group.call("status")["coordinator"]["pid"]}
        _watch(runner, pids, peaks, lambda: False, NEAR_S)
        for path in sorted(group.spool.glob("*.aim")):
            shutil.copy(path, far.store / "inbox" / path.name)
        with far.serving() as server:
            group.pause(paused=False)
            runner.until(lambda: children(server.pid), "the replayer runs")
            pids |= {"serve": server.pid, "replayer": children(server.pid)[0]}
            _watch(runner, pids, peaks, lambda: far.applied_number() >= FILES, FAR_S)
            group.drain(far)
    return peaks


def copying(runner: Runner, directory: Path) -> float:
    """Return the largest resident size in MB of the coordinator while a first copy is sent."""
    near = directory / "copied"
    (near / MOUNTPOINT).mkdir(parents=True)
    far, group = FarHost(runner, directory / "copy"), Group(runner, near)
    group.initialise(COPIED_BYTES)
    peaks: Peaks = {}
    with far.serving(), group.mounted():
        group.add_destination(far.url, far.known_hosts, far.identity)

        def shipper() -> int:
            return int(group.call("status")["coordinator"]["pid"] or 0)

        runner.until(shipper, "somebody ships")
        _watch(runner, {"copy": shipper()}, peaks, lambda: far.applied_number() >= 0, COPY_S)
    return peaks["copy"]


def _fill_spool(runner: Runner, group: Group, report: Path) -> None:
    def waiting() -> int:
        return int(group.call("status")["spool"]["files"])

    while (missing := FILES - waiting()) > 0:
        options = ("--rw=write", f"--bs={WRITE_BYTES}", f"--io_size={missing * WRITE_BYTES}")
        runner.run(*fio_words(group.volume, SIZE, options, report))
        group.call("roll")


def _watch(
    runner: Runner, pids: dict[str, int], peaks: Peaks, is_over: Callable[[], bool], seconds: float
) -> None:
    """Note the peaks of *pids* until it is over, at most for *seconds*."""
    end_s = time.monotonic() + seconds

    def sample() -> bool:
        for name, pid in pids.items():
            peaks[name] = max(peaks.get(name, 0.0), resident_bytes(pid) / MB)
        return is_over() or time.monotonic() >= end_s

    runner.until(sample, "memory was watched", seconds + 30.0, SAMPLE_S)


def resident_bytes(pid: int) -> int:
    """Return what the process has in memory, shared pages included.

    Raises:
        Failed: it is gone.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError as exc:
        raise Failed(f"process {pid} has ended") from exc
    for line in lines:
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * KIB
    raise Failed(f"process {pid} has ended")
