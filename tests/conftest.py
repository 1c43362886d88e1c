"""What holds for every test: no silent skips under CI, no undeclared warnings, printed seeds."""

import logging
import os
import random
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

IN_CI = os.environ.get("CI") == "true"

# "dev" looks for new faults in passing; "ci" finds the same every time, so that a red build
# is about the change; "nightly" goes looking, and prints the seed that brings a find back.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile(
    "ci", deadline=None, max_examples=50, derandomize=True, database=None, print_blob=True
)
settings.register_profile(
    "nightly", deadline=None, max_examples=2000, derandomize=False, print_blob=True
)
settings.load_profile("ci" if IN_CI else "dev")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if _profile(config) != "ci" and _seed(config) is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_report_header(config: pytest.Config) -> str:
    return _chance(config)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if exitstatus != pytest.ExitCode.OK:  # With -q there was no header.
        terminalreporter.write_line(_chance(config))


def _chance(config: pytest.Config) -> str:
    seed = _seed(config)
    drawn = "the same examples each time" if seed is None else f"--hypothesis-seed={seed}"
    return f"hypothesis: --hypothesis-profile={_profile(config)}, {drawn}"


def _profile(config: pytest.Config) -> str:
    profile: str | None = config.getoption("--hypothesis-profile")
    return profile or ("ci" if IN_CI else "dev")


def _seed(config: pytest.Config) -> str | None:
    seed: str | None = config.getoption("--hypothesis-seed")
    return seed


# A skip is a hole in the promise "all tests pass". Under CI=true it fails, unless the test
# carries known_gap with the reason why nobody can run it there.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("known_gap") is not None
    if IN_CI and report.skipped and not expected:
        report.outcome = "failed"
        report.longrepr = f"skipped under CI=true: {_skip_reason(call)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped as a whole under CI=true: {report.longrepr}"
    return report


def _skip_reason(call: pytest.CallInfo[None]) -> str:
    return "no reason given" if call.excinfo is None else str(call.excinfo.value)


class _Warnings(logging.Handler):
    """Keep what was logged at WARNING or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def _undeclared_warnings_fail(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that makes aimfuse log a warning which `expects_warnings` does not cover."""
    handler = _Warnings()
    logger = logging.getLogger("aimfuse")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if handler.lines and request.node.get_closest_marker("expects_warnings") is None:
        pytest.fail("undeclared warnings:\n" + "\n".join(handler.lines), pytrace=False)


@pytest.fixture(scope="session")
def require_fuse() -> None:
    """Skip where this machine cannot mount FUSE file systems (under CI: fail)."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as exc:
        pytest.skip(f"/dev/fuse cannot be used: {exc.strerror}")


@pytest.fixture(scope="session")
def require_root_loop(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where loop devices cannot be set up: no root, or none available (under CI: fail)."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    image = tmp_path_factory.mktemp("loop") / "probe.img"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    made = _run("losetup", "--find", "--show", str(image))
    if made.returncode != 0:
        pytest.skip(f"no loop device to be had: {made.stderr.strip()}")
    _run("losetup", "--detach", made.stdout.strip())


@pytest.fixture(scope="session")
def require_namespaces() -> None:
    """Skip where no network namespaces with slow links can be made (under CI: fail)."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    tried = "ip link add one type veth peer name two && tc qdisc add dev one root"
    shape = "tbf rate 1mbit burst 16kb latency 100ms"
    made = _run("unshare", "--net", "sh", "-c", f"{tried} {shape}")
    if made.returncode != 0:
        pytest.skip(f"no network namespaces with slow links: {made.stderr.strip()}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Return the directory that holds pyproject.toml."""
    return Path(__file__).resolve().parent.parent
