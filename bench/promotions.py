"""Promotion: what it takes beyond applying what has arrived, and how fast a mirror goes back.

Both with the stores of past.py. `promote`: a store with 1 GiB that is not applied is promoted, and
a copy of it is replayed; the difference counts. `rewind`: a store goes back in place over all of
its history, and a copy of it is restored to the same point, as large as it is.
"""

import shutil
import time
from pathlib import Path

from aimfuse.journal.names import SEALED, UNDO
from aimfuse.replay.kept import HISTORY
from bench.load import MB
from bench.past import SIZE, Past, Taken
from bench.running import AIMFUSE, Runner


def beyond_applying_s(runner: Runner, past: Past, rounds: int) -> list[float]:
    """Return the seconds that promoting takes longer than replaying, one for each round."""
    found = []
    for _ in range(rounds):
        store = past.unapplied()
        replayed_s = _took_s(runner, *AIMFUSE, "replay", "--once", store)
        store = past.unapplied()
        promoted_s = _took_s(runner, *AIMFUSE, "promote", store)
        found.append(max(0.0, promoted_s - replayed_s))
    return found


def rewind(runner: Runner, past: Past, rounds: int) -> Taken:
    """Return the MB/s of the image, of going back in place and of a restore, in turns."""
    output, trial = past.store.with_name("restored"), past.store.with_name("trial")
    ours, theirs = [], []
    for _ in range(rounds):
        restore = (*AIMFUSE, "restore", past.store, "-o", output, "--at", past.origin)
        theirs.append(SIZE / MB / _took_s(runner, *restore))
        output.unlink()
        _copy(runner, past.store, trial)
        promote = (*AIMFUSE, "promote", trial, "--at", past.origin)
        ours.append(SIZE / MB / _took_s(runner, *promote))
        shutil.rmtree(trial)
    return ours, theirs


def _copy(runner: Runner, store: Path, copy: Path) -> None:
    """Copy a store; nobody writes into the files of its history, so they are linked."""
    copy.mkdir()
    parts = [path for path in store.iterdir() if path.name != HISTORY]
    runner.run("cp", "-a", *parts, copy)  # Together: mirrors and volumes are the same files.
    runner.run("cp", "-a", "--attributes-only", store / HISTORY, copy)
    for path in (store / HISTORY).iterdir():
        name = copy / HISTORY / path.name
        name.unlink()
        if path.suffix in {SEALED, UNDO}:
            name.hardlink_to(path)
        else:
            shutil.copy2(path, name)


def _took_s(runner: Runner, *words: str | Path) -> float:
    began_s = time.monotonic()
    runner.run(*words)
    return time.monotonic() - began_s
