"""What the scrub costs those who write: the same load with it and without, in turns, in one mount.

Nobody would see the scrub of a small image at its default rate: it has one burst in a week. So
the image gets the pace of one of 10 TiB, 64 MiB every 16 s, and each load is as long as that.
"""

import json
from dataclasses import replace
from pathlib import Path

from aimfuse.manager.reload import reload
from bench import load
from bench.load import MIB
from bench.ours import Answer, FarHost, Group
from bench.running import AIMFUSE, Failed, Runner

IMAGE_BYTES = 256 * MIB
BURST_BYTES = 64 * MIB
LOAD_S = 16.0
HURRYING_PERIOD_S = 256.0
"""A round that should be over long ago goes four times as fast: all of the image in 64 s."""


def iops(runner: Runner, directory: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Return the writes per second of each load beside the scrub, and of each without."""
    far, group = FarHost(runner, directory / "far"), Group(runner, directory / "near")
    group.mountpoint.mkdir(parents=True)
    group.initialise(IMAGE_BYTES)
    runner.run(*AIMFUSE, "destination", "add", group.image, f"dir://{far.store}")
    (group.state_dir / "scrub.json").write_text(json.dumps({"begun_ns": 1}))
    report = directory / "fio.json"
    beside: list[float] = []
    without: list[float] = []
    with far.replaying(), group.mounted():
        group.drain(far)
        (far.store / "store.toml").write_text("keep = 0\n")  # Its history would fill the memory.
        load.measure(runner, load.RANDOM, group.volume, LOAD_S / 4, report)
        turns = [(beside, HURRYING_PERIOD_S), (without, 0.0)]
        for _ in range(rounds):
            for found, period_s in turns:
                group.drain(far)
                config = group.config()
                group.save(replace(config, journal=replace(config.journal, scrub_s=period_s)))
                reload(group.state_dir)
                found.append(load.measure(runner, load.RANDOM, group.volume, LOAD_S, report))
            turns.reverse()  # Neither is always the one that goes first.
        _check(group.call("status")["scrub"], rounds)
    return beside, without


def _check(scrub: Answer, rounds: int) -> None:
    """Refuse figures of a scrub that stood still."""
    done_bytes = scrub["rounds"] * IMAGE_BYTES + scrub["done_bytes"]
    if done_bytes < rounds * BURST_BYTES:
        raise Failed(f"the scrub read no more than {done_bytes} bytes")
