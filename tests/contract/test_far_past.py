"""Restoring over SFTP gives what restoring on the store's host does, or nothing at all."""

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.errors import JournalError, OutOfReach, Unavailable
from aimfuse.manager.far import store_status
from aimfuse.replay import copying
from aimfuse.replay.past import describe
from aimfuse.replay.readers import READER_NS, Wish, reader_name
from aimfuse.replay.restore import Request, restore_from
from aimfuse.units import MIB, SECOND_NS
from tests.contract.commands import run
from tests.contract.far_past import reaching, replaying, restored_from
from tests.contract.far_sides import EmbeddedSide, OpensshSide
from tests.contract.proxy import Proxy
from tests.dice import LONG
from tests.replay.faults import Steps
from tests.replay.recorder import Recorder, at, recorded, silent
from tests.replay.source import deliver
from tests.replay.stores import begin, catch_up, exhaust, opened, until

Server = OpensshSide | EmbeddedSide
RESUMED = 30 if LONG else 1
POINTS = 60 if LONG else 4
TOKEN = "0123456789abcdef"


async def test_any_point_comes_back_exactly_beside_a_replayer(
    server: Server, tmp_path: Path
) -> None:
    source, store, waiting = recorded(server.root)
    known = [one for one, state in source.states.items() if (1, 4) <= one < (1, 29) and state]
    with replaying(store), reaching(server, store) as access:
        for index, where in enumerate(random.sample(known, POINTS)):
            if waiting:
                deliver(store, waiting.pop(0))
            found = restored_from(access, at(where), tmp_path / f"{index}")
            assert found == source.states[where], where


async def test_the_past_is_described_as_on_the_stores_own_host(server: Server) -> None:
    _source, store, _waiting = recorded(server.root)
    with reaching(server, store) as access:
        said = describe(access.disk, access.path, access.look)
    assert said | {"store": str(store)} == describe(Disk(), store)


