"""The load: fio through the mounted volume, from a fixed seed, with data that does not compress."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.running import Failed, Runner

MB = 1_000_000
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
_POOL_BYTES = 16 * MIB
_SEED = 20_111


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of load.

    *figure* names the field of fio's report, *scale* divides it. *bytes_max* ends a load early
    that would fill the machine's memory with its backlog.
    """

    name: str
    unit: str
    options: tuple[str, ...]
    figure: str = "iops"
    scale: float = 1.0
    bytes_max: int | None = None


# `refill_buffers` makes new random data for each write. At 1 MiB that would take as long as the
# write; there fio alters parts of one random buffer, which does not compress within a write.
RANDOM = Work("random", "IOPS", ("--rw=randwrite", "--bs=4k", "--norandommap", "--refill_buffers"))
SEQUENTIAL = Work(
    "sequential", "MB/s", ("--rw=write", "--bs=1m"), "bw_bytes", MB, bytes_max=2 * GIB
)
FSYNC = Work(
    "fsync", "IOPS", (*RANDOM.options, "--fsync=1")
)  # fmt: skip


def fio_words(volume: Path, size: int, options: tuple[str, ...], report: Path) -> tuple[str, ...]:
    """Return the command line of fio for *options*, its report as JSON in *report*."""
    return (
        "fio", "--name=load", f"--filename={volume}", f"--size={size}", "--ioengine=psync",
        "--direct=1", f"--randseed={_SEED}", "--allow_file_create=0", "--fallocate=none",
        "--output-format=json", f"--output={report}", *options,
    )  # fmt: skip


def measure(runner: Runner, work: Work, volume: Path, seconds: float, report: Path) -> float:
    """Run *work* on *volume* for *seconds* and return its figure in its unit."""
    size = volume.stat().st_size
    limits: tuple[str, ...] = (f"--runtime={seconds:g}", "--time_based")
    if work.bytes_max is not None:
        limits = (f"--runtime={seconds:g}", f"--io_size={work.bytes_max}")
    runner.run(*fio_words(volume, size, (*work.options, *limits), report))
    return figure(report, work)


def figure(report: Path, work: Work) -> float:
    """Return the figure of *work* from fio's report.

    Raises:
        Failed: the report tells of no write, or of an error.
    """
    text = report.read_text()
    content: dict[str, Any] = json.loads(text[text.index("{") :])
    job = content["jobs"][0]
    if job["error"] or not job["write"]["total_ios"]:
        raise Failed(f"fio: error {job['error']}, {job['write']['total_ios']} writes")
    return float(job["write"][work.figure]) / work.scale


def fill(path: Path, size: int) -> None:
    """Write *size* bytes of noise, so that no later write is the first to its place."""
    pool = os.urandom(_POOL_BYTES)
    with path.open("wb") as file:
        for _ in range(size // _POOL_BYTES):
            file.write(pool)
        file.write(pool[: size % _POOL_BYTES])
        file.flush()
        os.fsync(file.fileno())


def warm_up(directory: Path, size: int, runner: Runner) -> None:
    """Touch *size* bytes of memory: a virtual machine's host hands out new memory slowly."""
    path = directory / "warm-up"
    try:
        with path.open("wb") as file:
            for _ in range(size // MIB):
                runner.check()
                file.write(_ONES)
    finally:
        path.unlink(missing_ok=True)


_ONES = b"\xff" * MIB
