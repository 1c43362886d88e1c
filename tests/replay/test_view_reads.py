"""What a view reads is what was there, whatever the replayer does meanwhile."""

import contextlib
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimfuse.config.pauses import Pause, save_pauses
from aimfuse.disk import Disk
from aimfuse.errors import BusyError, JournalError, OutOfReach
from aimfuse.replay.exhibit import opened as opened_past
from aimfuse.replay.frozen import Frozen, PastLost
from aimfuse.replay.past import describe
from aimfuse.replay.point import Wanted
from aimfuse.replay.session import Session
from aimfuse.replay.store import Store
from aimfuse.replay.undo import PART_BYTES
from aimfuse.replay.watch import Watch
from aimfuse.units import MIB
from tests.dice import LONG
from tests.replay.crashes import copy_store, run_into
from tests.replay.faults import Steps, dying, failing_at
from tests.replay.histories import Driver, files
from tests.replay.promotions import promoted
from tests.replay.recorder import (
    Position,
    Recorder,
    Snapshot,
    at,
    begun_recorder,
    position,
    recorded,
    restored,
)
from tests.replay.source import Source, deliver
from tests.replay.stores import begin, catch_up, exhaust, opened

pytestmark = pytest.mark.expects_warnings

NEWEST = (1, 29)
"""The last record that `recorded` has applied."""

PIECE_BYTES = 7001
"""Odd, so that reads begin and end anywhere."""


def seen(frozen: Frozen) -> Snapshot:
    """Return all that a view shows, read in pieces."""
    found = {}
    for volume in frozen.volumes:
        parts = [
            frozen.read(volume, offset, PIECE_BYTES)
            for offset in range(0, volume.size_bytes + 1, PIECE_BYTES)
        ]
        found[volume.name] = b"".join(parts)
    return found


@contextmanager
def viewed(
    store: Path, wanted: Wanted, disk: Disk | None = None, watch: type[Watch] = Watch
) -> Iterator[Frozen]:
    with opened_past(disk or Disk(), store, wanted, watch=watch) as frozen:
        yield frozen


class Blind(Watch):
    """A watch where the kernel tells nothing, as on a network file system."""

    def _begin(self, store: Path) -> None:
        pass


def check_all(store: Path, states: dict[Position, Snapshot]) -> int:
    """View every record in reach and compare; return how many there were."""
    said = describe(Disk(), store)
    low, high = position(said["oldest"]["position"]), position(said["newest"]["position"])
    found = 0
    for where, state in sorted(states.items()):
        if low <= where <= high:
            with viewed(store, at(where), watch=Blind) as frozen:  # Which ends at once.
                assert seen(frozen) == state, where
            found += 1
        elif where > high:  # What was received and not applied is in reach, too.
            with contextlib.suppress(OutOfReach), viewed(store, at(where), watch=Blind) as frozen:
                assert seen(frozen) == state, where
        else:
            with pytest.raises(OutOfReach), viewed(store, at(where), watch=Blind):
                pass
    return found


