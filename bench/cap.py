"""A bandwidth cap: by how much ten seconds differ from it, at worst, to a stock OpenSSH server.

A first copy is sent under the cap. The coordinator's own count of the blocks that the server
has answered, with the time of that count, is looked at several times a second; each pair of
looks that lie ten seconds apart is one measurement.
"""

import json
import time
from pathlib import Path

from aimfuse import config as configuration
from bench import sshd
from bench.load import MIB
from bench.ours import DESTINATION, FarHost, Group
from bench.rig import MOUNTPOINT
from bench.running import Failed, Runner

RATES_BYTES_S = (MIB, 20 * MIB)
WINDOW_S = 10.0
WATCH_S = 16.0
_S_MAX = 120.0
_SECOND_NS = 10**9

Look = tuple[int, int]
"""When, in Unix ns, and how many bytes had been sent by then."""


def measure(runner: Runner, directory: Path) -> list[float]:
    """Return for each rate how far ten seconds were off at worst, in per cent."""
    return [_measure(runner, directory / str(rate), rate) for rate in RATES_BYTES_S]


def _measure(runner: Runner, place: Path, rate_bytes_s: int) -> float:
    (place / "near" / MOUNTPOINT).mkdir(parents=True)
    far, group = FarHost(runner, place / "far"), Group(runner, place / "near")
    group.initialise(int(rate_bytes_s * (WATCH_S + 6)))
    with sshd.serving(runner, place / "keys") as server, far.replaying(), group.mounted():
        group.save(
            configuration.add_destination(
                group.config(), server.url(far.store), name=DESTINATION,
                bandwidth_bytes_s=rate_bytes_s, known_hosts=server.known_hosts,
                identity_files=(server.identity,), use_agent=False,
            )
        )  # fmt: skip
        path = group.state_dir / "destinations" / DESTINATION / "status.json"
        runner.until(lambda: path.exists() and _look(path)[1] > 0, "the copy is sent", _S_MAX)
        looks: list[Look] = []
        end_s = time.monotonic() + WATCH_S

        def is_over() -> bool:
            looks.append(_look(path))
            return time.monotonic() >= end_s

        runner.until(is_over, "it was watched", _S_MAX, 0.1)
    return _worst_percent(sorted(set(looks)), rate_bytes_s)


def _look(path: Path) -> Look:
    status = json.loads(path.read_bytes())
    return int(status["updated_ns"]), int(status["sent_bytes"])


def _worst_percent(looks: list[Look], rate_bytes_s: int) -> float:
    worst = None
    for began_ns, before in looks:
        for ended_ns, after in looks:
            passed_s = (ended_ns - began_ns) / _SECOND_NS
            if WINDOW_S <= passed_s < WINDOW_S + 1:
                off = abs((after - before) / passed_s / rate_bytes_s - 1) * 100
                worst = max(worst or 0.0, off)
    if worst is None:
        raise Failed("the coordinator said nothing for ten seconds")
    return worst
