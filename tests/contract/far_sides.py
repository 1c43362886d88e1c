"""The far sides that the contract is held against: a directory, OpenSSH, our own server."""

import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.errors import Unavailable
from aimfuse.replay.sshd import Server, open_server
from aimfuse.transport import Transport, TransportSettings, open_transport
from tests.contract.openssh import Port, Sshd, make_key, start_sshd


class DirectorySide:
    """A store that is simply there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = TransportSettings()

    def transport(self, store: Path, *, settings: TransportSettings | None = None) -> Transport:
        """Return a transport to *store*, a path on this machine beneath `root`."""
        return open_transport(f"dir://{store}", settings or self.settings)

    async def start(self) -> None:
        """Be there."""
        self.root.mkdir()

    async def stop(self) -> None:
        """Stay there."""

    async def close(self) -> None:
        """Stay there, too."""


class OpensshSide:
    """A stock OpenSSH server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = TransportSettings()
        self.sshd: Sshd

    @property
    def port(self) -> int:
        """The port of the server itself."""
        return self.sshd.port

    def transport(
        self, store: Path, port: int | None = None, settings: TransportSettings | None = None
    ) -> Transport:
        """Return a transport to *store*, through *port* if that of a proxy is given."""
        url = f"sftp://{self.sshd.user}@127.0.0.1:{port or self.port}{store}"
        return open_transport(url, settings or self.settings)

    def trust(self, port: int) -> None:
        """Have the server's key known also under a proxy's port."""
        self.sshd.write_known_hosts(port)

    async def start(self) -> None:
        """Start sshd."""
        self.root.mkdir()
        self.sshd = start_sshd(self.root.with_name("sshd"))
        self.settings = _settings(self.sshd.known_hosts, self.sshd.identity)

    async def stop(self) -> None:
        """Stop sshd."""
        self.sshd.stop()

    async def close(self) -> None:
        """Stop it for good."""
        self.sshd.close()

    async def restart(self, *, new_host_key: bool = False) -> None:
        """Start sshd again on the same port."""
        if new_host_key:
            self.sshd.change_host_key()
        else:
            self.sshd.restart()


class EmbeddedSide:
    """The server inside aimfuse, confined to `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = TransportSettings()
        self._held = Port()
        self.port = self._held.number
        self.server: Server
        self.disk = Disk()
        self._running = AsyncExitStack()

    def transport(
        self, store: Path, port: int | None = None, settings: TransportSettings | None = None
    ) -> Transport:
        """Return a transport to *store*, through *port* if that of a proxy is given."""
        inside = store.relative_to(self.root)
        url = f"sftp://anybody@127.0.0.1:{port or self.port}/{inside}"
        return open_transport(url, settings or self.settings)

    def trust(self, port: int) -> None:
        """Have the server's key known also under a proxy's port."""
        path = self.root.with_name("known_hosts")
        line = self.server.host_key_line
        path.write_text(f"{line}\n{line.replace(f':{self.port} ', f':{port} ')}\n")

    async def start(self) -> None:
        """Make keys and start the server."""
        private = self.root / ".aimfuse"
        private.mkdir(parents=True, mode=0o700)
        identity = make_key(self.root.with_name("identity"))
        shutil.copy(identity.with_suffix(".pub"), private / "authorized_keys")
        await self._listen()
        self.settings = _settings(self.root.with_name("known_hosts"), identity)
        self.trust(self.port)

    async def stop(self) -> None:
        """Stop the server."""
        await self._running.aclose()

    async def close(self) -> None:
        """Stop it for good."""
        await self.stop()
        self._held.release()

    async def restart(self, *, new_host_key: bool = False) -> None:
        """Start the server again on the same port."""
        await self.stop()
        if new_host_key:
            (self.root / ".aimfuse" / "host_key").unlink()
        await self._listen()

    async def _listen(self) -> None:
        running = open_server(self.root, "127.0.0.1", self.port, disk=self.disk)
        self.server = await self._running.enter_async_context(running)


@asynccontextmanager
async def opened_at_last(
    make: Callable[[float], Transport], patience_s: float
) -> AsyncGenerator[Transport]:
    """Open what *make* gives for a patience, ever more of it until a slow machine manages."""
    async with AsyncExitStack() as stack:
        for factor in (1, 4, 16):
            transport = make(factor * patience_s)
            stack.push_async_callback(transport.aclose)
            try:
                await transport.open()
            except Unavailable:
                continue
            yield transport
            return
        pytest.fail(f"not open within {16 * patience_s} s")


def _settings(known_hosts: Path, identity: Path) -> TransportSettings:
    # The operator's own configuration and agent are none of the tests' business.
    config = known_hosts.with_name("ssh_config")
    config.touch()
    return TransportSettings(
        known_hosts=known_hosts, identity_files=(identity,), ssh_config=config, use_agent=False
    )


@asynccontextmanager
async def opened(transport: Transport) -> AsyncGenerator[Transport]:
    try:
        await transport.open()
        yield transport
    finally:
        await transport.aclose()


def names(store: Path) -> list[str]:
    """Return what lies in the inbox of *store*."""
    return sorted(path.name for path in (store / "inbox").iterdir())
