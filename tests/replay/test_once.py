"""`replay --once`: what has arrived is applied, and the exit code says whether that was all."""

import json
from pathlib import Path

import pytest

from aimfuse.config.pauses import Pause, save_pauses
from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError, BusyError, NotCaughtUp, StoreError
from aimfuse.replay.once import Caught, gravest, unopened
from aimfuse.replay.replayer import Replayer
from tests.replay.source import Source, deliver, inbox_of, mirror_of
from tests.replay.stores import begun, made_source, opened


def next_file(source: Source) -> Path:
    source.write(1, 0, b"%d" % source.number)
    return source.roll()


async def once(store: Path) -> Caught:
    (found,) = await Replayer(store).run_once()
    json.dumps(found.to_json())
    return found


async def test_a_store_that_has_applied_all_is_caught_up(store: Path, source: Source) -> None:
    deliver(store, next_file(source), next_file(source))
    found = await once(store)
    assert found.problem is None
    assert (found.applied, found.file, found.waiting) == (2, 3, 0)
    assert found.describe() == f"{store}: consistent, at 1:4 in file 3"
    assert mirror_of(store) == source.snapshot()
    assert (await once(store)).applied == 0


async def test_a_store_with_nothing_in_it_is_caught_up(tmp_path: Path) -> None:
    inbox_of(tmp_path / "new")
    found = await once(tmp_path / "new")
    assert found.problem is None
    assert found.describe().endswith("new: empty, nothing applied yet")


async def test_files_behind_one_that_has_not_come_wait(store: Path, source: Source) -> None:
    next_file(source)
    deliver(store, next_file(source), next_file(source))
    found = await once(store)
    assert isinstance(found.problem, NotCaughtUp)
    assert found.waiting == 2
    assert str(found.problem).endswith(
        "2 files came and cannot be applied yet: file 2 has not come"
    )


@pytest.mark.expects_warnings
async def test_a_damaged_file_has_to_come_again(store: Path, source: Source) -> None:
    path = next_file(source)
    (inbox_of(store) / path.name).write_bytes(path.read_bytes()[:-1] + b"?")
    problem = (await once(store)).problem
    assert isinstance(problem, NotCaughtUp)
    assert path.name in str(problem)


async def test_what_waits_on_purpose_is_no_problem_but_is_counted(
    store: Path, source: Source
) -> None:
    save_pauses(store, {"apply": Pause(1)}, Disk())
    deliver(store, next_file(source), next_file(source))
    found = await once(store)
    assert found.problem is None
    assert (found.waiting, found.held) == (2, 2)
    save_pauses(store, {"receive": Pause(1)}, Disk())
    deliver(store, next_file(source))
    found = await once(store)
    assert found.problem is None
    assert found.applied == 2


async def test_a_store_that_somebody_replays_is_named_and_the_others_are_done(
    tmp_path: Path, source: Source
) -> None:
    stores = tmp_path / "stores"
    other = made_source(tmp_path / "other")
    for name, one in (("a", source), ("b", other)):
        begun(stores / name, one)
        deliver(stores / name, next_file(one))
    with opened(stores / "a") as session:
        session.store.lock()
        busy, done = await Replayer(stores).run_once()
    assert isinstance(busy.problem, BusyError)
    assert done.problem is None
    assert mirror_of(stores / "b") == other.snapshot()


def test_the_gravest_problem_decides_and_names_them_all() -> None:
    kinds = (NotCaughtUp("n"), BusyError("b"), AimfuseError("d"), StoreError("s"))
    all_of = [unopened("/x", one) for one in kinds]
    for count, code in ((1, 5), (2, 3), (3, 1), (4, 14)):
        worst = gravest(all_of[:count])
        assert worst is not None
        assert worst.exit_code == code
    assert str(gravest(all_of)) == "n; b; d; s"
    assert gravest([]) is None
