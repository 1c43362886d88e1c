"""`aimfuse ship` from outside: exit codes, and a clean end on SIGTERM."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from aimfuse.config import DestinationConfig
from aimfuse.config.windows import parse_window
from tests.coordinator.samples import SampleSource

RUN = "import typer; from aimfuse.cli.ship import register; a = typer.Typer(); register(a)"


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


def drained(source: SampleSource) -> tuple[int, str]:
    """Run `ship --until-empty` to its end; return its exit code and what it said."""
    process = ship(str(source.image), "--until-empty")
    _out, error = process.communicate(timeout=60)
    return process.returncode, error


def test_nothing_to_ship_is_a_success(tmp_path: Path) -> None:
    assert drained(SampleSource(tmp_path)) == (0, "")


def test_a_destination_that_stays_away_is_named_and_gives_20(tmp_path: Path) -> None:
    away = DestinationConfig("far", str(tmp_path / "no/where"), give_up_s=0.2)
    paused = DestinationConfig("rest", str(tmp_path / "rest"), paused=True)
    code, error = drained(SampleSource(tmp_path, away, paused))
    assert code == 20
    assert "far has not got everything" in error
    assert "rest is paused and left out" in error


def test_outside_its_windows_a_destination_is_not_waited_for(tmp_path: Path) -> None:
    hour = time.localtime().tm_hour
    window = parse_window(f"{(hour + 6) % 24:02}:00-{(hour + 7) % 24:02}:00")
    code, error = drained(
        SampleSource(tmp_path, DestinationConfig("far", str(tmp_path), windows=(window,)))
    )
    assert code == 20
    assert "outside its windows until" in error


def test_a_signal_before_the_end_is_no_success(tmp_path: Path) -> None:
    source = SampleSource(tmp_path, DestinationConfig("far", str(tmp_path / "store")))
    process = ship(str(source.image), "--until-empty")
    report = source.state_dir / "destinations/far/status.json"
    deadline = time.monotonic() + 60
    while not report.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _out, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ended by SIGTERM" in error


def test_a_journal_that_goes_on_behind_its_sealed_files_is_no_success(tmp_path: Path) -> None:
    source = SampleSource(tmp_path)
    source.checkpoint(clean=False)
    code, error = drained(source)
    assert code == 1
    assert "Mount it once" in error
