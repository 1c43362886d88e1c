"""Views: how long it takes until the first byte of the past can be read.

An image of 100 GiB, nearly all of it holes, gets a million records of 512 bytes, one in a MiB of
it at random. All of them are applied, with history; then the oldest state there is gets mounted,
so every record lies behind it. The time goes from the start of `aimfuse view` until the first
block is read, of a MiB that was written to.
"""

import json
import os
import time
from pathlib import Path

from bench.load import GIB, KIB, MIB, fio_words
from bench.ours import FarHost, Group
from bench.rig import MOUNTPOINT
from bench.running import AIMFUSE, Runner, unmounting

IMAGE_BYTES = 100 * GIB
RECORDS = 1_000_000
RECORD_BYTES = 512
LOADS = 4
_LOAD = (
    "--rw=randwrite", f"--bs={RECORD_BYTES}", f"--blockalign={MIB}", "--norandommap",
    f"--io_size={RECORDS // LOADS * RECORD_BYTES}",
)  # fmt: skip


def first_byte_s(runner: Runner, directory: Path, rounds: int) -> list[float]:
    """Return the seconds from the start of a view until the first block is read."""
    far, group = FarHost(runner, directory / "far"), Group(runner, directory / "near")
    group.mountpoint.mkdir(parents=True)
    url = f"dir://{far.store}"
    size = f"{IMAGE_BYTES // GIB}GiB"
    runner.run(*AIMFUSE, "init", group.image, "--size", size, "--to", url)
    report = directory / "fio.json"
    with far.replaying(), group.mounted():
        group.drain(far)
        for seed in range(LOADS):
            options = (*_LOAD, f"--randseed={seed}")
            runner.run(*fio_words(group.volume, IMAGE_BYTES, options, report))
            group.drain(far)
    oldest = json.loads(runner.run(*AIMFUSE, "history", far.store, "--json"))["oldest"]
    volume = directory / MOUNTPOINT / group.image.name
    volume.parent.mkdir()
    return [_once(runner, far.store, volume, oldest["position"]) for _ in range(rounds)]


def _once(runner: Runner, store: Path, volume: Path, position: str) -> float:
    log = store.parent / "view.log"
    words = (*AIMFUSE, "view", store, volume.parent, "--at", position)
    with unmounting(volume.parent):
        begun_s = time.monotonic()
        with runner.running(words, log) as child:
            runner.until_mounted(child, volume, log)
            fd = os.open(volume, os.O_RDONLY)
            try:
                os.pread(fd, 4 * KIB, IMAGE_BYTES // 2)
            finally:
                os.close(fd)
            return time.monotonic() - begun_s
