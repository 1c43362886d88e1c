"""The commands as an operator types them: output, JSON, exit codes, and what is said."""

# ruff: noqa: ANN401 - status dictionaries hold anything

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from aimfuse.cli import inspect, mark, watch
from aimfuse.disk import Disk
from aimfuse.errors import BusyError
from aimfuse.journal.slots import Slots
from aimfuse.manager import control_client
from aimfuse.manager.wait import unmount

FILES = Path(__file__).parents[1] / "golden" / "files"
Answer = dict[str, Any]

app = typer.Typer(pretty_exceptions_enable=False)
watch.register(app)
inspect.register(app)
mark.register(app)
runner = CliRunner()


class Driver:
    """A stand-in for a mounted group, whose one destination `far` stands where it is put."""

    def __init__(self, state_dir: Path, status: Answer) -> None:
        self.state_dir = state_dir
        self.asked: list[Answer] = []
        self.takes_s = 0.0
        self.replies: dict[str, Answer] = {
            "status": status,
            "roll": {"ok": True, "number": 7, "epoch": 1},
            "bookmark": {"ok": True, "epoch": 1, "seq": 42},
            "stop": {"ok": True},
        }
        self._cursor = Slots(Disk(), state_dir / "destinations" / "far" / "cursor", "test")
        (state_dir / "destinations" / "far").mkdir(parents=True)
        (state_dir / "group.toml").write_text('image = "../v.img"\n')

    def __call__(self, request: Answer) -> bytes:
        self.asked.append(request)
        time.sleep(self.takes_s)
        return json.dumps(self.replies[request["cmd"]]).encode() + b"\n"

    def put(
        self, received: int, applied: int, state: str = "shipping",
        sync: dict[str, Any] | None = None, **status: Any,
    ) -> None:  # fmt: skip
        at = {"state": state, "number": received, "applied": applied, "sync": sync}
        self._cursor.write(at)
        path = self.state_dir / "destinations" / "far" / "status.json"
        path.write_text(json.dumps({"state": state, **status}))


@pytest.fixture
def driver(serve: Callable[[Any], Path], tmp_path: Path, made: Any) -> Driver:
    status = made.source(made.destination(name="far"), mountpoint=str(tmp_path / "mnt"))
    one = Driver(tmp_path, status)
    serve(one)
    one.put(6, 5)
    return one


def run(*arguments: object) -> Any:
    return runner.invoke(app, [str(one) for one in arguments])


def test_status_is_text_or_json_with_the_same_shape_for_one_and_for_many(driver: Driver) -> None:
    text = run("status", driver.state_dir)
    assert text.exit_code == 0
    assert "far  shipping" in text.stdout
    told = json.loads(run("status", driver.state_dir, "--json").stdout)
    assert told["version"] == 1
    assert told["stores"] == []
    assert told["sources"][0] == driver.replies["status"] | {"state_dir": str(driver.state_dir)}


def test_status_check_fails_where_something_is_in_trouble(driver: Driver) -> None:
    assert run("status", driver.state_dir, "--check").exit_code == 0
    driver.replies["status"]["state"] = "halted"
    assert run("status", driver.state_dir, "--check").exit_code == 1
    assert run("status", driver.state_dir).exit_code == 0


def test_status_of_nothing_is_a_usage_error_with_a_way_out(tmp_path: Path) -> None:
    result = run("status", tmp_path / "missing.img")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_the_dashboard_looks_once_into_a_pipe_without_control_codes(driver: Driver) -> None:
    result = run("dashboard", driver.state_dir, "--once")
    assert result.exit_code == 0
    assert "far  shipping" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_nonsense_interval_is_a_usage_error(driver: Driver) -> None:
    assert run("dashboard", driver.state_dir, "--interval", "soon").exit_code == 2


def test_flush_waits_for_no_destination_unless_told_to(driver: Driver) -> None:
    result = run("flush", driver.state_dir)
    assert result.exit_code == 0
    assert result.stdout == "Everything through file 7 is durable.\n"


