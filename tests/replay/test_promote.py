"""A store goes on by itself: at every record of its past, whatever interrupts it."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimfuse.config.pauses import Pause, save_pauses
from aimfuse.disk import Disk, read_file
from aimfuse.driver.labels import Labels
from aimfuse.errors import (
    AimfuseError,
    BusyError,
    ImageMismatch,
    JournalError,
    LabelTaken,
    OutOfReach,
    StoreError,
)
from aimfuse.journal.names import GoneName, parse_kept
from aimfuse.journal.reader import read_sealed
from aimfuse.journal.records import RecordType
from aimfuse.journal.rewound import REWOUND
from aimfuse.replay import rewind
from aimfuse.replay.hold import pinned
from aimfuse.replay.point import Wanted, parse_at
from aimfuse.replay.state import Phase
from aimfuse.units import MIB
from tests.dice import LONG
from tests.disks.cuts import keep_all, keep_none, keep_random
from tests.disks.faults import Crash
from tests.disks.simdisk import SimDisk
from tests.replay.crashes import STORE, copy_store, simulated_mirror
from tests.replay.faults import DiskLook, Steps
from tests.replay.histories import Driver, files
from tests.replay.promotions import NEWEST, applied, promoted, reachable, served
from tests.replay.recorder import NOW, Recorder, at, recorded
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import begin, catch_up, exhaust, opened, report

pytestmark = pytest.mark.expects_warnings


def test_the_mirror_goes_back_in_place_to_every_record(tmp_path: Path) -> None:
    source, prepared = applied(tmp_path)
    states = reachable(source)
    positions = sorted(states)
    assert len(positions) > 50
    for position in positions[:: 1 if LONG else 7]:
        store = tmp_path / "again"
        copy_store(prepared, store)
        said = promoted(store, at(position))
        assert mirror_of(store) == states[position], position
        assert said["position"] == "{}:{}".format(*position)
        shutil.rmtree(store)


@given(history=st.lists(files, min_size=1, max_size=5), epochs=st.sets(st.integers(0, 4)),
       pick=st.integers(0, 100))  # fmt: skip
@settings(max_examples=1000 if LONG else 6)
def test_any_history_goes_back_to_any_record_and_is_served_from_there(
    history: list[list[tuple[str, int, int, int]]], epochs: set[int], pick: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, store = Recorder(Path(scratch, "spool")), Path(scratch, "store")
        source.create("first", 15000)
        source.write(1, 100, b"before the sync" * 500)
        source.roll()
        begin(store, source)
        known = set(source.states)
        with opened(store) as session:
            for made in Driver(source).play(history, epochs):
                deliver(store, made)
                exhaust(session)
        positions = sorted(set(source.states) - known) or [(source.epoch, source.seq)]
        position = positions[pick % len(positions)]
        if position[1] == 0 and position[0] != source.epoch:
            return  # An epoch's begin that no file bears.
        wanted = at(position) if position[1] else NEWEST
        promoted(store, wanted)
        if position[1]:
            assert mirror_of(store) == source.states[position]
        before = mirror_of(store)
        if before:
            epoch, number, _seq = served(store)
            assert epoch == source.epoch + 1
            assert number <= source.number + 1
        assert mirror_of(store) == before


def test_all_that_has_arrived_is_applied_first_and_what_is_missing_is_said(tmp_path: Path) -> None:
    source, store, rest = recorded(tmp_path)
    states = dict(source.states)
    deliver(store, rest[0], rest[2])
    last = source.number - 2
    told = {
        "time_ns": 1_000_001_000, "epoch": 1, "accepted_seq": source.seq + 2, "kind": "directory",
        "newest": {"epoch": 1, "number": source.number}, "unsent": {"after": 4, "bytes": 99999},
    }  # fmt: skip
    (store / "inbox" / "source.json").write_text(json.dumps(told))
    said = promoted(store)
    lacking = said["lacking"]
    epoch, seq = map(int, said["position"].split(":"))
    assert mirror_of(store) == states[epoch, seq]
    assert said["fork"]["file"] == last
    assert lacking["missing"] == [last + 1]
    assert lacking["files"] == 2
    assert lacking["records"] == source.seq + 2 - seq
    assert lacking["seconds"] == pytest.approx(1, abs=0.01)
    assert 0 < lacking["bytes"] < 99999
    assert [path.name for path in (store / "quarantine").glob("*.aim")] == [rest[2].name]
    assert served(store) == (2, last + 1, 1)


def test_the_old_source_is_refused_and_what_it_sends_is_kept_with_the_reason(
    tmp_path: Path,
) -> None:
    source, store, rest = recorded(tmp_path)
    said = promoted(store)
    assert promoted(store)["already"]
    deliver(store, *rest, *source.sync())
    before = mirror_of(store)
    session = catch_up(store)
    assert not session.halted
    assert mirror_of(store) == before
    reasons = [path.read_text() for path in (store / "quarantine").glob("*.reason")]
    assert len(reasons) > len(rest)
    assert all("promoted: the store goes on as epoch 2" in one for one in reasons)
    ack = report(session)
    assert ack["phase"] == "promoted"
    assert ack["promoted"]["epoch"] == said["epoch"]
    assert ack["promoted"]["fork"]["number"] == said["fork"]["file"]
    assert not list((store / "inbox").glob("*.aim"))


def test_a_promoted_store_goes_nowhere_else(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    promoted(store)
    with pytest.raises(AimfuseError, match="promoted already"):
        promoted(store, at((1, 10)))


def test_what_lay_behind_the_point_is_kept_as_files(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    before = {path.name for path in (store / "history").glob("*.aim")}
    said = promoted(store, at((1, 12)))
    catch_up(store)
    assert {path.name for path in (store / "history").glob("*.aim")} == before
    assert said["rewound"]["kept_files"] == said["rewound"]["files"] > 3
    living = {entry["name"] for entry in said["volumes"]}
    assert "v.img" in living


ELSEWHERE = {
    "promote:clone_sync": "where blocks are shared: e2e/test_promote_on_xfs.py",
    "promote:clone_rename": "the same",
    "promote:unlink_left": "left by one that was killed",
    "promote:unlink_request": "of a planned switch-over: test_handed_over.py",
    "promote:set_aside": "left by a rejoin that was killed: test_promote_left.py",
    "promote:labels": "where there are bookmarks: below",
    "promote:rewound": "the first half of the labels of publishing it: as below",
    "promote:unlink_rewound": "where it could not be written: test_rewound.py",
    "forward:end": "where the store passed its files on: below",
    "forward:end_sync_dir": "the same",
}


def _own_labels() -> set[str]:
    """Return the labels of going back and of promoting, as they stand in the sources."""
    label = re.compile(r'"((?:rewind|promote|forward:end)[a-z_:]*)"')
    here = Path(rewind.__file__).parent
    names = ("rewind.py", "rewound.py", "as_source.py", "promotion.py", "forward.py")
    found = {one for name in names for one in label.findall((here / name).read_text())}
    return {one for one in found if ":" in one}


def simulated(scratch: Path) -> tuple[Recorder, SimDisk]:
    source = Recorder(scratch / "spool")
    source.create("v.img", 9000)
    source.write(1, 4000, b"\xee" * 3000)
    source.roll()
    disk = SimDisk(STORE / "inbox")
    made = list(source.sync())
    for index in range(3):
        source.write(1, 100 * index, bytes([index + 1]) * 7000)
        source.create(f"extra-{index}", 5000 + index)
        source.truncate(1, 3000 + index)
        if index:
            source.unlink(source.next_volume - 2)
        made.append(source.roll())
    for file in made:
        disk.plant(STORE / "inbox" / file.name, file.read_bytes())
    catch_up(STORE, disk, DiskLook(disk))
    return source, disk


def read_noted(disk: SimDisk) -> bytes:
    """Return what is written down of what was gone back over."""
    path = STORE / REWOUND
    return read_file(disk, path, MIB) if disk.exists(path) else b""


def run_simulated(disk: SimDisk, wanted: Wanted) -> None:
    with contextlib.suppress(Crash):
        promoted(STORE, wanted, disk, DiskLook(disk))


@pytest.mark.parametrize("wanted", [at((1, 6)), NEWEST], ids=["rewound", "newest"])
def test_a_promotion_that_ends_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, wanted: Wanted
) -> None:
    """Killed, or without power: what was decided is finished by the next start."""
    source, prepared = simulated(tmp_path)
    newest = source.snapshot()
    right = newest if wanted.is_newest else source.states[1, 6]
    rehearsal = prepared.kill()
    run_simulated(rehearsal, wanted)
    assert simulated_mirror(rehearsal) == right
    if not wanted.is_newest:
        assert set(rehearsal.labels) >= _own_labels() - ELSEWHERE.keys()
        assert "promote:rewound:rename" in rehearsal.labels
    noted = read_noted(rehearsal)
    for stop_at in range(0, len(rehearsal.labels), 1 if LONG else 2):
        disk = prepared.kill()
        disk.stop_at(stop_at, after_bytes=stop_at * 37 % 5000)
        run_simulated(disk, wanted)
        cuts: list[Callable[..., int]] = [keep_none, keep_all, keep_random(stop_at)]
        for cut in cuts:
            after = disk.power_cut(cut)
            session = catch_up(STORE, after, DiskLook(after))
            assert not session.halted, disk.labels[-1]
            found = simulated_mirror(after)
            if session.store.state.phase is Phase.PROMOTED:
                assert found == right, disk.labels[-1]
                assert after.exists(STORE / "source" / "group.toml")
                assert read_noted(after) == noted
            else:
                assert found == newest, disk.labels[-1]


def test_a_file_that_was_half_applied_and_is_lost_is_taken_back(tmp_path: Path) -> None:
    source, store, rest = recorded(tmp_path)
    before = mirror_of(store)
    deliver(store, rest[0])
    killer = Steps()

    def before_step(_at: int, label: str) -> None:
        if label == "apply:sync":
            raise Crash(label)

    killer.before = before_step
    with contextlib.suppress(Crash), opened(store, killer) as session:
        exhaust(session)
    (lost,) = (store / "work").iterdir()
    lost.write_bytes(b"damaged")
    said = promoted(store)
    assert mirror_of(store) == before
    assert said["fork"]["file"] == source.number - 3


def test_a_damaged_history_is_found_before_anything_is_undone(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    before = mirror_of(store)
    victim = sorted((store / "history").glob("*.undo"))[1]
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    with pytest.raises(JournalError):
        promoted(store, at((1, 4)))
    assert mirror_of(store) == before
    assert catch_up(store).store.state.phase is Phase.CONSISTENT
    promoted(store)


def test_nobody_reads_the_past_while_it_is_gone_back(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    with pinned(Disk(), store), pytest.raises(BusyError, match=str(os.getpid())):
        promoted(store, at((1, 12)))
    with pinned(Disk(), store):
        assert promoted(store, at((1, 12)), force=True)["epoch"] == 2


def test_a_store_in_its_first_copy_is_refused_with_what_there_is_instead(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 30000)
    source.write(1, 0, b"data" * 5000)
    source.roll()
    first, *_others = source.sync()
    deliver(store, first)
    catch_up(store)
    with pytest.raises(StoreError, match="only a part of its first copy") as caught:
        promoted(store, force=True)
    assert "volumes" in caught.value.hint


def test_a_copy_that_lacks_its_journal_is_taken_only_by_force(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 30000)
    source.write(1, 0, b"data" * 5000)
    source.roll()
    deliver(store, *source.sync(to=2))
    catch_up(store)
    with pytest.raises(StoreError, match="needs files 2 to 2"):
        promoted(store)
    said = promoted(store, force=True)
    assert "by force" in said["warnings"][0]
    assert mirror_of(store) == source.snapshot()
    served(store)
    (first,) = (store / "source" / "spool").glob("*.aim")
    assert RecordType.GAP in {one.type for one in read_sealed(Disk(), first).records()}


def test_without_history_only_the_newest_state_can_go_on(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    with pytest.raises(OutOfReach):
        promoted(store, parse_at("1:1", NOW))
    assert catch_up(store).store.state.phase is Phase.CONSISTENT


def test_data_of_removed_volumes_that_live_again_is_no_history_any_more(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    promoted(store, at((1, 27)))
    inodes = {path.stat().st_ino for path in (store / "mirror").iterdir()}
    gone = [
        path for path in (store / "history").iterdir()
        if isinstance(parse_kept(path.name), GoneName)
    ]  # fmt: skip
    assert not inodes & {path.stat().st_ino for path in gone}


def held_back(scratch: Path) -> tuple[Recorder, Path]:
    """Return a source of seven files, and its store: the last three wait for their operator."""
    source, store, rest = recorded(scratch)
    save_pauses(store, {"apply": Pause(1)}, Disk())
    deliver(store, *rest)
    catch_up(store)
    return source, store


def test_what_is_held_back_is_applied_first(tmp_path: Path) -> None:
    source, store = held_back(tmp_path)
    promoted(store)
    assert mirror_of(store) == source.snapshot()


def test_going_back_behind_what_is_held_back_applies_none_of_it(tmp_path: Path) -> None:
    source, store = held_back(tmp_path)
    (store / "store.toml").write_text("keep = 0\n")  # Else it could be taken back.
    head = catch_up(store).store.state.head
    assert head is not None
    promoted(store, at((head.epoch, head.seq)))
    assert mirror_of(store) == source.states[head.epoch, head.seq]


def test_a_point_in_what_is_held_back_is_gone_to(tmp_path: Path) -> None:
    source, store = held_back(tmp_path)
    where = (source.epoch, source.seq - 3)
    promoted(store, at(where))
    assert mirror_of(store) == source.states[where]


def test_a_source_that_was_a_store_gives_no_label_of_its_history_again(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    promoted(store, parse_at("mark 3", NOW))
    known = Labels(Disk(), store / "source")
    for label in ("mark 0", "mark 3"):
        with pytest.raises(LabelTaken):
            known.check(label)
    known.check("mark 4")


def test_a_mirror_that_was_changed_behind_its_back_is_not_served(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    promoted(store)
    with (store / "mirror" / "v.img").open("r+b") as file:
        file.write(b"by hand")
    with pytest.raises(ImageMismatch):
        served(store)


def test_a_store_that_passed_its_files_on_ends_that(tmp_path: Path) -> None:
    _source, store, rest = recorded(tmp_path)
    (store / "forward").mkdir()
    (store / "forward" / "group.toml").write_text('image = "../mirror"')
    deliver(store, *rest)
    promoted(store, at((1, 27)))
    assert (store / "forward" / "group.toml.ended").exists()
    assert not (store / "forward" / "group.toml").exists()
    assert served(store)[0] == 2


def test_the_branch_is_pruned_like_any_history(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    promoted(store, at((1, 12)))
    assert list((store / "history").glob("*.aim"))
    (store / "store.toml").write_text('keep = "1ms"')
    catch_up(store)
    assert not list((store / "history").glob("*.aim"))
    before = mirror_of(store)
    assert before
    assert catch_up(store).store.state.phase is Phase.PROMOTED


def test_the_same_command_goes_on_after_a_death_in_the_middle(tmp_path: Path) -> None:
    source, store = applied(tmp_path)
    killer = Steps()

    def before_step(_at: int, label: str) -> None:
        if label == "rewind:sync":
            raise Crash(label)

    killer.before = before_step
    with pytest.raises(Crash):
        promoted(store, at((1, 27)), killer)
    said = promoted(store, at((1, 27)))
    assert not said["already"]
    assert said["position"] == "1:27"
    assert mirror_of(store) == source.states[1, 27]
