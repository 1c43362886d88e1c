"""Restore gives every record of the past exactly, or nothing at all."""

import contextlib
import errno
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from aimfuse.cli.past import register
from aimfuse.cli.plain import App
from aimfuse.disk import Disk
from aimfuse.errors import (
    BusyError,
    JournalError,
    OutOfReach,
    StoreError,
    UsageError,
)
from aimfuse.replay.past import describe
from aimfuse.replay.point import parse_at
from aimfuse.replay.restore import Request, restore
from aimfuse.replay.session import Session
from aimfuse.units import MIB
from tests.dice import LONG
from tests.disks.faults import Crash
from tests.replay.crashes import copy_store, run_into
from tests.replay.faults import Steps, dying, failing_at
from tests.replay.histories import Driver, files
from tests.replay.recorder import (
    NOW,
    Position,
    Recorder,
    Snapshot,
    at,
    begun_recorder,
    position,
    recorded,
    restored,
    silent,
)
from tests.replay.source import Source, deliver
from tests.replay.stores import begin, catch_up, exhaust, opened

pytestmark = pytest.mark.expects_warnings

app = App()
app.callback()(lambda: None)
register(app)


def check_all(store: Path, states: dict[Position, Snapshot], scratch: Path) -> int:
    """Restore every record in reach and compare; return how many there were."""
    said = describe(Disk(), store)
    low, high = position(said["oldest"]["position"]), position(said["newest"]["position"])
    found = 0
    for where, state in sorted(states.items()):
        output = scratch / "restored"
        if low <= where <= high and state:
            assert restored(store, at(where), output) == state, where
            found += 1
        elif where > high and state:  # What was received and not applied is in reach, too.
            with contextlib.suppress(OutOfReach):
                assert restored(store, at(where), output) == state, where
        else:
            with pytest.raises(OutOfReach):
                restored(store, at(where), output)
        assert not (scratch / "restored.part").exists()
        shutil.rmtree(output, ignore_errors=True)
    return found


@settings(max_examples=1000 if LONG else 12)
@given(
    history=st.lists(files, min_size=1, max_size=4),
    epochs=st.sets(st.integers(0, 3)),
    deaths=st.lists(st.integers(0, 120), max_size=3),
)
def test_every_record_comes_back_whenever_the_replayer_was_killed(
    history: list[list[tuple[str, int, int, int]]], epochs: set[int], deaths: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, store = begun_recorder(Path(scratch), before=b"before the sync" * 500)
        driver = Driver(source)
        for made in driver.play(history, epochs):
            deliver(store, made)
        for die_at in deaths:
            run_into(dying(die_at), store)
            check_all(store, source.states, Path(scratch))
        assert not catch_up(store).halted
        assert check_all(store, source.states, Path(scratch)) == sum(
            bool(state) for state in source.states.values()
        )


class Beside(Steps):
    """Whenever the restore takes a step, the replayer takes some, too."""

    def __init__(self, session: Session, store: Path, waiting: list[Path], every: int) -> None:
        super().__init__(self._replay)
        self.session, self.store, self.waiting, self.every = session, store, waiting, every

    def _replay(self, number: int, label: str) -> None:
        if label == "restore:source":  # By now it holds what it needs.
            (self.store / "store.toml").write_text('keep = "1ms"')
        if number % self.every == 0 and self.waiting:
            deliver(self.store, self.waiting.pop(0))
            exhaust(self.session)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 8])
def test_a_restore_beside_a_replayer_gives_the_point_that_was_asked_for(
    tmp_path: Path, every: int
) -> None:
    source, store, waiting = recorded(tmp_path)
    wanted = [(1, 4), (1, 10), (1, 11), (1, 13), (1, 19), (1, 20)]
    for index, where in enumerate(wanted):
        again = tmp_path / f"store-{index}"
        copy_store(store, again)
        with opened(again) as session:
            disk = Beside(session, again, list(waiting), every)
            found = restored(again, at(where), tmp_path / f"out-{index}", disk)
            assert found == source.states[where], where
            assert len(disk.waiting) < len(waiting)


