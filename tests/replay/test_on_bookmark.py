"""A command of the operator's runs when a bookmark is applied: at least once, in no one's way."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.config.store import load_store
from aimfuse.disk import Disk
from aimfuse.errors import ConfigError
from aimfuse.replay.look import Entry, Look
from aimfuse.replay.session import Session
from tests.e2e.host import is_running, until
from tests.replay.source import Source, deliver, inbox_of, marked
from tests.replay.stores import begun, exhaust, opened, report

SCRIPT = """\
#!/bin/sh
echo "$AIMFUSE_LABEL $AIMFUSE_POSITION $AIMFUSE_STORE $*" >> {log}
if [ "$AIMFUSE_LABEL" = bad ]; then exit 3; fi
if [ "$AIMFUSE_LABEL" = slow ]; then exec sleep 60; fi
if [ "$AIMFUSE_LABEL" = leaves ]; then
    (trap '' TERM; exec sleep 600) &
    echo $! >> {log}
    wait
fi
"""


@pytest.fixture
def store(tmp_path: Path, source: Source) -> Path:
    script = tmp_path / "script"
    script.write_text(SCRIPT.format(log=tmp_path / "log"))
    script.chmod(0o755)
    store = begun(tmp_path / "store", source)
    settings(store, "*", str(script), "and", "more")
    with opened(store) as session:  # From here on.
        exhaust(session)
    return store


def settings(store: Path, pattern: str, *command: str, first: str = "") -> None:
    text = f"{first}\n[on_bookmark]\n{json.dumps(pattern)} = {json.dumps(command)}\n"
    (store / "store.toml").write_text(text)


def ran(store: Path) -> list[str]:
    log = store.with_name("log")
    return log.read_text().splitlines() if log.exists() else []


def work(session: Session, condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end_s
        exhaust(session)
        time.sleep(0.01)


def settle(store: Path, look: Look | None = None) -> dict[str, object]:
    """Work until there is nothing left to do, and return the report."""
    with opened(store, look=look) as session:
        exhaust(session)
        work(session, lambda: not session.is_busy)
        exhaust(session)
    return report(session)


def test_it_runs_once_for_each_bookmark_in_order_with_the_label_in_its_environment(
    store: Path, source: Source
) -> None:
    deliver(store, marked(source, "one", "$(touch here); two"), marked(source, "three"))
    told = settle(store)
    assert ran(store) == [
        f"one 1:4 {store} and more",
        f"$(touch here); two 1:6 {store} and more",
        f"three 1:9 {store} and more",
    ]
    assert told["on_bookmark"]["running"] is None  # type: ignore[index]
    assert told["on_bookmark"]["problem"] is None  # type: ignore[index]
    settle(store)
    assert len(ran(store)) == 3


def test_what_was_applied_while_no_command_was_set_is_not_made_up_for(
    store: Path, source: Source
) -> None:
    (store / "store.toml").unlink()
    deliver(store, marked(source, "unseen"))
    settle(store)
    settings(store, "*", str(store.with_name("script")))
    settle(store)
    deliver(store, marked(source, "seen"))
    settle(store)
    assert [line.split()[0] for line in ran(store)] == ["seen"]


def test_only_labels_that_fit_a_pattern_run_anything(store: Path, source: Source) -> None:
    settings(store, "nightly-*", str(store.with_name("script")))
    deliver(store, marked(source, "daily-1", "nightly-1", "Nightly-2"))
    settle(store)
    assert [line.split()[0] for line in ran(store)] == ["nightly-1"]


def test_only_a_command_of_the_file_whose_owner_was_looked_at_runs(
    store: Path, source: Source
) -> None:
    trusted = (store / "store.toml").read_text()
    settings(store, "*", str(store.with_name("script")), "planted")
    with opened(store) as session:  # It reads these; then the operator's file is there again.
        exhaust(session)
        (store / "store.toml").write_text(trusted)
        deliver(store, marked(source, "one"))
        work(session, lambda: ran(store))
    assert ran(store) == [f"one 1:4 {store} and more"]


@pytest.mark.expects_warnings
def test_a_failure_is_told_and_stops_nothing(store: Path, source: Source) -> None:
    deliver(store, marked(source, "bad"))
    told = settle(store)["on_bookmark"]
    assert told["problem"] == "the command for bookmark 'bad' failed with exit code 3"  # type: ignore[index]
    deliver(store, marked(source, "good"))
    told = settle(store)["on_bookmark"]
    assert told["problem"] is None  # type: ignore[index]
    assert len(ran(store)) == 2


@pytest.mark.expects_warnings
def test_a_program_that_is_not_there_is_told(store: Path, source: Source) -> None:
    settings(store, "*", "/nowhere/program")
    deliver(store, marked(source, "one"))
    told = settle(store)["on_bookmark"]
    assert "cannot be run" in told["problem"]  # type: ignore[index]


@pytest.mark.expects_warnings
def test_a_slow_command_is_ended_and_the_mirror_goes_on_meanwhile(
    store: Path, source: Source
) -> None:
    settings(store, "*", str(store.with_name("script")), first='on_bookmark_timeout = "1s"')
    deliver(store, marked(source, "slow"))
    with opened(store) as session:
        work(session, lambda: ran(store))
        assert session.is_busy
        deliver(store, marked(source, "behind"))
        exhaust(session)
        head = session.store.state.head
        assert head is not None
        assert head.number == source.number
        assert session.is_busy
        work(session, lambda: len(ran(store)) == 2)
        work(session, lambda: not session.is_busy)


@pytest.mark.expects_warnings
def test_what_a_slow_command_started_ends_with_it(store: Path, source: Source) -> None:
    script = str(store.with_name("script"))
    settings(store, "*", script, first='on_bookmark_timeout = "1h"')
    deliver(store, marked(source, "leaves"))
    with opened(store) as session:
        work(session, lambda: len(ran(store)) == 2)
        settings(store, "*", script, first='on_bookmark_timeout = "1s"')
        work(session, lambda: not session.is_busy)
    until(lambda: not is_running(int(ran(store)[1])))


def test_a_command_that_was_cut_off_runs_again(store: Path, source: Source) -> None:
    deliver(store, marked(source, "slow"))
    with opened(store) as session:
        work(session, lambda: ran(store))
    assert not session.is_busy
    with opened(store) as session:
        work(session, lambda: len(ran(store)) == 2)


class Foreign(Look):
    """A look that sees the inbox as that of whoever owns ``store.toml``, and is not root."""

    def entry(self, path: Path) -> Entry | None:
        found = super().entry(path)
        if found is None or path.name != "inbox":
            return found
        return Entry(found.kind, found.inode, found.size, found.links, 4711, found.mtime_ns)

    def own_uid(self) -> int:
        return 4711


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_settings_that_a_sender_could_have_written_are_not_followed(
    store: Path, source: Source
) -> None:
    os.chown(store / "store.toml", 4711, -1)
    deliver(store, marked(source, "one"))
    told = settle(store, Foreign())["on_bookmark"]
    assert "is not followed" in told["problem"]  # type: ignore[index]
    assert ran(store) == []
    os.chown(store / "store.toml", 0, -1)
    settle(store, Foreign())
    assert len(ran(store)) == 1


def test_settings_that_everybody_may_write_are_not_followed(store: Path, source: Source) -> None:
    (store / "store.toml").chmod(0o666)
    deliver(store, marked(source, "one"))
    assert "chmod 644" in settle(store)["on_bookmark"]["problem"]  # type: ignore[index]
    assert ran(store) == []


@pytest.mark.parametrize(
    "text",
    [
        "on_bookmark = 7",
        '[on_bookmark]\n"*" = "/bin/true"',
        '[on_bookmark]\n"*" = []',
        '[on_bookmark]\n"*" = ["true"]',
        '[on_bookmark]\n"*" = ["/bin/true", 7]',
    ],
)
def test_what_is_no_command_is_refused_with_what_would_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "store.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_store(tmp_path, Disk())
    assert "[" in caught.value.hint


def test_nothing_in_the_inbox_can_set_a_command(store: Path, source: Source) -> None:
    (store / "store.toml").unlink()
    (inbox_of(store) / "store.toml").write_text('[on_bookmark]\n"*" = ["/bin/touch", "/tmp/x"]\n')
    deliver(store, marked(source, "one"))
    assert settle(store)["on_bookmark"] is None
