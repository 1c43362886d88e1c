"""The contestant that it is all about: an aimfuse mount, mirroring to `aimfuse serve`."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from aimfuse import config as configuration
from aimfuse.config import GroupConfig, JournalConfig
from aimfuse.errors import AimfuseError
from aimfuse.manager import control_client
from aimfuse.manager.reload import follow
from bench.load import fill
from bench.rig import MOUNTPOINT, VOLUME, Places, Rig
from bench.running import AIMFUSE, LOW_PRIORITY, Child, Runner, unmounting

DESTINATION = "far"
STORE = "v"
_CALL_S_MAX = 120.0
_STOP_S_MAX = 60.0
_NOBODY = "127.0.0.1:1"
"""Where no SSH server listens."""

Answer = dict[str, Any]


class FarHost:
    """A directory of stores and `aimfuse serve` in front of it, at low priority."""

    def __init__(self, runner: Runner, root: Path) -> None:
        """Keep everything below *root*."""
        self._runner = runner
        self.root = root
        self.stores = root / "stores"
        self.store = self.stores / STORE
        self.identity = root / "identity"
        self.known_hosts = root / "known_hosts"
        self._address = "127.0.0.1:0"

    @property
    def url(self) -> str:
        """Return the destination's URL, once it has been served."""
        return f"sftp://bench@{self._address}/{STORE}"

    @contextlib.contextmanager
    def serving(self) -> Generator[Child]:
        """Serve while the block runs, each time at the same address."""
        self.stores.mkdir(parents=True, exist_ok=True)
        if not self.identity.exists():
            self._runner.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.identity)
        log = self.root / "serve.log"
        words = (
            *LOW_PRIORITY, *AIMFUSE, "serve", self.stores, "--listen", self._address,
            "--authorized-keys", self.identity.with_suffix(".pub"),
        )  # fmt: skip
        with self._runner.running(words, log) as child:
            self._learn(child, log)
            yield child

    @contextlib.contextmanager
    def replaying(self) -> Generator[Child]:
        """Replay without serving: somebody else receives the files."""
        self.stores.mkdir(parents=True, exist_ok=True)
        log = self.root / "replay.log"
        words = (*LOW_PRIORITY, *AIMFUSE, "replay", self.stores)
        with self._runner.running(words, log) as child:
            yield child

    def _learn(self, child: Child, log: Path) -> None:
        def said() -> dict[str, str]:
            lines = log.read_text(errors="replace").splitlines()
            return dict(line.split(" ", 1) for line in lines if " " in line)

        def is_listening() -> bool:
            self._runner.check_alive(child, log)
            return "known_hosts" in said()

        self._runner.until(is_listening, "aimfuse serve listens", 30.0)
        self._address = said()["listening"]
        self.known_hosts.write_text(f"{said()['known_hosts']}\n")

    def ack(self) -> Answer:
        """Return the store's last report, empty before the first."""
        try:
            ack: Answer = json.loads((self.store / "ack.json").read_bytes())
        except FileNotFoundError:
            return {}
        return ack

    def applied_number(self) -> int:
        """Return the number of the last file in a consistent mirror, -1 if there is none."""
        ack = self.ack()
        if ack.get("phase") != "consistent":
            return -1
        return int((ack.get("applied") or {}).get("number", 0))


