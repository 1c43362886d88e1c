"""`pause` and `resume`: what is told to a store is durable, and obeyed when the command returns."""

# ruff: noqa: ANN401 - what a command returns

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from aimfuse.cli import pausing
from aimfuse.config.pauses import load_pauses
from aimfuse.disk import Disk, note_owner
from aimfuse.journal.slots import Slots
from aimfuse.manager.far import store_status

app = typer.Typer(pretty_exceptions_enable=False)
pausing.register(app)
runner = CliRunner()


def run(*arguments: object) -> Any:
    return runner.invoke(app, [str(one) for one in arguments])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store" / "inbox").mkdir(parents=True)
    return tmp_path / "store"


@pytest.fixture
def replayed(store: Path) -> Iterator[Path]:
    """Give a store with a replayer that obeys nobody: its lock is taken."""
    disk = Disk()
    fd = disk.open("test", store / "lock", 0o102)
    assert disk.take_lock(fd)
    note_owner(disk, "test", fd)
    yield store
    disk.close(fd)


def says(store: Path, phase: str = "consistent") -> None:
    """Let the replayer say what the file says."""
    paused = {kind: one.to_json() for kind, one in load_pauses(store, Disk()).items()}
    ack = {"paused": paused or None, "phase": phase}
    (store / "ack.json").write_text(json.dumps(ack))


def test_without_a_replayer_it_is_noted_at_once(store: Path) -> None:
    done = run("pause", store, "apply", "--reason", "a backup")
    assert done.exit_code == 0
    assert done.stdout == f"{store}: paused: apply; no replayer is at work\n"
    assert load_pauses(store, Disk())["apply"].reason == "a backup"
    assert store_status(store)["paused"]["apply"]["reason"] == "a backup"
    told = json.loads(run("pause", store, "all", "--json").stdout)
    assert list(told["paused"]) == ["receive", "apply"]
    assert (
        run("resume", store, "all").stdout == f"{store}: nothing paused; no replayer is at work\n"
    )
    assert load_pauses(store, Disk()) == {}
    assert store_status(store)["paused"] is None


def test_pausing_again_keeps_the_time_of_the_first(store: Path) -> None:
    run("pause", store, "apply")
    since_ns = load_pauses(store, Disk())["apply"].since_ns
    run("pause", store, "apply", "--reason", "still")
    again = load_pauses(store, Disk())["apply"]
    assert (again.since_ns, again.reason) == (since_ns, "still")


def test_it_waits_until_the_replayer_says_so(replayed: Path) -> None:
    done = run("pause", replayed, "apply", "--timeout", "100ms")
    assert done.exit_code == 3
    assert "noted, but its replayer has not obeyed yet" in done.stderr
    says(replayed)
    assert run("pause", replayed, "apply", "--timeout", "100ms").exit_code == 0
    other = run("pause", replayed, "apply", "--reason", "new", "--timeout", "100ms")
    assert other.exit_code == 3
    says(replayed)
    assert run("resume", replayed, "receive", "--timeout", "5s").exit_code == 0


@pytest.mark.parametrize("phase", ["switching", "catching_up"])
def test_a_mirror_that_is_not_consistent_is_waited_for(replayed: Path, phase: str) -> None:
    run("pause", replayed, "apply", "--timeout", "10ms")
    says(replayed, phase)
    assert run("resume", replayed, "receive", "--timeout", "100ms").exit_code == 3
    says(replayed)
    assert run("resume", replayed, "receive", "--timeout", "5s").exit_code == 0


def test_what_is_no_store_is_refused_with_what_may_be_meant(tmp_path: Path) -> None:
    done = run("pause", tmp_path, "apply")
    assert done.exit_code == 2
    assert "aimfuse destination pause" in done.stderr
    assert run("pause", tmp_path, "everything").exit_code == 2


def test_a_pause_that_is_repeated_keeps_its_reason_and_a_promoted_store_takes_none(
    store: Path,
) -> None:
    run("pause", store, "apply", "--reason", "a backup")
    run("pause", store, "apply")
    assert load_pauses(store, Disk())["apply"].reason == "a backup"
    Slots(Disk(), store / "state", "test").write({"phase": "promoted"})
    refused = run("pause", store, "apply")
    assert refused.exit_code == 2
    assert "destination pause" in refused.stderr
