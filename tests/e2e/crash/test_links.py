"""A stock sshd behind a proxy: links cut and blocked, servers restarted, changed and full."""

import errno
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from aimfuse import config as configuration
from tests.contract.openssh import Sshd, start_sshd
from tests.contract.proxy import Proxy
from tests.dice import LONG
from tests.e2e.crash.fold import sealed_files
from tests.e2e.crash.machine import PATIENCE_S, Far, Machine, Source, eventually
from tests.e2e.crash.memory_disk import fill, memory_disk
from tests.e2e.crash.writes import BLOCK, History, Load

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(1800)]

BLOCKS = 256


@dataclass
class Link:
    """A source whose only destination is a store behind a server and a proxy."""

    source: Source
    far: Far
    sshd: Sshd
    proxy: Proxy
    history: History

    def write(self, wait_s: float) -> None:
        with Load(self.source.volume, self.history) as load:
            assert not load.wait_for_trouble(wait_s), "the application noticed"

    def state(self) -> str:
        return str(self.source.destination("d")["state"])

    def check(self) -> None:
        """Let the mirror follow, and compare."""
        self.source.flush()
        image = self.source.volume.read_bytes()
        assert self.far.mirror.read_bytes() == image
        assert self.history.recovered(image) == self.history.completed


@pytest.fixture
def link(machine: Machine, seed: int) -> Iterator[Link]:
    source, far = Source(machine, machine.root), Far(machine, machine.root)
    sshd = start_sshd(machine.root / "sshd")
    try:
        with Proxy(sshd.port) as proxy:
            sshd.write_known_hosts(proxy.port)
            url = f"sftp://{sshd.user}@127.0.0.1:{proxy.port}{far.store}"
            destination = configuration.DestinationConfig(
                "d", url, known_hosts=sshd.known_hosts, identity_files=(sshd.identity,),
                use_agent=False, stall_s_max=3.0, retry_s_max=1.0,
            )  # fmt: skip
            source.initialise(BLOCKS * BLOCK)
            source.configure(lambda old: replace(old, destinations=(destination,)))
            far.start()
            source.must_mount()
            yield Link(source, far, sshd, proxy, History(BLOCKS, seed))
            source.unmount()
            assert far.mirror.read_bytes() == source.image.read_bytes()
    finally:
        machine.clean_up()
        sshd.stop()