def test_flush_returns_once_the_destination_has_it(driver: Driver) -> None:
    driver.put(7, 5)
    assert run("flush", driver.state_dir, "--wait", "received").exit_code == 0
    catch_up = threading.Timer(0.3, driver.put, (7, 7))
    catch_up.start()
    result = run("flush", driver.state_dir, "--wait", "applied", "--json")
    catch_up.join()
    assert json.loads(result.stdout) == {
        "ok": True, "number": 7, "epoch": 1, "stage": "applied", "destinations": ["far"],
    }  # fmt: skip


def test_flush_lets_a_slow_driver_have_the_time_that_it_was_given(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "CALL_S_MAX", 0.05)
    driver.takes_s = 0.3
    driver.put(7, 7)
    assert run("flush", driver.state_dir, "--wait", "applied", "--timeout", "60s").exit_code == 0


def test_flush_names_who_is_behind_when_its_time_is_over(driver: Driver) -> None:
    result = run("flush", driver.state_dir, "--wait", "applied", "--timeout", "1s")
    assert result.exit_code == 20
    assert "far is 2 files behind (shipping)" in result.stderr


def test_flush_says_what_it_waits_for_where_a_store_holds_back_on_purpose(driver: Driver) -> None:
    delayed = {"phase": "consistent", "paused": None, "delay_s": 3600.0}
    driver.put(7, 5, ack=delayed)
    assert run("flush", driver.state_dir, "--wait", "received").stderr == ""
    result = run("flush", driver.state_dir, "--wait", "applied", "--timeout", "1s")
    said, problem, hint = result.stderr.splitlines()
    assert said.startswith("far: held back on purpose: its delay is 1 h 0 min. To let it through")
    assert "far is 2 files behind (shipping: held back on purpose" in problem
    assert hint == "To let it through, on its host: `delay = 0` in STORE/store.toml."
    closed = {"receive": {"since_ns": 1, "reason": ""}}
    driver.put(6, 5, ack=delayed | {"paused": closed, "delay_s": 0.0})
    result = run("flush", driver.state_dir, "--wait", "received", "--timeout", "1s")
    assert "far: held back on purpose: receive is paused there. " in result.stderr
    assert "`aimfuse resume STORE receive`" in result.stderr


def test_flush_does_not_wait_for_what_never_comes(driver: Driver) -> None:
    driver.put(6, 5, "halted", error="gap")
    result = run("flush", driver.state_dir, "--wait", "received", "--timeout", "1h")
    assert result.exit_code == 21
    assert "far is 1 file behind (halted: gap)" in result.stderr


@pytest.mark.parametrize("stage", ["received", "applied"])
def test_a_mirror_that_catches_up_after_a_sync_is_not_there_yet(driver: Driver, stage: str) -> None:
    driver.put(7, 7, ack={"phase": "catching_up"})
    result = run("flush", driver.state_dir, "--wait", stage, "--timeout", "1s")
    assert "far is not consistent yet" in result.stderr


@pytest.mark.parametrize("stage", ["received", "applied"])
def test_an_image_that_was_never_written_to_is_not_there_before_its_first_copy(
    driver: Driver, stage: str
) -> None:
    driver.replies["roll"] = {"ok": True, "number": 0, "epoch": 1}
    driver.put(0, 0, "new")
    assert run("flush", driver.state_dir, "--wait", stage, "--timeout", "1s").exit_code == 20


@pytest.mark.parametrize("stage", ["received", "applied"])
def test_where_a_copy_begins_is_not_what_is_there(driver: Driver, stage: str) -> None:
    driver.put(7, 7, "syncing", sync={"from": 7, "staged": True})
    assert run("flush", driver.state_dir, "--wait", stage, "--timeout", "1s").exit_code == 20


