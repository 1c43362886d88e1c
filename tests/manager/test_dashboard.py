"""The loop around the drawing: rates, and an end without an error."""

# ruff: noqa: ANN401 - status dictionaries hold anything

import io
import os
from typing import Any

import pytest
from rich.console import Console

from aimfuse.manager import dashboard
from aimfuse.manager.dashboard import History
from aimfuse.manager.snapshot import Snapshot, snapshot
from aimfuse.manager.users import mount_users, named


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=80, height=24, force_terminal=terminal)


def output(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_rates_come_from_the_differences_between_two_looks(made: Any) -> None:
    history = History(1.0)
    for second, (records, sent) in enumerate([(100, 1000), (150, 5000), (150, 0)]):
        status = made.source(made.destination(sent_bytes=sent), accepted_seq=records)
        stores = [made.store(applied={"seq": records})]
        history.note(snapshot([status], stores, made.now_ns + second * made.second))
    assert list(history.rates["/srv/vm/v.img",]) == [50, 0]
    assert list(history.rates["/srv/vm/v.img", "backup"]) == [4000, 0]  # It started anew.
    assert list(history.rates["/srv/mirror/v",]) == [50, 0]


def test_no_more_than_a_minute_is_remembered(made: Any) -> None:
    history = History(1.0)
    for second in range(100):
        history.note(snapshot([made.source()], [], made.now_ns + second * made.second))
    assert len(history.rates["/srv/vm/v.img",]) == 60


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_ends_it_without_an_error_and_gives_the_terminal_back(
    made: Any, terminal: bool
) -> None:
    looks = 0

    def look() -> Snapshot:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt
        return snapshot([made.source()], [], made.now_ns)

    screen = console(terminal=terminal)
    dashboard.run(screen, look, 0.0)
    shown = output(screen)
    assert ("\x1b[?1049l" in shown) == terminal
    assert ("\x1b" in shown) == terminal
    if not terminal:
        assert shown.count("backup  shipping") == 2


def test_a_terminal_that_can_only_print_gets_block_after_block(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    looks = [snapshot([made.source()], [], made.now_ns)] * 2

    def look() -> Snapshot:
        if not looks:
            raise KeyboardInterrupt
        return looks.pop()

    screen = console(terminal=True)
    dashboard.run(screen, look, 0.0)
    assert output(screen).count("v.img  active") == 2
    assert "\x1b" not in output(screen)


def test_once_prints_one_block_also_on_a_terminal(made: Any) -> None:
    screen = console(terminal=True)
    dashboard.run(screen, lambda: snapshot([made.source()], [], made.now_ns), 1.0, once=True)
    assert "\x1b[?1049h" not in output(screen)
    assert "backup" in output(screen)


def test_who_works_in_a_directory_or_has_a_file_of_it_open_is_named(tmp_path: Any) -> None:
    import subprocess  # noqa: PLC0415

    (tmp_path / "v.img").write_bytes(b"x")
    with (tmp_path / "v.img").open("rb") as file:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file.fileno(), cwd="/")
    try:
        users = mount_users(tmp_path)
        assert users == [f"cat (pid {child.pid}, has v.img open)"]
        assert mount_users(tmp_path / "other") == []
    finally:
        child.communicate()
    assert not any(str(os.getpid()) in user for user in users)


def test_many_users_are_named_in_one_line() -> None:
    assert named([str(number) for number in range(10)]) == "0; 1; 2; 3; 4; 5; 6; 7; and 2 more"
