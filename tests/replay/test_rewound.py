"""What a promotion goes back over is written down before it does, or nobody is told of it."""

import errno
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.journal.rewound import REWOUND, Rewound
from aimfuse.replay.past import describe
from aimfuse.replay.state import Phase
from tests.disks.faults import Crash
from tests.replay.crashes import copy_store
from tests.replay.faults import Steps, failing_at
from tests.replay.history_command import run_history
from tests.replay.promotions import applied, promoted, reachable, state_of
from tests.replay.recorder import at
from tests.replay.source import mirror_of
from tests.replay.stores import catch_up

pytestmark = pytest.mark.expects_warnings


def noted(store: Path) -> Rewound:
    return Rewound.decode((store / REWOUND).read_bytes())


def test_everything_that_going_back_changed_is_named(tmp_path: Path) -> None:
    source, prepared = applied(tmp_path)
    before = mirror_of(prepared)
    positions = sorted(reachable(source))
    for position in positions[3::9]:
        store = tmp_path / "{}-{}".format(*position)
        copy_store(prepared, store)
        promoted(store, at(position))
        found, went = noted(store), state_of(store)
        assert (found.fork.digest, found.newest.digest) == (went.fork.digest, went.newest.digest)
        named = set(found.touched.extents())
        for one in found.volumes:
            after = mirror_of(store).get(one.name)
            if after is None or one.name not in before:
                continue
            length = min(len(after), len(before[one.name]))
            for block in range(0, length, 4096):
                if after[block : block + 4096] == before[one.name][block : block + 4096][:length]:
                    continue
                assert any(
                    volume == one.volume and offset <= block < offset + size
                    for volume, offset, size in named
                ), (position, one.name, block)


def test_a_store_that_goes_on_from_its_newest_record_notes_its_volumes(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    (store / REWOUND).write_bytes(b"of an earlier promotion")
    promoted(store)
    found = noted(store)
    assert found.fork == found.newest
    assert not found.touched
    assert {one.name: one.size_bytes for one in found.volumes} == {
        name: len(data) for name, data in mirror_of(store).items()
    }


def test_a_mirror_again_forgets_what_it_once_went_back_over(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    (store / REWOUND).write_bytes(b"of an earlier promotion")
    assert catch_up(store).store.state.phase is Phase.CONSISTENT
    assert not (store / REWOUND).exists()


@pytest.mark.parametrize("harm", ["no room", "a damaged file", "a bad sector"])
def test_without_the_note_it_goes_back_all_the_same(tmp_path: Path, harm: str) -> None:
    source, store = applied(tmp_path)
    (store / REWOUND).write_bytes(b"of an earlier promotion")
    disk = Disk()
    if harm == "no room":
        disk = failing_at("promote:rewound:write", errno.ENOSPC)
    elif harm == "a bad sector":
        disk = failing_at("contents:open", errno.EIO, times=99)
    else:
        victim = max((store / "history").glob("*.aim"))
        victim.write_bytes(victim.read_bytes()[:-200])
    promoted(store, at((1, 27)), disk)
    assert mirror_of(store) == source.states[1, 27]
    assert not list(store.glob(f"{REWOUND}*"))


def test_the_history_of_a_store_that_went_back_says_what_is_kept_of_it(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    promoted(store, at((1, 12)))
    went = state_of(store)
    said = describe(Disk(), store)
    rewound = said["rewound"]
    kept = [path for path in (store / "history").iterdir() if path.name[:1] == "0"]
    assert said["bytes"] > rewound["bytes"] > 0
    assert said["bytes"] <= sum(path.stat().st_size for path in kept)
    assert (rewound["fork"]["file"], rewound["newest"]["file"]) == (
        went.fork.number, went.newest.number
    )  # fmt: skip
    text = run_history(store)
    assert f"holds  {said['files']} files" in text
    assert "no state of it can be had: it was promoted" in text
    assert f"gone back over, from {rewound['newest']['position']} to" in text


def test_the_history_of_a_store_that_never_went_back_says_nothing_of_that(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    assert describe(Disk(), store)["rewound"] is None
    promoted(store)
    said = describe(Disk(), store)
    assert said["rewound"] is None
    assert said["files"] > 0


def test_a_death_at_the_removal_of_an_old_note_does_no_harm(tmp_path: Path) -> None:
    source, store = applied(tmp_path)
    (store / REWOUND).write_bytes(b"of an earlier promotion")

    def before(_at: int, label: str) -> None:
        if label == "promote:rewound:write":
            raise OSError(errno.ENOSPC, "No space left on device", label)
        if label == "promote:unlink_rewound":
            raise Crash(label)

    with pytest.raises(Crash):
        promoted(store, at((1, 27)), Steps(before))
    promoted(store, at((1, 27)))
    assert mirror_of(store) == source.states[1, 27]
    assert noted(store).fork.digest == state_of(store).fork.digest


def test_a_mirror_that_dies_while_it_forgets_does_so_the_next_time(tmp_path: Path) -> None:
    _source, store = applied(tmp_path)
    (store / REWOUND).write_bytes(b"of an earlier promotion")

    def before(_at: int, label: str) -> None:
        if label == "rewound:tidy":
            raise Crash(label)

    with pytest.raises(Crash):
        catch_up(store, Steps(before))
    assert catch_up(store).store.state.phase is Phase.CONSISTENT
    assert not (store / REWOUND).exists()