def test_flush_knows_only_the_destinations_there_are(driver: Driver) -> None:
    result = run("flush", driver.state_dir, "--wait", "applied", "--destination", "moon")
    assert result.exit_code == 2
    assert "Known: far." in result.stderr


def test_what_the_driver_refuses_ends_with_its_exit_code(driver: Driver) -> None:
    driver.replies["roll"] = {"ok": False, "error": "halted", "hint": "Remount", "exit_code": 13}
    result = run("flush", driver.state_dir)
    assert result.exit_code == 13
    assert "aimfuse: halted" in result.stderr
    assert "Remount" in result.stderr


def test_a_bookmark_says_where_it_is(driver: Driver) -> None:
    result = run("bookmark", driver.state_dir, "before\x1b[31m upgrade")
    assert result.stdout == 'Bookmark "before\\x1b[31m upgrade" set at 1:42.\n'
    asked = {"cmd": "bookmark", "label": "before\x1b[31m upgrade", "timeout_s": 30.0}
    assert driver.asked[-2:] == [{**asked, "check": True}, asked]


@pytest.mark.parametrize("command", [["flush"], ["umount"]])
def test_commands_for_a_mount_say_that_there_is_none(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "group.toml").write_text('image = "x"\n')
    result = run(*command, tmp_path)
    assert result.exit_code == 3
    assert "not mounted" in result.stderr
    way_on = "nothing to unmount" if command == ["umount"] else "aimfuse mount"
    assert way_on in result.stderr


def test_umount_where_nothing_is_mounted_says_just_that(tmp_path: Path) -> None:
    result = run("umount", tmp_path)
    assert result.exit_code == 3
    assert f"nothing of aimfuse is mounted at {tmp_path}" in result.stderr
    assert "init" not in result.stderr


def test_umount_stops_the_driver_and_says_what_is_gone(driver: Driver) -> None:
    result = run("umount", driver.state_dir)
    assert result.exit_code == 0
    assert "Unmounted" in result.stdout
    assert driver.asked[-1] == {"cmd": "stop"}


def test_umount_names_the_users_and_stops_nothing_while_there_are_some(driver: Driver) -> None:
    with pytest.raises(BusyError, match="in use by /dev/loop9"):
        unmount(driver.state_dir, 0.2, lambda _mountpoint: ["/dev/loop9 (loop device on v.img)"])
    assert {"cmd": "stop"} not in driver.asked


def test_umount_waits_for_a_loop_device_that_detaches_late(driver: Driver) -> None:
    looks = iter([["/dev/loop9"], ["/dev/loop9"], []])
    unmount(driver.state_dir, 60, lambda _mountpoint: next(looks))
    assert driver.asked[-1] == {"cmd": "stop"}


def test_umount_passes_on_what_the_kernel_says_where_no_user_can_be_seen(driver: Driver) -> None:
    driver.replies["stop"] = {"ok": False, "error": "busy", "hint": "", "exit_code": 3}
    result = run("umount", driver.state_dir)
    assert result.exit_code == 3
    assert "aimfuse: busy" in result.stderr


def test_inspect_prints_text_or_json_and_fails_on_damage() -> None:
    sound = run("inspect", FILES / "00000001-000000000001.aim", "--records")
    assert sound.exit_code == 0
    assert "sound, 11 records" in sound.stdout
    assert "BOOKMARK" in sound.stdout
    told = json.loads(run("inspect", FILES / "torn.open", "--json", "--limit", "1").stdout)
    assert (told["verdict"], len(told["iocbs"])) == ("unsealed", 1)
    damaged = run("inspect", FILES / "damaged.open")
    assert damaged.exit_code == 10
    assert "damaged at byte" in damaged.stdout


def test_inspect_of_no_file_is_a_usage_error(tmp_path: Path) -> None:
    assert run("inspect", tmp_path).exit_code == 2
    assert run("inspect", tmp_path / "missing").exit_code == 2
