"""An old source becomes a mirror where it lies: what is kept, what is refused, and any crash."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.config import GroupConfig, load
from aimfuse.disk import Disk
from aimfuse.errors import BusyError, Refused, StoreError, SupersededError, UsageError
from aimfuse.journal.dirty import read_map
from aimfuse.journal.rewound import REWOUND
from aimfuse.journal.spool import sealed_names
from aimfuse.journal.superseded import Step, read_superseded
from aimfuse.replay.doubt import DIFFERS, REJOINED
from aimfuse.replay.hold import pinned
from aimfuse.replay.past import look_at
from aimfuse.replay.state import Phase
from aimfuse.takeover import rejoin as rejoin_module
from aimfuse.takeover.branches import discard, export, find_branch, list_branches
from aimfuse.takeover.rejoin import Json, Request, describe, rejoin
from tests.coordinator.samples import make_dice
from tests.dice import LONG
from tests.disks.faults import Crash
from tests.replay.faults import Steps, dying
from tests.replay.promotions import applied, promoted
from tests.replay.recorder import at
from tests.replay.source import mirror_of
from tests.replay.stores import catch_up
from tests.takeover.old_source import BLOCK, OldSource, state_of


def run(source: OldSource, disk: Disk | None = None, **wanted: object) -> Json:
    config = load(source.config.state_dir)
    request = Request(source.url, **wanted)  # type: ignore[arg-type]
    return rejoin(disk or Disk(), config, request, lambda _line: None)


def forked(root: Path, names: tuple[str, ...] = (), *, clean: bool = True) -> OldSource:
    source = OldSource(root, names)
    source.write(1, 2, 3)
    source.fork()
    source.write(3, 9, byte=7, clean=clean)
    return source


def check(source: OldSource, at_end: dict[str, bytes]) -> None:
    """Check that the images are a mirror at the fork, and that what they held is kept."""
    store = source.config.state_dir / "store"
    state = state_of(store)
    assert state.head is not None
    assert (state.head.number, state.head.digest) == (source.head.number, source.head.digest)
    assert (state.phase, state.doubt) == (Phase.CATCHING_UP, REJOINED)
    for entry in state.volumes:
        data = store / "volumes" / f"{entry.volume:08d}"
        assert data.stat().st_nlink == 2 or data.stat().st_size == 0
    assert source.contents() == at_end
    (branch,) = list_branches(Disk(), source.config.state_dir)
    assert {one.name: one.read_bytes() for one in branch.volumes} == at_end
    assert not sealed_names(Disk(), source.paths.spool)
    note = read_superseded(Disk(), source.config.state_dir)
    assert note is not None
    assert note.step is Step.REJOINED
    assert (store / "inbox").is_dir()


@pytest.mark.parametrize("clean", [True, False], ids=["unmounted", "crashed"])
def test_an_old_source_becomes_a_mirror_at_the_fork_and_its_tail_a_branch(
    tmp_path: Path, *, clean: bool
) -> None:
    source = forked(tmp_path, clean=clean)
    done = run(source)
    at_end = source.contents()
    assert at_end["v.img"][9 * BLOCK : 10 * BLOCK] == b"\7" * BLOCK
    assert done["writes"] == 2
    check(source, at_end)
    extents = list(read_map(Disk(), source.config.state_dir / "store" / DIFFERS).extents())
    assert [(one.offset, one.length) for one in extents] == [
        (3 * BLOCK, BLOCK), (9 * BLOCK, BLOCK)
    ]  # fmt: skip
    again = run(source)
    assert (again["state"], again["store"]) == ("rejoined", done["store"])


def test_of_two_rejoins_at_once_the_later_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = forked(tmp_path)
    ask = rejoin_module._ask  # noqa: SLF001 - what takes time between the look and the lock

    def slowly(*args: object) -> object:
        monkeypatch.setattr(rejoin_module, "_ask", ask)
        run(source)
        return ask(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rejoin_module, "_ask", slowly)
    assert run(source)["state"] == "rejoined"
    check(source, source.contents())


def test_a_source_exactly_at_the_fork_needs_no_copy_and_leaves_no_branch(tmp_path: Path) -> None:
    source = OldSource(tmp_path)
    source.write(1)
    source.fork()
    done = run(source)
    state = state_of(Path(done["store"]))
    assert (state.phase, state.doubt) == (Phase.CONSISTENT, "")
    assert not list_branches(Disk(), source.config.state_dir)


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    source = forked(tmp_path, clean=False)

    def everything() -> dict[Path, bytes]:
        return {one: one.read_bytes() for one in sorted(tmp_path.rglob("*")) if one.is_file()}

    before = everything()
    done = run(source, dry_run=True)
    assert done["state"] == "planned"
    after = {path: data for path, data in everything().items() if path in before}
    locks = {source.config.state_dir / name for name in ("lock", "ship.lock")}
    assert {path for path in before if before[path] != after[path]} <= locks
    assert not (source.config.state_dir / "store").exists()
    assert read_superseded(Disk(), source.config.state_dir) is None


def test_discarded_is_not_kept(tmp_path: Path) -> None:
    source = forked(tmp_path)
    assert run(source, discard=True)["branch"] is None
    assert not list_branches(Disk(), source.config.state_dir)


def test_what_cannot_be_done_is_refused_before_anything_changes(tmp_path: Path) -> None:
    source = forked(tmp_path)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        run(source, store=tmp_path / "taken")
    with pytest.raises(UsageError, match="is not there"):
        run(source, store=tmp_path / "no" / "store")
    with pytest.raises(UsageError, match="file system"):
        run(source, store=Path("/dev/shm") / "store")
    (source.far / "ack.json").unlink()
    with pytest.raises(StoreError, match="was not promoted"):
        run(source)
    wrong = tmp_path / "wrong"
    with pytest.raises(Refused, match="there is no store"):
        rejoin(Disk(), source.config, Request(f"dir://{wrong}"), lambda _line: None)
    assert not wrong.exists()
    assert read_superseded(Disk(), source.config.state_dir) is None


def test_a_source_that_is_being_shipped_is_left_alone(tmp_path: Path) -> None:
    source = forked(tmp_path)
    with (source.config.state_dir / "ship.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="shipped"):
            run(source)


def test_an_image_that_belongs_to_a_mirror_is_not_served_again(tmp_path: Path) -> None:
    source = forked(tmp_path)
    run(source)
    note = read_superseded(Disk(), source.config.state_dir)
    assert note is not None
    assert note.is_final
    assert isinstance(note.error(), SupersededError)


def relay(live: Callable[[Disk], object]) -> set[str]:
    """Rejoin in many lives, each of which dies at the first label at which none before it did."""
    met: set[str] = set()

    def before(_at: int, label: str) -> None:
        if label not in met:
            met.add(label)
            raise Crash(label)

    while True:
        try:
            live(Steps(before))
        except Crash:
            continue
        return met


def test_what_differs_can_be_read_by_the_account_that_the_new_source_comes_as(
    tmp_path: Path,
) -> None:
    source = forked(tmp_path, (), clean=False)
    before = os.umask(0o022)
    try:
        run(source, Disk())
    finally:
        os.umask(before)
    differs = source.config.state_dir / "store" / DIFFERS
    assert differs.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("names", [(), ("a", "b")], ids=["image", "directory"])
def test_a_rejoin_that_dies_at_every_label_ends_as_one_that_did_not(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    source = forked(tmp_path, names, clean=False)
    met = relay(lambda disk: run(source, disk))
    assert {"superseded:rename", "branch:rename", "rejoin:rename", "rejoin:spool"} <= met
    check(source, source.contents())
    assert (source.config.state_dir / "store" / DIFFERS).exists()  # And not all of it.


def gone_back(root: Path) -> OldSource:
    """Return a source whose other side went back over a file that has left the spool here."""
    source = OldSource(root)
    source.write(1, 2, 3)
    fork = source.fork()
    source.write(5, byte=5)
    source.go_back(fork)
    source.write(3, 9, byte=7)
    return source


def differing_blocks(source: OldSource) -> set[int]:
    extents = read_map(Disk(), source.config.state_dir / "store" / DIFFERS).extents()
    return {one.offset // BLOCK + n for one in extents for n in range(one.length // BLOCK)}


def test_what_the_other_side_went_back_over_differs_too(tmp_path: Path) -> None:
    source = gone_back(tmp_path)
    done = run(source, dry_run=True)
    assert (done["is_whole"], done["differing_bytes"], done["is_counted"]) == (
        False, 3 * BLOCK, False
    )  # fmt: skip
    assert "at least 2 writes" in describe(done)[0]
    run(source)
    check(source, source.contents())
    assert differing_blocks(source) == {3, 5, 9}
    assert not (source.config.state_dir / REWOUND).exists()


def test_what_it_went_back_over_is_known_to_whoever_goes_on_with_a_rejoin(tmp_path: Path) -> None:
    source = gone_back(tmp_path)
    met = relay(lambda disk: run(source, disk))
    assert {"rejoin:rewound_map:rename", "rejoin:unlink_rewound"} <= met
    check(source, source.contents())
    assert differing_blocks(source) == {3, 5, 9}


@pytest.mark.parametrize("harm", ["damaged", "unreadable", "gone"])
def test_without_a_readable_note_of_it_everything_is_copied(tmp_path: Path, harm: str) -> None:
    source = gone_back(tmp_path)
    note = source.far / REWOUND
    data = note.read_bytes()
    note.unlink()
    if harm == "damaged":
        note.write_bytes(data[:-1])
    elif harm == "unreadable":
        note.mkdir()
    done = run(source)
    assert done["is_whole"]
    assert not (source.config.state_dir / "store" / DIFFERS).exists()


def test_a_rejoin_that_dies_at_any_step_goes_on(tmp_path: Path) -> None:
    whole = Steps()
    run(forked(tmp_path / "whole", clean=False), whole)
    every = range(len(whole.labels))
    for step in every if LONG else make_dice().sample(every, 6):
        source = forked(tmp_path / str(step), clean=False)
        with pytest.raises(Crash):
            run(source, dying(step))
        run(source)
        check(source, source.contents())
        assert (source.config.state_dir / "store" / DIFFERS).exists()


def test_branches_are_copied_out_and_removed(tmp_path: Path) -> None:
    source = forked(tmp_path)
    run(source)
    state_dir = source.config.state_dir
    branch = find_branch(Disk(), state_dir, None)
    out = tmp_path / "out.img"
    export(Disk(), branch, out)
    assert out.read_bytes() == source.contents()["v.img"]
    assert out.stat().st_blocks * 512 < out.stat().st_size
    with pytest.raises(UsageError, match="is there already"):
        export(Disk(), branch, out)
    with pytest.raises(UsageError, match="no branch is called"):
        find_branch(Disk(), state_dir, "9-9")
    discard(Disk(), branch)
    with pytest.raises(UsageError, match="no branch is kept"):
        find_branch(Disk(), state_dir, None)


@pytest.mark.parametrize("seed", range(3))
def test_of_any_history_everything_that_this_side_held_is_in_the_branch(
    tmp_path: Path, seed: int
) -> None:
    dice = make_dice(seed)
    source = OldSource(tmp_path, ("a", "b"))
    source.live(dice, 8)
    source.fork()
    source.live(dice, 8)
    at_end = source.contents()
    run(source)
    check(source, at_end)


def superseded(root: Path, store: Path) -> tuple[GroupConfig, Request]:
    """Let another store have been promoted behind all that the promoted *store* has."""
    config, far = load(store / "source"), root / "far"
    (far / "inbox").mkdir(parents=True)
    state = state_of(store)
    assert state.group is not None
    assert state.head is not None
    (far / "ack.json").write_text(json.dumps({
        "version": 1, "generation": 1, "group": state.group.hex(), "phase": "promoted",
        "applied": state.head.to_json(),
        "promoted": {"epoch": 9, "fork": state.head.to_json(), "at_ns": 1},
    }))  # fmt: skip
    return config, Request(f"dir://{far}")


class Cloning(Disk):
    """A disk whose files can share blocks, or so it says."""

    def clone(self, label: str, source: int, target: int) -> bool:
        self.step(label)
        size = self.size(source)
        self.truncate(f"{label}:size", target, size)
        self.pwrite(f"{label}:write", target, [self.pread(source, size, 0)], 0)
        return True


def test_while_the_past_of_a_promoted_store_is_read_it_does_not_rejoin(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    promoted(store, at((1, 12)), Cloning())
    config, request = superseded(tmp_path, store)
    with pinned(Disk(), store), pytest.raises(BusyError, match=str(os.getpid())):
        rejoin(Disk(), config, request, lambda _line: None)
    assert read_superseded(Disk(), config.state_dir) is None
    assert rejoin(Disk(), config, request, lambda _line: None)["state"] == "rejoined"


def test_no_step_of_a_rejoin_shows_the_mirror_as_the_past(tmp_path: Path) -> None:
    """Also to those from afar, whom no lock holds up."""
    _source, store = applied(tmp_path)
    promoted(store, disk=Cloning())
    config, request = superseded(tmp_path, store)
    volume, image = store / "volumes" / "00000001", store / "mirror" / "v.img"
    shown: list[bool] = []

    def look(_at: int, label: str) -> None:
        past = look_at(Disk(), store)
        is_past = past.reach is not None and past.state.promoted is not None
        assert not (is_past and volume.exists() and volume.samefile(image)), label
        shown.append(is_past)

    rejoin(Steps(look), config, request, lambda _line: None)
    assert shown[0]
    assert not shown[-1]
    assert volume.samefile(image)


def test_a_promoted_store_whose_rejoin_dies_at_every_label_is_a_mirror_in_the_end(
    tmp_path: Path,
) -> None:
    _source, store = applied(tmp_path)
    promoted(store, at((1, 12)), Cloning())
    config, request = superseded(tmp_path, store)
    before = mirror_of(store)

    def live(disk: Disk) -> None:
        if config.state_dir.exists():  # It goes last.
            rejoin(disk, config, request, lambda _line: None)

    met = relay(live)
    assert {"rejoin-state:write", "rejoin:rewound", "rejoin:link", "rejoin:retire"} <= met
    assert state_of(store).phase is Phase.CONSISTENT
    assert mirror_of(store) == before
    assert catch_up(store).store.state.phase is Phase.CONSISTENT
    assert not (store / "rewound.map").exists()


def test_a_replayer_between_two_attempts_does_not_keep_a_promoted_store_from_rejoining(
    tmp_path: Path,
) -> None:
    _source, store = applied(tmp_path)
    promoted(store, at((1, 12)))
    config, request = superseded(tmp_path, store)
    seen: list[str] = []

    def die(_at: int, label: str) -> None:
        seen.append(label)
        if "rejoin:volumes" in seen:
            raise Crash(label)

    with pytest.raises(Crash):
        rejoin(Steps(die), config, request, lambda _line: None)
    catch_up(store)
    done = rejoin(Disk(), config, request, lambda _line: None)
    assert state_of(Path(done["store"])).phase is Phase.CONSISTENT
    (kept,) = store.glob("branches/rewound-*")
    assert list(kept.glob("*.undo"))
