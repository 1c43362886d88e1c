"""A far side as `aimfuse serve`: its own SFTP server, and a replayer that it looks after."""

import re
from pathlib import Path

from aimfuse.config import DestinationConfig
from tests.contract.openssh import free_port, make_key
from tests.e2e.crash.machine import Cruelty, Far, Machine, eventually

_KNOWN_HOSTS = re.compile(r"^known_hosts (.+)$", re.MULTILINE)


class Served(Far):
    """Like `Far`, but reached over SFTP; killed, both of its processes are gone."""

    def __init__(self, machine: Machine, place: Path) -> None:
        """Choose a port and make a key."""
        super().__init__(machine, place)
        self._port = free_port()
        self._identity = make_key(place / "identity")
        self._known_hosts = place / "known_hosts"

    def start(self, cruelty: Cruelty | None = None) -> None:
        """Start it; it may take a moment until it listens."""
        self.replayer = self.machine.start(
            "serve", self.stores, "--listen", f"127.0.0.1:{self._port}",
            "--authorized-keys", self._identity.with_suffix(".pub"), cruelty=cruelty,
        )  # fmt: skip

    def destination(self, name: str = "v") -> DestinationConfig:
        """Return the destination of one of its stores, once its host key is known."""
        eventually(lambda: _KNOWN_HOSTS.search(self.machine.log("serve")), "it listens")
        lines = _KNOWN_HOSTS.findall(self.machine.log("serve"))
        self._known_hosts.write_text(f"{lines[-1]}\n")
        return DestinationConfig(
            name, f"sftp://aimfuse@127.0.0.1:{self._port}/{name}", known_hosts=self._known_hosts,
            identity_files=(self._identity,), use_agent=False, stall_s_max=3.0,
            retry_s_min=0.1, retry_s_max=0.3,
        )  # fmt: skip
