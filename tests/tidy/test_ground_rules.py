"""The rules that conftest.py sets for all tests, tried on tests that break them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

SAMPLES = """
import logging
import warnings

import pytest

log = logging.getLogger("aimfuse.sample")


def test_skips():
    pytest.skip("no such device")


@pytest.mark.skipif("True", reason="not on this machine")
def test_is_marked_to_skip():
    pass


@pytest.mark.known_gap("needs a kernel that no build server has")
def test_has_a_known_gap():
    pytest.skip("old kernel")


@pytest.mark.xfail(raises=ZeroDivisionError)
def test_is_known_to_fail():
    raise ZeroDivisionError


def test_logs_a_warning():
    log.warning("the disk is slow")


@pytest.mark.expects_warnings
def test_logs_a_declared_warning():
    log.warning("the disk is slow")


def test_raises_a_python_warning():
    warnings.warn("old ways", DeprecationWarning)


async def test_runs_under_trio():
    import trio

    await trio.sleep(0)
"""


def run(directory: Path, source: str, *, ci: bool) -> subprocess.CompletedProcess[str]:
    """Run *source* under our conftest.py and settings."""
    for name in ("pyproject.toml", "tests/conftest.py"):
        copy = directory / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((REPO / name).read_text())
    (directory / "tests" / "test_sample.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no"]
    environment = {**os.environ, "CI": "true" if ci else "", "PYTHONPATH": str(REPO / "src")}
    return subprocess.run(
        command, check=False, cwd=directory, env=environment, capture_output=True, text=True
    )


def outcomes(output: str) -> dict[str, str]:
    """Return the last outcome that pytest reported for each test."""
    lines = [line.split() for line in output.splitlines() if "::" in line and "%]" in line]
    return {words[0].rpartition("::")[2]: words[1] for words in lines}


@pytest.mark.parametrize("ci", [True, False], ids=["on a build server", "at a desk"])
def test_a_skip_fails_on_a_build_server_only_and_a_warning_everywhere(
    tmp_path: Path, ci: bool
) -> None:
    skipped = "FAILED" if ci else "SKIPPED"
    assert outcomes(run(tmp_path, SAMPLES, ci=ci).stdout) == {
        "test_skips": skipped,
        "test_is_marked_to_skip": "ERROR" if ci else "SKIPPED",
        "test_has_a_known_gap": "SKIPPED",
        "test_is_known_to_fail": "XFAIL",
        "test_logs_a_warning": "ERROR",
        "test_logs_a_declared_warning": "PASSED",
        "test_raises_a_python_warning": "FAILED",
        "test_runs_under_trio": "PASSED",
    }


@pytest.mark.parametrize(
    ("ci", "expected"),
    [(True, pytest.ExitCode.INTERRUPTED), (False, pytest.ExitCode.NO_TESTS_COLLECTED)],
    ids=["on a build server", "at a desk"],
)
def test_a_file_that_skips_itself_fails_on_a_build_server_only(
    tmp_path: Path, ci: bool, expected: pytest.ExitCode
) -> None:
    source = 'import pytest\n\npytest.importorskip("no_such_module")\n'
    assert run(tmp_path, source, ci=ci).returncode == expected
