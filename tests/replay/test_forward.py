"""A store keeps for the next hop what it applied: each file once, and none that it refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.journal.slots import Slots
from aimfuse.journal.spool import sealed_names
from aimfuse.replay.forward import FORWARD
from tests.disks.faults import Crash
from tests.replay.faults import Steps, dying
from tests.replay.resyncs import do_much, make_source
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import begun, catch_up, made_source


def forwarding(store: Path, extra: str = "") -> Path:
    """Let *store* pass its files on, and return the directory where that happens."""
    home = store / FORWARD
    home.mkdir()
    (home / "group.toml").write_text(f'image = "../mirror"\n{extra}')
    return home


def kept(home: Path) -> list[int]:
    return [int(name.number) for name in sealed_names(Disk(), home / "spool")]


def two_files(source: Source) -> list[Path]:
    source.write(1, 0, b"one")
    first = source.roll()
    source.create("second", 5000)
    return [first, source.roll()]


def test_a_death_at_any_step_loses_the_next_hop_no_file(tmp_path: Path) -> None:
    at, ended = 0, False
    while not ended:
        source = made_source(tmp_path / f"spool-{at}")
        store = begun(tmp_path / f"store-{at}", source)
        home = forwarding(store)
        catch_up(store)
        deliver(store, *two_files(source))
        disk = dying(at)
        try:
            catch_up(store, disk)
            ended = True
        except Crash:
            catch_up(store)
        assert kept(home) == [2, 3], at
        checkpoint = Slots(Disk(), home / "checkpoint", "test").read()
        assert checkpoint is not None
        assert (checkpoint["number"], checkpoint["gap"]) == (3, None), at
        assert [one["name"] for one in checkpoint["volumes"]] == ["v.img", "second"]
        assert mirror_of(store) == source.snapshot()
        at += 3  # Every third step: the others differ in nothing that counts here.
    assert at > 20


def test_hashes_are_passed_on_as_they_came(tmp_path: Path) -> None:
    source = made_source(tmp_path / "spool")
    store = begun(tmp_path / "store", source)
    home = forwarding(store)
    catch_up(store)
    with (store / "volumes" / "00000001").open("r+b") as mirror:
        mirror.write(b"edited")
    source.verify(1)
    made = source.roll()
    deliver(store, made)
    assert catch_up(store).store.state.verified.mismatches
    assert (home / "spool" / made.name).read_bytes() == made.read_bytes()


def test_a_store_without_settings_for_it_keeps_nothing(tmp_path: Path) -> None:
    source = made_source(tmp_path / "spool")
    store = begun(tmp_path / "store", source)
    deliver(store, *two_files(source))
    counter = Steps()
    catch_up(store, counter)
    assert not (store / FORWARD).exists()
    assert not [label for label in counter.labels if label.startswith("forward")]


@pytest.mark.expects_warnings
def test_a_file_that_was_refused_is_not_passed_on(tmp_path: Path) -> None:
    source = made_source(tmp_path / "spool")
    store = begun(tmp_path / "store", source)
    home = forwarding(store)
    catch_up(store)
    stranger = made_source(tmp_path / "other")
    stranger.write(1, 0, b"another history")
    stranger.roll()
    deliver(store, two_files(stranger)[0])
    catch_up(store)
    deliver(store, two_files(source)[0])
    assert "fork" in catch_up(store).halted
    assert kept(home) == [2]


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    source = made_source(tmp_path / "spool")
    store = begun(tmp_path / "store", source)
    home = forwarding(store, '[journal]\nfile_bytes = "64KiB"\nspool_bytes_max = "1MiB"\n')
    catch_up(store)
    for turn in range(2, 36):
        source.write(1, 0, bytes([turn]) * 60_000)
        deliver(store, source.roll())
        catch_up(store)
    numbers = kept(home)
    assert numbers[-1] == 35
    assert numbers == list(range(numbers[0], 36))
    assert 2 < numbers[0] <= 32


@pytest.mark.parametrize("dies_at_first", [False, True])
def test_the_next_hop_is_told_before_a_switch_makes_a_mixture_of_the_mirror(
    tmp_path: Path, *, dies_at_first: bool
) -> None:
    source = make_source(tmp_path / "spool")
    store = begun(tmp_path / "store", source)
    home = forwarding(store)
    catch_up(store)
    old, mixed = data_of(store), 0

    def look(_at: int, label: str) -> None:
        nonlocal mixed
        if data_of(store) == old:
            return
        told = Slots(Disk(), home / "checkpoint", "test").read()
        assert told is not None
        assert told["gap"] is not None or told["number"] == 3, label
        mixed += 1

    deliver(store, *source.resync(do_much(source), to=3))
    if dies_at_first:
        with pytest.raises(Crash):
            catch_up(store, Steps(die_before("switch:open")))
    catch_up(store, Steps(look))
    assert mixed > 5
    told = Slots(Disk(), home / "checkpoint", "test").read()
    assert told is not None
    assert (told["number"], told["gap"]) == (3, None)


def data_of(store: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((store / "volumes").iterdir())]


def die_before(die_at: str) -> Callable[[int, str], None]:
    def before(_at: int, label: str) -> None:
        if label == die_at:
            raise Crash(label)

    return before
