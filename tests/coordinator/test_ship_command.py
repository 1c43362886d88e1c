"""`aimfuse ship` from outside: exit codes, and a clean end on SIGTERM."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from aimfuse.config import DestinationConfig
from tests.coordinator.samples import SampleSource

RUN = "import typer; from aimfuse.cli.source_ship import register; a = typer.Typer(); register(a)"


def ship(*arguments: str) -> subprocess.Popen[str]:
    code = f"{RUN}; a.callback()(lambda: None); a()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "ship", *arguments],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_an_image_that_was_never_initialised_is_refused_with_the_remedy(tmp_path: Path) -> None:
    process = ship(str(tmp_path / "v.img"))
    _out, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "aimfuse init" in error


def test_sigterm_ends_it_cleanly_and_a_second_one_is_refused(tmp_path: Path) -> None:
    source = SampleSource(tmp_path, DestinationConfig("far", str(tmp_path / "store")))
    first = ship(str(source.image))
    report = source.state_dir / "destinations/far/status.json"
    deadline = time.monotonic() + 60
    while not report.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = ship(str(source.image))
    _out, error = second.communicate(timeout=60)
    assert second.returncode == 3
    assert str(first.pid) in error
    first.send_signal(signal.SIGTERM)
    _out, error = first.communicate(timeout=60)
    assert first.returncode == 0, error
