"""The demo as a whole: it finds all as promised, and cleans up also when it is interrupted."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.manager.target import mounts

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.fuse, pytest.mark.slow]


def start(place: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPO / "demo" / "demo.py"), "--dir", str(place), *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
    )


def traces_of(place: Path) -> list[str]:
    """Return what is left of a demo: mounts, loop devices, processes, files."""
    name = str(place)
    found = [str(path) for path in mounts() if name in str(path)]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if name in line]
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # Detached meanwhile.
            if name in path.read_text():
                found.append(str(path))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if name in words:
            found.append(words.replace("\0", " "))
    return found + [str(path) for path in place.rglob("*")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "place"
    place.mkdir()
    yield place
    assert traces_of(place) == []


def test_the_demo_finds_everything_as_promised_and_leaves_nothing(place: Path) -> None:
    demo = start(place)
    output, _ = demo.communicate(timeout=280)
    assert demo.returncode == 0, output
    assert "AS PROMISED" in output
    assert re.search(r"killed in the middle of file \d+, the replayer redid it", output)
    assert "\x1b" not in output


# Before anything is made; while it mounts; at work; cut off; while it catches up.
@pytest.mark.parametrize(
    ("options", "moment"),
    [
        (("--sqlite",), "A source"),
        ((), "ext4 on a loop device|The application starts"),
        (("--sqlite",), "The line breaks"),
        ((), "The line breaks"),
    ],
)
def test_an_interrupted_demo_leaves_nothing(
    place: Path, options: tuple[str, ...], moment: str
) -> None:
    demo = start(place, *options)
    assert demo.stdout is not None
    lines: list[str] = []
    for line in demo.stdout:
        lines.append(line)
        if re.search(moment, line):
            break
    time.sleep(0.2)  # Into the step, wherever that is.
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, "".join(lines) + rest
    assert "Nothing was left behind" in rest
