"""Connect to SSH servers: pinned host keys, our keys, the operator's ``~/.ssh/config``, jumps.

Every connection of asyncssh is made here, so that one place decides whom we trust. A wrong or
unknown host key is refused before anything of ours is shown.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncssh

from aimfuse.errors import Refused, TransportError, Unavailable, UsageError, explain
from aimfuse.transport.base import TransportSettings

CLOSE_S_MAX = 1.0
"""Longest wait for a peer's good-bye; after it the connection is torn down."""

JUMPS_MAX = 8
_DEFAULT_PORT = 22


def check_files(host: str, settings: TransportSettings) -> None:
    """Read the files that *settings* name for logging in at *host*, as a connection would.

    Raises:
        UsageError: one of them cannot be read or used.
    """
    for path in settings.identity_files:
        hint = "Name a private key without a passphrase; one that has one belongs into the agent."
        with _refused(path, hint):
            asyncssh.load_keypairs(str(path))
    if settings.known_hosts is not None:
        with _refused(settings.known_hosts, "Each line is: host, type of key, key."):
            asyncssh.read_known_hosts(str(settings.known_hosts))
    if settings.ssh_config is not None:
        with _refused(settings.ssh_config, "It is to be what `ssh -F` takes."):
            asyncssh.SSHClientConnectionOptions(host=host, config=[str(settings.ssh_config)])


@contextmanager
def _refused(path: Path, hint: str) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror or exc}", hint=hint) from exc
    except ValueError as exc:
        raise UsageError(f"{path}: {exc}", hint=hint) from exc


class Connector:
    """Connections: the one to the destination, and those to the hosts it jumps over."""

    def __init__(self, settings: TransportSettings) -> None:
        self._settings = settings
        self._connections: list[asyncssh.SSHClientConnection] = []

    async def connect(
        self,
        host: str,
        port: int | None,
        user: str | None,
        via: asyncssh.SSHClientConnection | None = None,
    ) -> asyncssh.SSHClientConnection:
        """Connect to *host*, over the jumps that the SSH configuration names for it.

        The jumps are made here, not by asyncssh: it would look up their host keys as the SSH
        configuration says, and that can say "do not".
        """
        path = (self._settings.known_hosts or Path("~/.ssh/known_hosts")).expanduser()
        try:
            options = self._options(host, port, user)
            given = asyncssh.SSHClientConnectionOptions(**options)
            if given.config.has_match_final():
                given = asyncssh.SSHClientConnectionOptions(**options, final=True)
        except (OSError, ValueError) as exc:
            hint = "Look at the identity files and at ~/.ssh/config."
            raise Refused(f"{host}: {exc}", hint=hint) from exc
        real = f"{given.host_key_alias or given.host}", given.port
        options["known_hosts"] = trusted = _read_known_hosts(path, *real)
        if via is None and isinstance(given.tunnel, str) and given.tunnel != "none":
            for jump in given.tunnel.split(","):
                via = await self._jump(jump, via)
        try:
            # Never (): asyncssh would make jumps that it finds once it knows the host's full name.
            connection = await asyncssh.connect(**options, tunnel=via)
        except asyncssh.Error as exc:
            raise _refusal(exc, real, trusted, path) from exc
        self._connections.append(connection)
        return connection

    async def close(self) -> None:
        """Close all, the outermost last; a peer that is slow to answer is cut off."""
        while self._connections:
            connection = self._connections.pop()
            connection.close()
            try:
                async with asyncio.timeout(CLOSE_S_MAX):
                    await connection.wait_closed()
            except TimeoutError:
                connection.abort()

    def abort(self) -> None:
        """Cut everything off now; every waiting request fails."""
        for connection in reversed(self._connections):
            connection.abort()

    async def _jump(
        self, jump: str, via: asyncssh.SSHClientConnection | None
    ) -> asyncssh.SSHClientConnection:
        if len(self._connections) >= JUMPS_MAX:
            raise Refused("ProxyJump: more jumps than make sense", hint="Look at ~/.ssh/config.")
        place = urlsplit("ssh://" + jump.strip().removeprefix("ssh://"))
        return await self.connect(place.hostname or "", place.port, place.username, via)

    def _options(self, host: str, port: int | None, user: str | None) -> dict[str, Any]:
        """Return all options but whom to trust: so far nobody."""
        settings = self._settings
        options: dict[str, Any] = {
            "host": host,
            "known_hosts": asyncssh.import_known_hosts(""),
            "password_auth": False,
            "kbdint_auth": False,
            "gss_auth": False,
            "gss_kex": False,
            "host_based_auth": False,
            "encryption_algs": "^aes128-gcm@openssh.com",  # Half the work of chacha20.
            "compression_algs": None,  # AIM files are compressed, or it does not pay.
            "connect_timeout": settings.connect_s_max,
            "login_timeout": settings.connect_s_max,
            "keepalive_interval": settings.keepalive_interval_s,
            "keepalive_count_max": settings.keepalive_count_max,
        }
        if port is not None:
            options["port"] = port
        if user is not None:
            options["username"] = user
        # Without saying so asyncssh reads the user's own file when it connects, and only then:
        # its jumps would be made by asyncssh, and its port missing in what we say.
        own = () if settings.ssh_config is None else [str(settings.ssh_config)]
        options["config"] = own
        if settings.identity_files:
            options["client_keys"] = [str(path.expanduser()) for path in settings.identity_files]
        if not settings.use_agent:
            options["agent_path"] = None
        return options