class Group:
    """An image below *root* that is mirrored, and the driver that serves it."""

    def __init__(self, runner: Runner, root: Path) -> None:
        """Keep image, state, mountpoint and log below *root*."""
        self._runner = runner
        self.image = root / VOLUME
        self.state_dir = root / f"{VOLUME}.aim"
        self.spool = self.state_dir / "spool"
        self.mountpoint = root / MOUNTPOINT
        self.volume = self.mountpoint / VOLUME
        self._log = root / "driver.log"

    def initialise(self, size: int, journal: JournalConfig | None = None) -> None:
        """Make a group with a new image of *size* bytes of noise, and default settings."""
        shutil.rmtree(self.state_dir, ignore_errors=True)
        fill(self.image, size)
        self._runner.run(*AIMFUSE, "init", self.image)
        if journal is not None:
            config = self.config()
            self.save(replace(config, journal=replace(journal, size_bytes_max=size)))

    def add_destination(
        self, url: str, known_hosts: Path, identity: Path, name: str = DESTINATION
    ) -> None:
        """Mirror to *url*."""
        self.save(
            configuration.add_destination(
                self.config(), url, name=name, known_hosts=known_hosts,
                identity_files=(identity,), use_agent=False,
            )
        )  # fmt: skip
        follow(self.state_dir)

    def pause(self, *, paused: bool) -> None:
        """Stop or resume shipping; a coordinator that runs takes a second to notice."""
        config = self.config()
        destinations = tuple(replace(one, paused=paused) for one in config.destinations)
        self.save(replace(config, destinations=destinations))

    def config(self) -> GroupConfig:
        """Return its settings."""
        return configuration.load(self.state_dir)

    def save(self, config: GroupConfig) -> None:
        """Change its settings."""
        configuration.save(config)

    @contextlib.contextmanager
    def mounted(self) -> Generator[Child]:
        """Serve the volume while the block runs, then unmount cleanly."""
        words = (*AIMFUSE, "mount", self.image, self.mountpoint)
        with (
            unmounting(self.mountpoint),
            self._runner.running(words, self._log) as child,
        ):
            self._runner.until_mounted(child, self.volume, self._log)
            try:
                yield child
            finally:
                self._stop(child)

    def _stop(self, child: Child) -> None:
        # Whatever is left of it is ended behind this.
        with contextlib.suppress(AimfuseError, subprocess.TimeoutExpired):
            self.call("stop", _STOP_S_MAX)
            child.wait(_STOP_S_MAX)

    def call(self, command: str, seconds: float = _CALL_S_MAX) -> Answer:
        """Ask the driver."""
        return control_client.call(self.state_dir, {"cmd": command}, seconds)

    def destination_status(self) -> Answer:
        """Return what the driver tells about the destination."""
        status: Answer = self.call("status")["destinations"][0]
        return status

    def drain(self, far: FarHost) -> None:
        """Wait until image and mirror hold all that was written so far."""
        number = int(self.call("applied")["number"])
        self._runner.until(
            lambda: far.applied_number() >= number, f"file {number} is in the mirror", 300.0
        )


@contextlib.contextmanager
def aimfuse(runner: Runner, places: Places) -> Generator[Rig]:
    """Mount it; the first copy is done and the mirror is up to date when the block begins."""
    places.make()
    far, group = FarHost(runner, places.far), Group(runner, places.near)
    shutil.rmtree(far.stores, ignore_errors=True)
    group.initialise(places.size)
    with far.serving():
        group.add_destination(far.url, far.known_hosts, far.identity)
        with group.mounted():
            group.drain(far)
            yield Rig(group.volume, lambda: group.drain(far))


@contextlib.contextmanager
def with_three_destinations(runner: Runner, places: Places) -> Generator[Rig]:
    """Mount it with two stores that follow, each on a host of its own, and one that is dead."""
    places.make()
    hosts = [FarHost(runner, places.far / str(number)) for number in (1, 2)]
    group = Group(runner, places.near)
    group.initialise(places.size)
    with hosts[0].serving(), hosts[1].serving():
        for number, far in enumerate(hosts, 1):
            group.add_destination(far.url, far.known_hosts, far.identity, f"far-{number}")
        group.add_destination(
            f"sftp://bench@{_NOBODY}/{STORE}", hosts[0].known_hosts, hosts[0].identity, "dead"
        )

        def drain() -> None:
            for far in hosts:
                group.drain(far)

        with group.mounted():
            drain()
            yield Rig(group.volume, drain)
