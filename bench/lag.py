"""How far the mirror is behind while a steady load runs: default settings, SFTP on loopback.

What counts is the store's own report: its mirror is as of the last record that it has applied,
so the oldest record that it lacks is no older than that. Reports come up to ten times a second;
their own delay counts against us.
"""

import time
from pathlib import Path

from bench.load import KIB, MB, MIB, fio_words
from bench.ours import FarHost, Group
from bench.rig import MOUNTPOINT
from bench.rows import percentile
from bench.running import Failed, Runner

SIZE = 256 * MIB
RATE_BYTES_S = 5 * MB
SAMPLE_S = 0.1
RAMP_S = 2.0
_OPTIONS = (
    "--rw=randwrite", f"--bsrange={4 * KIB}-{64 * KIB}", "--blockalign=4096", "--norandommap",
    "--refill_buffers", f"--rate=,{RATE_BYTES_S}", "--time_based",
)  # fmt: skip


def measure(runner: Runner, near: Path, far_root: Path, seconds: float) -> list[float]:
    """Return the lag in seconds, sampled ten times a second over *seconds* of load."""
    (near / MOUNTPOINT).mkdir()
    far, group = FarHost(runner, far_root), Group(runner, near)
    group.initialise(SIZE)
    with far.serving():
        group.add_destination(far.url, far.known_hosts, far.identity)
        with group.mounted():
            group.drain(far)
            samples = _sample(runner, far, group, near / "fio.json", seconds)
            group.drain(far)
    if not samples:
        raise Failed("the load was too short to sample the lag")
    return samples


def p99(samples: list[float]) -> float:
    """Return the 99th percentile."""
    return percentile(samples, 99)


def _sample(
    runner: Runner, far: FarHost, group: Group, report: Path, seconds: float
) -> list[float]:
    words = fio_words(group.volume, SIZE, (*_OPTIONS, f"--runtime={seconds + RAMP_S:g}"), report)
    samples: list[float] = []
    began_ns = time.time_ns()
    with runner.running(words, report.with_suffix(".log")) as load:

        def sample() -> bool:
            # Nothing that waits is older than the load.
            oldest_ns = max(int(far.ack().get("mirror_time_ns", 0)), began_ns)
            now_ns = time.time_ns()
            if load.poll() is None and now_ns - began_ns > RAMP_S * 1e9:
                samples.append((now_ns - oldest_ns) / 1e9)
            return load.poll() is not None

        runner.until(sample, "the steady load has ended", seconds + 60.0, SAMPLE_S)
        if load.returncode != 0:
            raise Failed(f"fio ended with {load.returncode}: {report.read_text()[:500]}")
    return samples
