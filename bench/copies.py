"""Copies: how fast a first one is beside scp, and how much one after a fold brings over.

The first copy is of an image of 4 GiB, every other MiB a hole, while 5 MB/s are written to it;
scp sends as much data, as one file, to the same stock OpenSSH server beside the same load. For
the second figure a destination is dead while 1 GiB is written to 4 GiB in random blocks of
4 KiB, with a spool that holds an eighth of that; it comes back, and what its staged copy takes
is held against what the dirty map names.
"""

import os
import random
import shutil
import sys
import time
from pathlib import Path

from aimfuse.config import JournalConfig
from aimfuse.journal.dirty import DirtyMap
from bench import sshd
from bench.load import GIB, KIB, MB, MIB, fio_words
from bench.ours import Answer, FarHost, Group
from bench.rig import MOUNTPOINT
from bench.running import AIMFUSE, Runner

SIZE = 4 * GIB
REWRITTEN_BYTES = 1 * GIB
SPOOL_BYTES = 128 * MIB
LOAD_BYTES_S = 5 * MB
_LOAD = (
    "--rw=randwrite", "--bs=64k", f"--rate=,{LOAD_BYTES_S}", "--time_based", "--runtime=900",
)  # fmt: skip
_TEBIBYTE = 1 << 40
_S_MAX = 600.0


def first_copy(runner: Runner, directory: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Return the MB/s of data of ours and of scp, taking turns."""
    ours, theirs = [], []
    for _ in range(rounds):
        place = directory / "first"
        (place / "near" / MOUNTPOINT).mkdir(parents=True)
        far = FarHost(runner, place / "far")
        far.stores.mkdir(parents=True)
        group = Group(runner, place / "near")
        group.initialise(MIB)
        _halve(group.image)
        shutil.rmtree(group.state_dir)
        runner.run(*AIMFUSE, "init", group.image)
        report = group.image.with_name("fio.json")
        words = fio_words(group.volume, SIZE, _LOAD, report)
        with (
            sshd.serving(runner, place / "keys") as server,
            group.mounted(),
            runner.running(words, report.with_suffix(".log")),
        ):
            theirs.append(SIZE / 2 / MB / _scp_s(runner, place, server))
            ours.append(SIZE / 2 / MB / _copy_s(runner, group, far, server))
        shutil.rmtree(place)
    return ours, theirs


def resync_ratio(runner: Runner, near: Path, far_root: Path) -> float:
    """Return the bytes that a staged copy takes, divided by those that the dirty map names."""
    (near / MOUNTPOINT).mkdir()
    far, group = FarHost(runner, far_root), Group(runner, near)
    journal = JournalConfig(file_bytes=4 * MIB, spool_bytes_max=SPOOL_BYTES)
    group.initialise(SIZE, journal)
    with far.serving():
        group.add_destination(far.url, far.known_hosts, far.identity)
    with group.mounted():
        with far.serving():
            group.drain(far)
            runner.until(lambda: group.destination_status()["state"] == "idle", "it is idle")
        options = ("--rw=randwrite", "--bs=4k", "--norandommap", f"--io_size={REWRITTEN_BYTES}")
        runner.run(*fio_words(group.volume, SIZE, options, near / "fio.json"))
        time.sleep(2.0)  # The coordinator looks at the fold once a second.
        dirty = group.destination_status()["folded"]["dirty_bytes"]
        with far.serving():
            taken = 0

            def is_switched() -> bool:
                nonlocal taken
                sync: Answer = far.ack().get("sync") or {}
                taken = max(taken, int(sync.get("bytes") or 0))
                return taken > 0 and not sync.get("staged")

            runner.until(is_switched, "the copy is switched in", _S_MAX)
            group.drain(far)
    return taken / float(dirty)


def map_megabytes() -> tuple[float, float]:
    """Return memory and file of a dirty map of 1 TiB, written all over at random, in MB.

    One block in each MiB: every piece of the map exists, as after any longer such load.
    """
    dirty, dice = DirtyMap(), random.Random(20_111)
    for offset in range(0, _TEBIBYTE, MIB):
        dirty.add(1, offset + dice.randrange(MIB // (4 * KIB)) * 4 * KIB, 4 * KIB)
    chunks = dirty._chunks  # noqa: SLF001 - what it holds is what is measured
    held = sys.getsizeof(chunks) + sum(
        sys.getsizeof(key) + sum(map(sys.getsizeof, key)) + sys.getsizeof(bits)
        for key, bits in chunks.items()
    )
    return held / MB, len(dirty.encode()) / MB


def _halve(image: Path) -> None:
    """Make an image of `SIZE` with noise in every other MiB."""
    pool = os.urandom(MIB)
    with image.open("wb") as file:
        file.truncate(SIZE)
        for at in range(0, SIZE, 2 * MIB):
            file.seek(at)
            file.write(pool)


def _copy_s(runner: Runner, group: Group, far: FarHost, server: sshd.Sshd) -> float:
    with far.replaying():
        began_s = time.monotonic()
        group.add_destination(server.url(far.store), server.known_hosts, server.identity)
        runner.until(
            lambda: far.ack().get("phase") in {"catching_up", "consistent"},
            "the first copy is there", _S_MAX,
        )  # fmt: skip
        return time.monotonic() - began_s


def _scp_s(runner: Runner, place: Path, server: sshd.Sshd) -> float:
    data, copies = place / "data", place / "copies"
    copies.mkdir()
    pool = os.urandom(MIB)
    with data.open("wb") as file:
        for _ in range(SIZE // 2 // MIB):
            file.write(pool)
    began_s = time.monotonic()
    runner.run(*server.scp_words([data], copies))
    took_s = time.monotonic() - began_s
    data.unlink()
    shutil.rmtree(copies)
    return took_s
