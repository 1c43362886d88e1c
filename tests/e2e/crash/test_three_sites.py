"""Three hosts, each with its network and its sshd; every link between them fails by dice.

Two of them are sources of each other, and the third gets what both write. With
AIMFUSE_SWEEP=long the weather lasts five minutes, or AIMFUSE_SWEEP_S seconds; else it is short.
"""

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from aimfuse.config import DestinationConfig
from aimfuse.units import MIB
from tests.contract.openssh import start_sshd
from tests.dice import LONG
from tests.e2e.crash.machine import FAST, Far, Machine, Source
from tests.e2e.crash.memory import Memory
from tests.e2e.crash.sites import Host, Link, Weather
from tests.e2e.crash.writes import BLOCK, History, Load

pytestmark = [
    pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(3600),
    pytest.mark.usefixtures("require_fuse", "require_namespaces"),
]  # fmt: skip

BLOCKS = 1024
WEATHER_S = float(os.environ.get("AIMFUSE_SWEEP_S", "300")) if LONG else 8.0
CALM_S_MAX = 5.0 if LONG else 0.8
"""From one change of the weather to the next one."""

SMALL_SPOOL = replace(FAST, spool_bytes_max=4 * MIB)
"""A longer cut is more than it holds: then files are folded, and mirrors get staged copies."""


class Site:
    """A host with a server, a replayer and, once it `mirrors_to` others, a source."""

    def __init__(self, host: Host, root: Path, links: list[Link]) -> None:
        root.mkdir()
        self.name = host.name
        self.host = host
        self.links = {link.ends[link.ends[0] is host].name: link for link in links}
        self.machine = Machine(root, host.launcher)
        self.far = Far(self.machine, root)
        addresses = tuple(link.address(host) for link in links)
        self.sshd = start_sshd(root / "sshd", addresses=addresses, launcher=host.launcher)
        self.source = Source(self.machine, root)

    def destination(self, source: "Site") -> DestinationConfig:
        """Return the way from another site to its store here."""
        url = self.sshd.url(
            self.far.stores / source.name, self.links[source.name].address(self.host)
        )
        return DestinationConfig(
            self.name, url, known_hosts=self.sshd.known_hosts, identity_files=(self.sshd.identity,),
            use_agent=False, stall_s_max=3.0, retry_s_min=0.1, retry_s_max=1.0,
        )  # fmt: skip

    def mirrors_to(self, others: list["Site"], seed: int) -> None:
        """Begin to be a source."""
        self.others = others
        self.history = History(BLOCKS, seed)
        self.source.initialise(BLOCKS * BLOCK, journal=SMALL_SPOOL)
        ways = tuple(other.destination(self) for other in others)
        self.source.configure(lambda old: replace(old, destinations=ways))
        self.source.must_mount()

    def pids(self) -> dict[str, int]:
        """Return its processes that ship, of a site that is a source."""
        assert self.source.driver is not None
        pids = {"driver": self.source.driver.pid, "coordinator": self.source.coordinator_pid()}
        return {f"{role} of {self.name}": pid for role, pid in pids.items()}

    def check_mirrors(self) -> None:
        """Let every mirror follow, and compare."""
        self.source.flush()
        image = self.source.volume.read_bytes()
        for other in self.others:
            store = other.far.stores / self.name
            assert (store / "mirror" / "v.img").read_bytes() == image
            assert not list((store / "quarantine").iterdir()), "nothing came damaged"
        assert self.history.recovered(image) == self.history.completed
        copies = self.machine.log("mount").count("a resync begins")
        print(f"{self.name}: {self.history.completed} writes, {copies} copies")
        for other in self.others:
            told = self.source.destination(other.name)
            print(
                f"to {other.name}: {told['received']['number']} files, {told['sent_bytes']} bytes"
            )


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[list[Site]]:
    with ExitStack() as stack:
        hosts = [stack.enter_context(Host(name)) for name in ("athens", "berlin", "cairo")]
        links = [Link(number, *ends) for number, ends in enumerate(combinations(hosts, 2))]
        made = []
        for host in hosts:
            own = [link for link in links if host in link.ends]
            made.append(Site(host, tmp_path / host.name, own))
            stack.callback(made[-1].sshd.stop)
            stack.callback(made[-1].machine.clean_up)
            made[-1].far.start()
        yield made


def test_links_cut_slowed_and_cut_again_between_three_sites_delay_only(
    sites: list[Site], seed: int
) -> None:
    athens, berlin, cairo = sites
    athens.mirrors_to([berlin, cairo], seed)
    berlin.mirrors_to([athens, cairo], seed + 1)
    sources = [athens, berlin]
    for site in sources:
        site.source.flush()  # The first copies are there.
    pids = [site.pids() for site in sources]
    memory = Memory(pids[0] | pids[1] | replayers(sites))
    dice = random.Random(seed)
    links = list({link.ends: link for site in sites for link in site.links.values()}.values())
    weather = Weather(links, dice)
    with ExitStack() as stack:
        loads = [
            stack.enter_context(Load(site.source.volume, site.history, pause_s=0.005))
            for site in sources
        ]
        end_s = time.monotonic() + WEATHER_S
        while time.monotonic() < end_s:
            weather.change()
            memory.look()
            for load in loads:
                assert not load.wait_for_trouble(dice.uniform(0.0, CALM_S_MAX) / 2), load.error
    weather.clear_up()
    for site in sources:
        site.check_mirrors()
    memory.look()
    print(f"{weather.cuts} cuts, {weather.slowdowns} slow links")
    memory.tell()
    if LONG:  # A short run is all warm-up.
        memory.check()
    assert pids == [site.pids() for site in sources], "a coordinator died"
    for site in sources:
        site.source.unmount()


def replayers(sites: list[Site]) -> dict[str, int]:
    """Return the process of each site's replayer."""
    running = {site.name: site.far.replayer for site in sites}
    return {f"replayer of {name}": process.pid for name, process in running.items() if process}