def test_an_application_that_was_interrupted_in_the_middle_does_not_show(tmp_path: Path) -> None:
    source, prepared, waiting = recorded(tmp_path)
    deliver(prepared, waiting[0])
    counter = Steps()
    copy_store(prepared, tmp_path / "rehearsal")
    catch_up(tmp_path / "rehearsal", counter)
    applying = [i for i, label in enumerate(counter.labels) if label.startswith("apply:")]
    newest = describe(Disk(), prepared)["newest"]["position"]
    for die_at in applying:
        store = tmp_path / f"killed-{die_at}"
        copy_store(prepared, store)
        run_into(dying(die_at), store)
        output = tmp_path / f"out-{die_at}"
        assert restored(store, parse_at(None, NOW), output) == source.states[position(newest)]


# What is never done.


def test_a_restore_that_is_killed_at_any_step_leaves_all_or_nothing(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    counter = Steps()
    request = Request(tmp_path / "rehearsal", at((1, 12)), volume="v.img")
    restore(counter, store, request, silent)
    right = source.states[1, 12]["v.img"]
    assert (tmp_path / "rehearsal").read_bytes() == right
    for die_at, label in enumerate(counter.labels):
        output = tmp_path / f"out-{die_at}"
        request = Request(output, at((1, 12)), volume="v.img")
        with pytest.raises(Crash):
            restore(dying(die_at), store, request, silent)
        assert not output.exists() or output.read_bytes() == right, label
        if not output.exists():
            restore(Disk(), store, request, silent)
        assert output.read_bytes() == right, label


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    output = tmp_path / "out"
    for label in ("restore:copy", "restore:write", "apply:write", "restore:sync"):
        with pytest.raises(OSError, match="No space"):
            restored(store, at((1, 12)), output, failing_at(label, errno.ENOSPC))
        assert not output.exists()
        assert not (tmp_path / "out.part").exists()


def test_a_full_disk_is_named_by_what_was_to_be_there(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)

    def no_room(_at: int, label: str) -> None:
        if label == "restore:copy":  # As the system calls it that gets a descriptor.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space") as caught:
        restored(store, at((1, 12)), tmp_path / "out", Steps(no_room))
    assert caught.value.filename == str(tmp_path / "out")


def test_damage_in_the_history_is_never_given_out(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    low = sorted(p for p in (store / "history").iterdir() if p.name.startswith("0000"))
    where = (1, 6)  # In the first of three files: all undo files are needed, and one file.
    used = [path for path in low if path.suffix == ".undo" or "2.aim" in path.name]
    assert len(used) == 4
    for path in used:
        sound = path.read_bytes()
        for bit in random.Random(path.name).sample(range(8 * len(sound)), 25):
            damaged = bytearray(sound)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(JournalError):
                restored(store, at(where), tmp_path / "out")
            assert not (tmp_path / "out").exists()
        path.write_bytes(sound)
    assert restored(store, at(where), tmp_path / "out") == source.states[where]


def test_an_undo_file_of_another_history_is_not_taken(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    _other, foreign, _more = recorded_otherwise(tmp_path / "other")
    name = "00000001-000000000003-00000000.undo"
    shutil.copy(foreign / "history" / name, store / "history" / name)
    with pytest.raises(JournalError, match="takes back another file"):
        restored(store, at((1, 6)), tmp_path / "out")


def recorded_otherwise(scratch: Path) -> tuple[Source, Path, list[Path]]:
    source, store = Source(scratch / "spool"), scratch / "store"
    source.create("v.img", 30000)
    source.roll()
    begin(store, source)
    for _file in range(3):
        source.write(1, 0, b"other")
        deliver(store, source.roll())
    catch_up(store)
    return source, store, []


def test_nothing_is_replaced_unless_it_is_asked_for(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    output = tmp_path / "out"
    output.write_bytes(b"precious")
    request = Request(output, at((1, 12)), volume="v.img")
    with pytest.raises(UsageError, match="exists"):
        restore(Disk(), store, request, silent)
    assert output.read_bytes() == b"precious"
    restore(Disk(), store, Request(output, at((1, 12)), "v.img", force=True), silent)
    assert output.read_bytes() == source.states[1, 12]["v.img"]


def test_places_where_nothing_may_be_written_are_refused(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for output, why in (
        (store / "mirror" / "x", "in the store"),
        (tmp_path / "none" / "x", "is no directory"),
        (tmp_path / "full", "is a directory"),
    ):
        with pytest.raises(UsageError, match=why):
            restore(Disk(), store, Request(output, at((1, 12))), silent)


def test_a_switch_beneath_a_restore_is_noticed(tmp_path: Path) -> None:
    source, store, waiting = recorded(tmp_path)
    copy = [*source.resync(waiting, to=source.number)]

    class Switched(Steps):
        def step(self, label: str) -> None:
            super().step(label)
            if label == "restore:copy" and copy:
                deliver(store, *copy)
                copy.clear()
                catch_up(store)

    with pytest.raises(BusyError, match="staged copy"):
        restored(store, at((1, 12)), tmp_path / "out", Switched())
    assert not (tmp_path / "out").exists()
    assert restored(store, parse_at(None, NOW), tmp_path / "out") == source.snapshot()


def test_without_history_only_a_mirror_at_rest_is_read(tmp_path: Path) -> None:
    source, store, waiting = recorded(tmp_path)
    (store / "store.toml").write_text("keep = 0\n")
    deliver(store, waiting[0])
    session = Session(Disk(), store)
    session.store.lock()
    try:
        exhaust(session)
        with pytest.raises(BusyError, match="without history"):
            restored(store, parse_at(None, NOW), tmp_path / "out")
    finally:
        session.close()
    newest = describe(Disk(), store)["newest"]["position"]
    found = restored(store, parse_at(None, NOW), tmp_path / "out")
    assert found == source.states[position(newest)]
    deliver(store, waiting[1])
    with contextlib.suppress(Crash), opened(store, dying_at_write()) as session:
        exhaust(session)
    with pytest.raises(StoreError, match="half applied"):
        restored(store, parse_at(None, NOW), tmp_path / "again")


def dying_at_write() -> Steps:
    def before(_at: int, label: str) -> None:
        if label == "apply:sync":
            disk.before = dead
            raise Crash(label)

    def dead(_at: int, label: str) -> None:
        raise Crash(label)

    disk = Steps(before)
    return disk


def test_a_store_that_was_copied_while_it_was_in_use_is_not_believed(tmp_path: Path) -> None:
    source, store, waiting = recorded(tmp_path)
    session = Session(Disk(), store)
    session.store.lock()
    try:
        deliver(store, waiting[0])
        exhaust(session)
        copy_store(store, tmp_path / "copy")
        newest = describe(Disk(), store)["newest"]["position"]
        found = restored(store, parse_at(None, NOW), tmp_path / "out")
        assert found == source.states[position(newest)]
    finally:
        session.close()
    with pytest.raises(StoreError, match="copied, moved or restored while a replayer had it open"):
        restored(tmp_path / "copy", parse_at(None, NOW), tmp_path / "again")


def test_holes_stay_holes(tmp_path: Path) -> None:
    source, store = Recorder(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", MIB)
    source.write(1, MIB // 4, b"x" * 4096)
    source.roll()
    begin(store, source)
    source.write(1, MIB // 2, b"y" * 4096)
    deliver(store, source.roll())
    source.zero(1, 0, MIB)
    deliver(store, source.roll())
    catch_up(store)
    restored(store, at((1, 4)), tmp_path / "out")
    assert (tmp_path / "out" / "v.img").stat().st_blocks * 512 < 64 * 1024


# The command.


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["restore", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_command_restores_one_volume_to_a_file(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    output = tmp_path / "v.img"
    code, shown, _errors = run(store, "-o", output, "--at", "1:12", "--volume", "v.img")
    assert code == 0
    assert shown.startswith("restored 1:12 in file 3")
    assert output.read_bytes() == source.states[1, 12]["v.img"]


def test_a_dry_run_says_the_same_and_does_nothing(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    words = (store, "-o", tmp_path / "out", "--at", "1:6", "--json")
    code, plan, _errors = run(*words, "--dry-run")
    assert code == 0
    assert not (tmp_path / "out").exists()
    code, done, _errors = run(*words)
    assert code == 0
    assert json.loads(plan) == json.loads(done) | {"dry_run": True}
    assert json.loads(done)["reads"]["undo_files"] == 3


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--at", "1:99999"), 15, "out of reach"),
        (("--at", "2026-99-99"), 2, "is no time"),
        (("--volume", "nobody"), 2, "no volume 'nobody' was there"),
        ((), 2, "exists"),
    ],
)
def test_each_kind_of_refusal_has_its_exit_code(
    tmp_path: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    _source, store, _waiting = recorded(tmp_path)
    output = tmp_path / "out"
    if not words:
        output.touch()
    found, _shown, errors = run(store, "-o", output, *words)
    assert found == code
    assert text in errors
