"""What the guard of a bookmark does with what it has heard when the pipe ends."""

import shlex
from pathlib import Path

import pytest

from aimfuse.manager.guard import watch
from aimfuse.manager.hook import Hook

SCRIPT = """\
#!/bin/sh
echo "$1 [$AIMFUSE_POSITION]" >> "${0%.sh}.log"
exit ${FAILS:-0}
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "hook.sh"
    path.write_text(SCRIPT)
    path.chmod(0o755)
    return path


def hook(script: Path) -> Hook:
    return Hook(shlex.quote(str(script)), 60.0)


def ran(script: Path) -> list[str]:
    log = script.with_suffix(".log")
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(
    "told",
    [
        [],
        ["runs 4194304", "runs 0", "marked 1:7", "thawed yes"],
    ],
    ids=["nothing was begun", "all was done"],
)
def test_it_leaves_alone_what_needs_no_thaw(script: Path, told: list[str]) -> None:
    assert watch([f"{line}\n" for line in told], hook(script)) == ""
    assert ran(script) == []


def test_it_thaws_between_the_hooks_and_knows_the_position(script: Path) -> None:
    told = ["runs 4194304\n", "runs 0\n", "marked 1:7\n"]
    assert watch(told, hook(script)).endswith("was thawed; the bookmark was set at 1:7")
    assert ran(script) == ["thaw [1:7]"]


def test_a_thaw_that_fails_is_said(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "3")
    said = watch(["runs 4194304\n", "runs 0\n"], hook(script))
    assert said.endswith("failed with exit code 3; the application may still be frozen")


def test_whose_hook_may_not_be_signalled_gets_time_to_end(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(pid: int, _number: int) -> None:
        asked.append(pid)
        raise PermissionError if len(asked) < 6 else ProcessLookupError

    monkeypatch.setattr("os.killpg", refuse)
    watch(["runs 4194304\n"], hook(script))
    assert len(asked) >= 6  # Not only once for each of two signals.
    assert ran(script) == ["thaw []"]