async def test_only_data_is_fetched_and_holes_stay_holes(server: Server, tmp_path: Path) -> None:
    source, store = Recorder(server.root / "spool"), server.root / "store"
    source.create("v.img", MIB)
    source.write(1, MIB // 4, b"x" * 5000)
    source.roll()
    begin(store, source)
    source.write(1, MIB // 2, b"y" * 5000)
    deliver(store, source.roll())
    request = Request(tmp_path / "out", at((1, 3)), "v.img")
    with replaying(store), reaching(server, store) as access:
        said = restore_from(access, request, silent)
    assert said["reads"]["mirror_bytes"] < MIB // 8
    assert request.output.stat().st_blocks * 512 < MIB // 8
    assert request.output.read_bytes() == source.states[1, 3]["v.img"]


async def test_without_a_replayer_all_is_read_and_holes_are_still_holes(
    openssh: OpensshSide, tmp_path: Path
) -> None:
    source, store = Recorder(openssh.root / "spool"), openssh.root / "store"
    source.create("v.img", MIB)
    source.write(1, MIB // 2 + 100, b"x" * 5000)
    source.roll()
    begin(store, source)
    source.write(1, 100, b"y" * 5000)
    deliver(store, source.roll())
    catch_up(store)
    request = Request(tmp_path / "out", at((1, 3)), "v.img")
    with reaching(openssh, store, answer_s_max=0.1) as access:
        said = restore_from(access, request, silent)
    assert said["reads"]["mirror_bytes"] == MIB
    assert request.output.stat().st_blocks * 512 < MIB // 8
    assert request.output.read_bytes() == source.states[1, 3]["v.img"]


async def test_no_byte_is_left_out_where_two_stretches_of_a_large_volume_meet(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes over the line at once does not end where a stretch of the copy does."""
    monkeypatch.setattr(copying, "COPY_BYTES", 700_000)  # Else the volume had to have many MiB.
    source, store = long_past(server.root)
    (point, expected), *_others = source.states.items()
    request = Request(tmp_path / "out", at(point), "v.img")
    with replaying(store), reaching(server, store) as access:
        restore_from(access, request, silent)
    assert request.output.read_bytes() == expected["v.img"]


# A link that is cut.


def long_past(root: Path) -> tuple[Recorder, Path]:
    """Return a source and a store with a volume of several runs, and files that change it."""
    source, store = Recorder(root / "spool"), root / "store"
    source.create("v.img", 3 * MIB)
    for at_mib in range(3):
        source.write(1, at_mib * MIB, random.Random(at_mib).randbytes(MIB))
    source.roll()
    begin(store, source)
    source.states.clear()
    for index in range(4):
        source.write(1, 500_000 * index, bytes([index]) * 300_000)
        source.create(f"extra-{index}", 3000)
        source.truncate(1, 2 * MIB + index)
        source.write(1, 2 * MIB + 5000, b"end")
        source.zero(1, 600_000 * index, 50_000)
        deliver(store, source.roll())
    catch_up(store)
    return source, store


async def test_a_connection_that_is_cut_is_made_again_and_nothing_is_lost(
    server: Server, tmp_path: Path
) -> None:
    source, store = long_past(server.root)
    where = sorted(source.states)[2]
    with Proxy(server.port) as proxy:
        server.trust(proxy.port)
        every_third = Steps(lambda number, _label: proxy.cut() if number % 15 == 0 else None)
        with reaching(server, store, proxy.port, every_third, answer_s_max=0.1) as access:
            assert restored_from(access, at(where), tmp_path / "out") == source.states[where]


class Ending(Steps):
    """Lets the link end for good at a step, or before it: `Crash` stands for a killed process."""

    def __init__(self, at_step: int, end: Callable[[], None]) -> None:
        super().__init__(lambda number, _label: end() if number == at_step else None)


async def test_a_restore_whose_link_does_not_come_back_goes_on_the_next_time(
    openssh: OpensshSide, tmp_path: Path
) -> None:
    source, store = long_past(openssh.root)
    where = sorted(source.states)[2]
    rehearsal = Steps()
    with reaching(openssh, store, disk=rehearsal, answer_s_max=0.1) as access:
        restored_from(access, at(where), tmp_path / "rehearsal")
    low, high = (rehearsal.labels.index(one) for one in ("restore:copy", "restore:link"))
    for at_step in (high - 1, *random.sample(range(low + 2, high - 1), RESUMED)):
        output = tmp_path / f"{at_step}"
        with Proxy(openssh.port) as proxy:
            openssh.trust(proxy.port)
            disk = Ending(at_step, lambda: proxy.__exit__(None, None, None))
            with (
                reaching(openssh, store, proxy.port, disk, 0.3, 0.1) as access,
                contextlib.suppress(Unavailable),
            ):
                restored_from(access, at(where), output)
        assert output.exists() != (tmp_path / f"{at_step}.part").exists()
        if not output.exists():
            again = Steps()
            with reaching(openssh, store, disk=again, answer_s_max=0.1) as access:
                assert restored_from(access, at(where), output) == source.states[where]
            assert len(again.labels) < len(rehearsal.labels) + 10 - (at_step - low)
        assert not [*tmp_path.glob("*.part*")]


# Nothing that is needed is pruned.


class Pruning(Steps):
    """Has everything pruned that may be, whenever the restore takes a step."""

    def __init__(self, store: Path, reader_max: str = "1d") -> None:
        super().__init__(self._prune)
        (store / "store.toml").write_text(f'keep = "1ms"\nreader_max = "{reader_max}"')
        self.store = store
        self.session = None

    def _prune(self, _number: int, label: str) -> None:
        if label == "restore:copy":
            catch_up(self.store)


def undo_files(store: Path) -> int:
    return len([*(store / "history").glob("*.undo")])


async def test_nothing_that_a_distant_restore_needs_is_pruned(
    server: Server, tmp_path: Path
) -> None:
    source, store, _waiting = recorded(server.root)
    with reaching(server, store, disk=Pruning(store), answer_s_max=0.1) as access:
        assert restored_from(access, at((1, 6)), tmp_path / "out") == source.states[1, 6]
    assert undo_files(store) == 3
    catch_up(store)
    assert undo_files(store) == 0
    assert [*(store / "inbox").iterdir()] == []


async def test_who_reads_from_afar_is_named_at_the_store_while_he_does(
    openssh: OpensshSide,
) -> None:
    _source, store, _waiting = recorded(openssh.root)
    sets = [path for path in (store / "history").glob("0*") if "000004" in path.name]
    with replaying(store):
        with reaching(openssh, store) as access, access.hold(access.disk, access.path) as held:
            assert held is not None
            held.move(3)
            await until(lambda: [one["first"] for one in store_status(store)["far_readers"]] == [4])
            (one,) = store_status(store)["far_readers"]
            assert one["who"].endswith(f"@{socket.gethostname()}")
            assert one["owner"] == os.geteuid()
            assert one["last"] == 4
            assert one["bytes"] == sum(path.stat().st_size for path in sets) > 0
            assert 0 < one["since_ns"] <= one["heard_ns"] <= time.time_ns() + SECOND_NS
            assert describe(Disk(), store)["readers"] == [one]
            code, shown, errors = run("history", store)
            assert code == 0, errors
            assert f"from afar by {one['who']} (user id {one['owner']} there), since " in shown
            assert "files 4 to 4 are kept for that" in shown
        await until(lambda: store_status(store)["far_readers"] == [])
    assert describe(Disk(), store)["readers"] == []


async def test_who_reads_longer_than_the_store_allows_is_told_so(
    openssh: OpensshSide, tmp_path: Path
) -> None:
    _source, store, _waiting = recorded(openssh.root)
    disk = Pruning(store, reader_max="1ms")
    with (
        reaching(openssh, store, disk=disk, answer_s_max=0.1) as access,
        pytest.raises(OutOfReach, match="keeps no more for who reads it from afar"),
    ):
        restored_from(access, at((1, 6)), tmp_path / "out")
    assert [*tmp_path.glob("out*")] == []


async def test_an_account_that_may_only_read_restores_all_the_same(
    openssh: OpensshSide, tmp_path: Path
) -> None:
    source, store, _waiting = recorded(openssh.root)
    read_only(openssh)
    with replaying(store), reaching(openssh, store) as access:
        assert restored_from(access, at((1, 6)), tmp_path / "out") == source.states[1, 6]
    assert [*(store / "inbox").iterdir()] == []


async def test_an_account_that_may_only_read_is_told_what_was_pruned_under_it(
    openssh: OpensshSide, tmp_path: Path
) -> None:
    _source, store, _waiting = recorded(openssh.root)
    read_only(openssh)
    with (
        reaching(openssh, store, disk=Pruning(store)) as access,
        pytest.raises(OutOfReach, match="pruned while it was read"),
    ):
        restored_from(access, at((1, 6)), tmp_path / "out")
    assert [*tmp_path.glob("out*")] == []


def read_only(side: OpensshSide) -> None:
    side.sshd.extra_config = "ForceCommand internal-sftp -R"
    side.sshd.restart()


async def test_damage_over_there_is_never_given_out(openssh: OpensshSide, tmp_path: Path) -> None:
    source, store, _waiting = recorded(openssh.root)
    used = sorted((store / "history").glob("*-00000000.undo"))[1:]
    assert len(used) == 2
    for path in used:
        sound = path.read_bytes()
        for bit in random.sample(range(8 * len(sound)), 4):
            damaged = bytearray(sound)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with (
                reaching(openssh, store, answer_s_max=0.0) as access,
                pytest.raises(JournalError),
            ):
                restored_from(access, at((1, 12)), tmp_path / "out")
            assert [*tmp_path.glob("out*")] == []
        path.write_bytes(sound)
    with reaching(openssh, store, answer_s_max=0.0) as access:
        assert restored_from(access, at((1, 12)), tmp_path / "out") == source.states[1, 12]


async def test_a_key_of_serve_that_is_for_reading_restores_and_one_for_deliveries_does_not(
    embedded: EmbeddedSide, tmp_path: Path
) -> None:
    source, store, _waiting = recorded(embedded.root)
    keys = embedded.root / ".aimfuse" / "authorized_keys"
    key = keys.read_text()
    keys.write_text(f'store="store",read-only {key}')
    with reaching(embedded, store) as access:
        assert restored_from(access, at((1, 6)), tmp_path / "out") == source.states[1, 6]
    assert [*(store / "inbox").iterdir()] == []
    keys.write_text(f"deliver-only {key}")
    with (
        reaching(embedded, store, answer_s_max=0.1) as access,
        pytest.raises(OSError, match="Permission denied"),
    ):
        restored_from(access, at((1, 6)), tmp_path / "again")
    assert [*tmp_path.glob("again*")] == []


def test_a_reader_that_is_not_heard_of_any_more_is_forgotten(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    (store / "store.toml").write_text('keep = "1ms"')
    path = store / "inbox" / reader_name(TOKEN)
    path.write_text(json.dumps(Wish(behind=2).to_json()))
    with opened(store) as session:
        exhaust(session)
        assert undo_files(store) == 2  # Of files 3 and 4.
    gone_ns = path.stat().st_mtime_ns - READER_NS - SECOND_NS
    os.utime(path, ns=(gone_ns, gone_ns))
    catch_up(store)
    assert undo_files(store) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"{}", b"\xff", b"[" * 5000, b"x" * 100_000,
        b'{"behind": -1, "ask": 0, "data": [], "done": false}',
        b'{"behind": 9, "ask": 0, "data": ["../../secret"], "done": false}',
        b'{"behind": 9, "ask": 0, "data": ["volumes/00000001/../../x"], "done": false}',
    ],
)  # fmt: skip
def test_a_reader_that_cannot_be_understood_needs_everything_for_a_while(
    tmp_path: Path, text: bytes
) -> None:
    _source, store, _waiting = recorded(tmp_path)
    (store / "store.toml").write_text('keep = "1ms"')
    (store / "inbox" / reader_name(TOKEN)).write_bytes(text)
    session = catch_up(store)
    assert not session.error
    assert undo_files(store) == 3
    assert not [*store.glob("readers/*")]