def test_a_link_cut_in_mid_file_again_and_again_delays_only(link: Link, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(30 if LONG else 3):
        link.proxy.cut_after(dice.randrange(1000, 200_000))
        link.write(dice.uniform(0.1, 0.6))
    link.proxy.cut()
    link.check()


def test_a_restarted_server_and_a_black_hole_delay_only(link: Link) -> None:
    link.write(0.3)
    link.sshd.restart()
    link.write(0.3)
    link.sshd.stop()
    link.write(0.5)
    eventually(lambda: link.state() == "retrying", "it says that it is trying")
    link.sshd.start()
    link.check()
    link.proxy.stop_forwarding()
    link.write(0.5)
    eventually(lambda: link.state() == "retrying", "it notices that nothing comes back")
    link.proxy.forward()
    link.check()


def test_a_changed_host_key_stops_all_until_it_is_put_right(link: Link) -> None:
    link.write(0.2)
    link.check()
    link.sshd.change_host_key()
    link.write(0.2)
    eventually(lambda: link.state() == "refused", "it refuses")
    status = link.source.destination("d")
    assert "host key" in status["error"].lower(), status["error"]
    eventually(lambda: not link.proxy.is_used, "the last connection has ended")
    seen = link.proxy.sent_bytes
    time.sleep(3)
    assert link.proxy.sent_bytes == seen, "it kept knocking"
    assert link.state() == "refused"
    link.write(0.2)  # The volume does not care.
    link.sshd.write_known_hosts(link.proxy.port)
    coordinator = link.source.coordinator_pid()
    assert coordinator
    os.kill(coordinator, signal.SIGHUP)
    eventually(lambda: link.state() != "refused", "it tries again")
    link.check()
    assert link.source.coordinator_pid() == coordinator


def test_a_stopped_replayer_is_waited_for(link: Link) -> None:
    link.write(0.2)
    link.check()
    with link.far.stopped():
        link.write(1.0)
        eventually(lambda: link.source.destination("d")["lag"]["files"] > 0, "the lag is told")
    link.check()
    eventually(lambda: not link.far.unfinished(), "nothing is left over")


def test_a_full_server_disk_is_waited_for(machine: Machine, seed: int) -> None:
    stores = machine.root / "stores"
    stores.mkdir()
    with memory_disk(stores, "70m"):
        source, far = Source(machine, machine.root), Far(machine, machine.root)
        source.initialise(BLOCKS * BLOCK, far.url)
        far.start()
        history = History(BLOCKS, seed)
        source.must_mount()
        with Load(source.volume, history) as load:
            load.wait_for_trouble(0.2)
        source.flush()
        ballast = fill(stores, 3 * BLOCK)
        with Load(source.volume, history) as load:
            assert not load.wait_for_trouble(0.5), "the application noticed"
        eventually(lambda: waits_with_an_error(source), "it says that there is no room")
        with Load(source.volume, history) as load:
            assert not load.wait_for_trouble(0.5), "the application noticed"
        ballast.unlink()
        source.flush()
        image = source.volume.read_bytes()
        assert far.mirror.read_bytes() == image
        assert history.recovered(image) == history.completed
        source.unmount()
        machine.clean_up()


def waits_with_an_error(source: Source) -> bool:
    status = source.destination("v")
    return status["state"] == "retrying" and bool(status["error"])


def make_writers_wait(source: Source, far: Far, history: History) -> None:
    """Write until the spool is full, wait, and go on once the store takes what is in it."""
    with Load(source.volume, history) as load:
        with far.stopped():
            wait_full(source)
            assert not load.wait_for_trouble(1.0)
            wait_full(source)  # What had been confirmed may have made room for a moment.
            assert sealed_files(source.spool, far.ack()["applied"]["number"])
        stuck = history.completed
        eventually(lambda: history.completed > stuck + 10, "writing goes on")


def be_refused(source: Source, far: Far, history: History) -> None:
    """Write until the spool is full and a write fails, and again once there is room."""
    with far.stopped():
        while True:
            with Load(source.volume, history) as load:
                assert load.wait_for_trouble(PATIENCE_S)
            assert load.error is not None
            assert load.error.errno == errno.ENOSPC
            assert load.sync_error is None, "what was accepted can be made durable"
            history.writes.pop()  # It was refused, so it must not be there.
            if source.status()["state"] == "spool-full":
                break  # Else what had been confirmed before has made room.
        assert sealed_files(source.spool, far.ack()["applied"]["number"])
    eventually(lambda: source.status()["state"] == "active", "there is room again")
    source.flush()  # Or the next writes fill it again before it has drained.
    stuck = history.completed
    with Load(source.volume, history, pause_s=0.02) as again:
        eventually(lambda: history.completed > stuck + 10, "writing goes on")
    assert again.error is None


def wait_full(source: Source) -> None:
    eventually(lambda: source.status()["state"] == "spool-full", "it is full")


@pytest.mark.parametrize("when_full", ["block", "fail"])
def test_a_full_spool_makes_writers_wait_or_fail_and_goes_on_when_there_is_room(
    machine: Machine, seed: int, when_full: str
) -> None:
    place = machine.root / "journal"
    place.mkdir()
    with memory_disk(place, "24m"):
        source, far = Source(machine, machine.root, place / "state"), Far(machine, machine.root)
        source.initialise(BLOCKS * BLOCK, far.url)
        source.configure(
            lambda old: replace(old, journal=replace(old.journal, when_full=when_full))
        )
        far.start()
        history = History(BLOCKS, seed)
        source.must_mount()
        source.flush()
        fill_the_spool = be_refused if when_full == "fail" else make_writers_wait
        fill_the_spool(source, far, history)
        source.flush()
        image = source.volume.read_bytes()
        assert history.recovered(image) == history.completed
        assert far.mirror.read_bytes() == image
        source.unmount()
        machine.clean_up()