@settings(max_examples=400 if LONG else 6)
@given(
    history=st.lists(files, min_size=1, max_size=4),
    epochs=st.sets(st.integers(0, 3)),
    deaths=st.lists(st.integers(0, 120), max_size=3),
)
def test_every_record_can_be_viewed_whenever_the_replayer_was_killed(
    history: list[list[tuple[str, int, int, int]]], epochs: set[int], deaths: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, store = begun_recorder(Path(scratch), before=b"before the sync" * 500)
        driver = Driver(source)
        for made in driver.play(history, epochs):
            deliver(store, made)
        for die_at in deaths:
            run_into(dying(die_at), store)
            check_all(store, source.states)
        assert not catch_up(store).halted
        assert check_all(store, source.states) == len(source.states)


@settings(max_examples=400 if LONG else 6)
@given(
    history=st.lists(files, min_size=2, max_size=6),
    epochs=st.sets(st.integers(0, 5)),
    chance=st.randoms(use_true_random=False),
)
def test_views_that_stay_open_never_change(
    history: list[list[tuple[str, int, int, int]]], epochs: set[int], chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as held:
        source, store = begun_recorder(Path(scratch), before=b"")
        driver = Driver(source)
        views: list[tuple[Position, Frozen]] = []
        with opened(store) as session:
            for made in driver.play(history, epochs):
                deliver(store, made)
                exhaust(session)
                views += [
                    (where, held.enter_context(viewed(store, at(where))))
                    for where in {max(source.states), chance.choice(sorted(source.states))}
                ]
                for where, frozen in views:  # Some are read for the first time much later.
                    if chance.random() < 1 / 3:
                        assert seen(frozen) == source.states[where], where
        for where, frozen in views:
            assert seen(frozen) == source.states[where], where


class Beside(Steps):
    """Between any two steps of whoever reads, the replayer takes some, and prunes."""

    def __init__(self, session: Session, store: Path, waiting: list[Path]) -> None:
        super().__init__()
        self.session, self.store, self.waiting = session, store, waiting

    def pread_into(self, fd: int, view: memoryview, offset: int) -> int:
        """Read the mirror before, or after, another file has been applied to it."""
        if len(view) % 2:
            self.replay()
        got = super().pread_into(fd, view, offset)
        if not len(view) % 2:
            self.replay()
        return got

    def replay(self) -> None:
        (self.store / "store.toml").write_text('keep = "1ms"')
        if self.waiting:
            deliver(self.store, self.waiting.pop(0))
            exhaust(self.session)


@pytest.mark.parametrize("watch", [Watch, Blind], ids=["told", "not told"])
@pytest.mark.parametrize("where", [(1, 4), (1, 10), (1, 12), (1, 13), (1, 20), NEWEST])
def test_a_view_stays_what_it_was_while_files_are_applied_and_pruned(
    tmp_path: Path, where: Position, watch: type[Watch]
) -> None:
    source, store, waiting = recorded(tmp_path)
    with opened(store) as session:
        disk = Beside(session, store, list(waiting))
        with viewed(store, at(where), disk, watch) as frozen:
            for _again in range(3):
                assert seen(frozen) == source.states[where]
            assert not disk.waiting


def test_a_view_of_the_newest_state_stays_at_it(tmp_path: Path) -> None:
    source, store, waiting = recorded(tmp_path)
    newest = position(describe(Disk(), store)["newest"]["position"])
    with opened(store) as session, viewed(store, at(newest)) as frozen:
        for made in waiting:
            deliver(store, made)
            exhaust(session)
            assert seen(frozen) == source.states[newest]


def test_a_view_of_a_half_applied_mirror_is_that_of_the_boundary_in_front(tmp_path: Path) -> None:
    source, prepared, waiting = recorded(tmp_path)
    deliver(prepared, waiting[0])
    counter = Steps()
    copy_store(prepared, tmp_path / "rehearsal")
    catch_up(tmp_path / "rehearsal", counter)
    applying = [i for i, label in enumerate(counter.labels) if label.startswith("apply:")]
    newest = position(describe(Disk(), prepared)["newest"]["position"])
    for die_at in applying:
        store = tmp_path / f"killed-{die_at}"
        copy_store(prepared, store)
        run_into(dying(die_at), store)
        with viewed(store, at(newest)) as frozen:
            assert seen(frozen) == source.states[newest]
            catch_up(store)
            assert seen(frozen) == source.states[newest]


def test_a_view_stays_what_it_was_however_often_the_replayer_is_killed(tmp_path: Path) -> None:
    source, store, waiting = recorded(tmp_path)
    deliver(store, *waiting)
    with viewed(store, at(NEWEST)) as newest, viewed(store, at((1, 12))) as older:
        for die_at in (3, 9, 14, 17, 19, 20, 21, 22, 23, 25, 30):
            run_into(dying(die_at), store)
            assert seen(newest) == source.states[NEWEST]
            assert seen(older) == source.states[1, 12]
        assert not catch_up(store).halted
        assert seen(newest) == source.states[NEWEST]
        assert seen(older) == source.states[1, 12]


def test_a_view_reaches_what_was_received_and_stays_when_it_is_applied(tmp_path: Path) -> None:
    source, store, waiting = recorded(tmp_path)
    save_pauses(store, {"apply": Pause(1)}, Disk())
    deliver(store, *waiting)
    catch_up(store)
    ahead = [where for where in sorted(source.states) if where > NEWEST]
    with contextlib.ExitStack() as held:
        views = [(where, held.enter_context(viewed(store, at(where)))) for where in ahead]
        for where, frozen in views[::2]:
            assert seen(frozen) == source.states[where], where
        save_pauses(store, {}, Disk())
        catch_up(store)
        for where, frozen in views:
            assert seen(frozen) == source.states[where], where


def test_a_volume_that_was_changed_and_removed_before_it_is_first_read_is_what_it_was(
    tmp_path: Path,
) -> None:
    source, store = Recorder(tmp_path / "spool"), tmp_path / "store"
    volume = source.create("v.img", 9000)
    source.write(volume, 100, b"as it was" * 900)
    source.roll()
    begin(store, source)
    right = source.snapshot()
    with viewed(store, Wanted("now")) as frozen:
        source.write(volume, 0, b"changed" * 1000)
        changed = source.roll()
        source.unlink(volume)
        deliver(store, changed, source.roll())
        catch_up(store)
        assert seen(frozen) == right


def test_a_disk_error_while_it_follows_the_replayer_ends_a_view(tmp_path: Path) -> None:
    source, store, waiting = recorded(tmp_path)
    disk = Steps()
    with viewed(store, at(NEWEST), disk) as frozen:
        assert seen(frozen) == source.states[NEWEST]
        deliver(store, *waiting)
        catch_up(store)
        disk.before = failing_at("view:undo").before
        with pytest.raises(PastLost, match="Input/output"):
            seen(frozen)
        with pytest.raises(PastLost):
            seen(frozen)


def test_a_view_of_a_store_that_was_moved_shows_that_store(tmp_path: Path) -> None:
    source, store, waiting = recorded(tmp_path)
    with viewed(store, at((1, 12))) as frozen:
        store.rename(tmp_path / "moved")
        _other, another, _waiting = recorded(tmp_path / "other")
        (another / "volumes" / "00000001").write_bytes(b"another" * 5000)
        another.rename(store)
        assert seen(frozen) == source.states[1, 12]
        deliver(tmp_path / "moved", *waiting)
        catch_up(tmp_path / "moved")
        assert seen(frozen) == source.states[1, 12]


def test_a_store_without_history_shows_its_newest_state_while_nobody_replays(
    tmp_path: Path,
) -> None:
    source, store, waiting = recorded(tmp_path)
    (store / "store.toml").write_text("keep = 0")
    deliver(store, *waiting)
    catch_up(store)
    held = Store(Disk(), store)
    held.lock()
    held.close()
    with viewed(store, Wanted("now")) as frozen:
        assert seen(frozen) == source.snapshot()
        with pytest.raises(BusyError):
            held.lock()
    held.lock()
    with pytest.raises(BusyError, match="replayed without history"), viewed(store, Wanted("now")):
        pass
    held.close()


def test_a_change_that_took_several_undo_files_is_seen_through(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    volume, fill = source.create("v.img"), random.Random(0).randbytes(MIB)
    source.roll()
    begin(store, source)
    for at_byte in range(0, PART_BYTES + 3 * MIB, MIB):
        source.write(volume, at_byte, fill)
    deliver(store, source.roll())
    catch_up(store)
    with viewed(store, Wanted("now")) as open_before:
        source.truncate(volume, 5)
        source.write(volume, 20 * MIB, b"later" * (MIB // 8))
        deliver(store, source.roll())
        catch_up(store)
        undo = [one.name[-13:] for one in (store / "history").glob("*.undo")]
        assert sorted(undo) == ["00000000.undo", "00000000.undo", "00000001.undo"]
        with viewed(store, at((1, PART_BYTES // MIB + 4))) as open_behind:
            for frozen in (open_before, open_behind):
                for offset in (0, 5, 20 * MIB - 9, PART_BYTES - 50, PART_BYTES + 3 * MIB - 100):
                    start = offset % MIB
                    right = (fill * 2)[start : start + 100]
                    assert frozen.read(frozen.volumes[0], offset, 100) == right


# What ends a view.


def test_a_staged_copy_that_is_switched_in_ends_the_view(tmp_path: Path) -> None:
    source, store = Source(tmp_path / "spool"), tmp_path / "store"
    source.create("v.img", 9000)
    source.write(1, 4000, b"\xee" * 3000)
    source.roll()
    begin(store, source)
    source.write(1, 0, b"applied")
    deliver(store, source.roll())
    catch_up(store)
    right = source.snapshot()
    with viewed(store, Wanted("now")) as frozen:
        assert seen(frozen) == right
        source.write(1, 0, b"lost")
        deliver(store, *source.resync([source.roll()], to=source.number))
        catch_up(store)
        with pytest.raises(PastLost, match="cannot be taken back"):
            seen(frozen)
        with pytest.raises(PastLost):
            seen(frozen)


def test_history_that_begins_anew_ends_the_view(tmp_path: Path) -> None:
    _source, store, waiting = recorded(tmp_path)
    with viewed(store, Wanted("now")) as frozen:
        (store / "store.toml").write_text("keep = 0")
        deliver(store, waiting[0])
        catch_up(store)
        with pytest.raises(PastLost, match="history was switched off"):
            seen(frozen)


def test_a_promotion_ends_the_view(tmp_path: Path) -> None:
    source, store, _waiting = recorded(tmp_path)
    with viewed(store, at((1, 12))) as frozen:
        assert seen(frozen) == source.states[1, 12]
        promoted(store, at((1, 20)), force=True)
        with pytest.raises(PastLost, match="promoted"):
            seen(frozen)


class Cloning(Disk):
    """A file system that shares blocks, as far as anybody can see."""

    def clone(self, label: str, source: int, target: int) -> bool:
        self.pwrite(label, target, [self.pread(source, self.size(source), 0)], 0)
        return True


def test_what_a_promotion_leaves_of_the_past_can_be_viewed_while_the_new_source_writes(
    tmp_path: Path,
) -> None:
    source, store, _waiting = recorded(tmp_path)
    promoted(store, at((1, 20)), Cloning())
    for watch in (Watch, Blind):
        with viewed(store, at((1, 12)), watch=watch) as frozen:
            assert seen(frozen) == source.states[1, 12]
            (store / "mirror" / "v.img").write_bytes(b"of the new source" * 1000)
            catch_up(store)
            assert seen(frozen) == source.states[1, 12]


def test_an_undo_file_that_somebody_removed_ends_the_view(tmp_path: Path) -> None:
    _source, store, waiting = recorded(tmp_path)
    with viewed(store, Wanted("now")) as frozen:
        deliver(store, *waiting[:2])
        catch_up(store)
        sorted((store / "history").glob("*.undo"))[-2].unlink()
        with pytest.raises(PastLost, match="gone") as caught:
            seen(frozen)
        assert "/proc" not in str(caught.value)


def test_damage_in_the_history_is_never_shown(tmp_path: Path) -> None:
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
            try:
                with viewed(store, at(where)) as frozen:
                    assert seen(frozen) == source.states[where]
            except JournalError:
                pass
        path.write_bytes(sound)


def test_a_view_agrees_with_restore(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    with viewed(store, at((1, 12))) as frozen:
        assert seen(frozen) == restored(store, at((1, 12)), tmp_path / "out")