def _read_known_hosts(path: Path, host: str, port: int) -> asyncssh.SSHKnownHosts:
    try:
        return asyncssh.read_known_hosts(str(path))
    except (OSError, ValueError) as exc:
        wanted = f"{path} has to hold the host key of {_shown(host, port)}"
        hint = f"{wanted}: {_how_to_add(host, path, port)}"
        said = explain(exc) if isinstance(exc, OSError) else f"{path}: {exc}"
        raise Refused(said, hint=hint) from exc


def _refusal(
    exc: asyncssh.Error, place: tuple[str, int], trusted: asyncssh.SSHKnownHosts, path: Path
) -> TransportError:
    """Return the error for a connection that was not made: refused, or try again later."""
    host, port = place
    shown = _shown(host, port)
    match exc:
        case asyncssh.KeyExchangeFailed() if "host key" not in exc.reason:
            return Refused(f"{shown}: {exc.reason}", hint="Is that server very old, or very new?")
        case asyncssh.HostKeyNotVerifiable() | asyncssh.KeyExchangeFailed():
            known = trusted.match(host, "", None if port == _DEFAULT_PORT else port)
            if not any(known):
                hint = _how_to_add(host, path, port)
                return Refused(f"the host key of {shown} is not in {path}", hint=hint)
            hint = (
                "Somebody may be in between. If the host was really set up anew, remove the old "
                f"line with `ssh-keygen -R '{shown}' -f {path}`, then "
                + _how_to_add(host, path, port)
            )
            message = f"the host key of {shown} is not the one in {path}: {exc.reason}"
            return Refused(message, hint=hint)
        case asyncssh.PermissionDenied() | asyncssh.IllegalUserName():
            hint = "Is our public key in the account's authorized_keys, and this the right user?"
            return Refused(f"{shown} does not accept our key: {exc.reason}", hint=hint)
        case _ if "authentication failures" in exc.reason:
            hint = "Name one identity file for this destination."
            return Refused(f"{shown} does not accept our keys: {exc.reason}", hint=hint)
        case _:
            return Unavailable(f"{shown}: {exc.reason}")


def _shown(host: str, port: int) -> str:
    """Return the host as known_hosts has it."""
    return host if port == _DEFAULT_PORT else f"[{host}]:{port}"


def _how_to_add(host: str, path: Path, port: int) -> str:
    return (
        f"run `ssh-keyscan -t ed25519 -p {port} {host}`, compare its fingerprint "
        "(`ssh-keygen -lf -`) with the one that the far host's operator reads out, "
        f"and append the line to {path}."
    )
