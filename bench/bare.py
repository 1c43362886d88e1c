"""The contestant without a mirror: the bare pyfuse3 pass-through of one file."""

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path

from bench.load import fill
from bench.rig import MOUNTPOINT, VOLUME, Places, Rig
from bench.running import Runner, unmounting

_SCRIPT = Path(__file__).with_name("passthrough.py")


@contextlib.contextmanager
def bare(runner: Runner, places: Places) -> Generator[Rig]:
    """Mount it."""
    places.make()
    image, mountpoint, log = places.near / VOLUME, places.near / MOUNTPOINT, places.near / "log"
    fill(image, places.size)
    with (
        runner.running((sys.executable, _SCRIPT, image, mountpoint), log) as child,
        unmounting(mountpoint),
    ):
        runner.until_mounted(child, mountpoint / VOLUME, log)
        yield Rig(mountpoint / VOLUME, lambda: None)
