"""A real power cut of the far host's disk while files arrive through a stock sshd.

Models a far host whose page cache and unflushed metadata are gone: its store lies on a file
system of its own, which is shut down under load. sshd and replayer are killed with it.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from aimfuse.config import DestinationConfig
from aimfuse.manager.files import read_slots
from tests.contract.openssh import Sshd, start_sshd
from tests.dice import LONG
from tests.e2e.crash.machine import Far, Machine, Source
from tests.e2e.crash.power import Disk
from tests.e2e.crash.writes import BLOCK, History, Load

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("require_root_loop"),
]

BLOCKS = 256


@pytest.fixture
def sshd(machine: Machine) -> Iterator[Sshd]:
    sshd = start_sshd(machine.root / "sshd")
    yield sshd
    sshd.stop()


def confirmed(source: Source) -> int:
    """Return the file up to which the source believes that all is durable over there."""
    cursor, problem = read_slots(source.state / "destinations" / "d" / "cursor")
    assert cursor is not None, problem
    return int(cursor["number"])


def test_what_a_store_had_confirmed_outlives_its_power_cut_and_the_rest_comes_again(
    machine: Machine, seed: int, sshd: Sshd
) -> None:
    dice = random.Random(seed)
    with Disk(machine.root, "store", "ext4") as disk:
        source, far = Source(machine, machine.root), Far(machine, disk.path)
        history = History(BLOCKS, seed)
        where = DestinationConfig(
            "d", sshd.url(far.store), known_hosts=sshd.known_hosts, use_agent=False,
            identity_files=(sshd.identity,), stall_s_max=3.0, retry_s_min=0.1, retry_s_max=0.3,
        )  # fmt: skip
        source.initialise(BLOCKS * BLOCK)
        source.configure(lambda old: replace(old, destinations=(where,)))
        disk.sync()
        far.start()
        source.must_mount()
        source.flush()
        for _ in range(20 if LONG else 2):
            with Load(source.volume, history) as load:
                assert not load.wait_for_trouble(dice.uniform(0.2, 0.8))
                disk.cut()
                believed = confirmed(source)
                assert not load.wait_for_trouble(0.2), "the application noticed"
            sshd.stop()
            far.kill()
            disk.revive()
            far.finish()
            received = far.ack()["received"]["number"]
            print(f"confirmed to file {believed}, there to {received}")
            assert received >= believed, "what was confirmed is lost"
            history.prefix(far.mirror.read_bytes())
            sshd.start()
            far.start()
            source.flush()
        image = source.volume.read_bytes()
        assert far.mirror.read_bytes() == image
        assert history.recovered(image) == history.completed
        source.unmount()
        far.kill()
        far.finish()  # And tidy up what it was just writing.
        assert not far.unfinished()
        machine.clean_up()
        sshd.stop()
