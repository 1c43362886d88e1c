"""A store passes on what it receives through a stock sshd, staged copies included."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.config import DestinationConfig
from aimfuse.units import KIB, MIB
from tests.contract.openssh import Sshd, start_sshd
from tests.e2e.host import AIMFUSE, QUICK, FarHost, Source, until

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.usefixtures("require_fuse")]

SIZE = 2 * MIB
SMALL = replace(QUICK, file_bytes=64 * KIB, spool_bytes_max=MIB, spool_reserve_bytes=0)


class Chain:
    """Athens writes, berlin has a mirror and passes it on, cairo gets what berlin has."""

    def __init__(self, athens: Source, berlin: FarHost, cairo: FarHost, sshd: Sshd) -> None:
        """Mount athens, and let berlin's store be a source for cairo's."""
        self.athens, self.berlin, self.cairo = athens, berlin, cairo
        self.line = athens.root / "line"
        self.shipping: subprocess.Popen[bytes] | None = None
        for far in (berlin, cairo):
            far.start()
        self.connect()
        way = DestinationConfig("berlin", f"dir://{self.line}/v", retry_s_min=0.1, retry_s_max=0.3)
        athens.init(to=[way], journal=SMALL)
        athens.mount()
        self.write(0)
        until(lambda: self.is_mirrored(berlin))
        self.forward = berlin.store() / "forward"
        self.forward.mkdir()
        (self.forward / "group.toml").write_text(
            'image = "../mirror"\n[[destination]]\nname = "cairo"\n'
            f'url = "{sshd.url(cairo.store())}"\nknown_hosts = "{sshd.known_hosts}"\n'
            f'identity_files = ["{sshd.identity}"]\nuse_agent = false\nretry_max = "1s"\n'
        )
        self.ship()

    def connect(self) -> None:
        """Let athens reach berlin."""
        self.line.symlink_to(self.berlin.stores)

    def cut(self) -> None:
        """Let athens reach berlin no more."""
        self.line.unlink()

    def ship(self) -> None:
        """Let berlin pass on."""
        words = ("ship", str(self.berlin.store() / "mirror"), "--state", str(self.forward))
        with self.berlin.log.open("ab") as log:
            self.shipping = subprocess.Popen((*AIMFUSE, *words), stderr=log)

    def stop_shipping(self) -> None:
        """Let berlin keep what it has for itself."""
        if self.shipping is not None:
            self.shipping.kill()
            self.shipping.wait()
            self.shipping = None

    def write(self, at: int, size: int = 64 * KIB) -> None:
        with self.athens.volume.open("r+b") as file:
            file.seek(at)
            file.write(os.urandom(size))
            os.fsync(file.fileno())

    def write_more_than_the_spool_holds(self) -> None:
        for _ in range(3):
            self.write(0, MIB)

    def is_mirrored(self, far: FarHost) -> bool:
        mirror = far.mirror()
        return mirror.exists() and mirror.read_bytes() == self.athens.volume.read_bytes()


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    with (
        contextlib.closing(start_sshd(tmp_path / "sshd")) as sshd,
        Source(tmp_path / "athens", SIZE) as athens,
        FarHost(tmp_path / "berlin") as berlin,
        FarHost(tmp_path / "cairo") as cairo,
    ):
        made = Chain(athens, berlin, cairo, sshd)
        try:
            yield made
        finally:
            made.stop_shipping()
            print(berlin.log.read_text(errors="replace")[-4000:])
            print(athens.log.read_text(errors="replace")[-4000:])


def test_staged_copies_that_a_store_switched_in_come_to_the_next_hop(chain: Chain) -> None:
    until(lambda: chain.is_mirrored(chain.cairo))
    for is_behind in (False, True):
        if is_behind:
            chain.stop_shipping()
        chain.write(MIB)
        until(lambda: chain.is_mirrored(chain.cairo if chain.shipping else chain.berlin))
        chain.cut()
        chain.write_more_than_the_spool_holds()
        chain.connect()
        until(lambda: chain.is_mirrored(chain.berlin))
        if is_behind:
            chain.ship()
        until(lambda: chain.is_mirrored(chain.cairo))
    # That berlin has no files of what came to it by a copy is no fault of its spool.
    assert " ERROR " not in chain.berlin.log.read_text()
    assert chain.athens.log.read_text().count("a resync begins") == 2
    chain.write(MIB)
    until(lambda: chain.is_mirrored(chain.cairo))
