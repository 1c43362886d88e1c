"""A whole far side in one command: the embedded SFTP server, and a replayer beside it.

The replayer is a process of its own, so that neither can take the other down; it is restarted
when it dies, and ends with the server.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from aimfuse.errors import UsageError
from aimfuse.replay.sshd import Server, open_server
from aimfuse.supervisor import Supervisor


async def serve(
    directory: Path,
    host: str,
    port: int,
    authorised_keys: Path | None,
    say: Callable[[str], None],
) -> None:
    """Serve *directory* over SFTP and replay what arrives, until cancelled.

    *say* gets the lines of `announce`, once the server listens.

    Raises:
        UsageError, BusyError: as from `open_server`; nothing was started.
    """
    async with open_server(directory, host, port, authorised_keys) as server:
        for line in announce(server):
            say(line)
        command = (sys.executable, "-m", "aimfuse", "replay", str(directory))
        await Supervisor("replayer", command).run()


def announce(server: Server) -> tuple[str, ...]:
    """Return what a source's operator needs, one ``KEY VALUE`` line each, in this order."""
    return (
        f"listening {join_address(server.host, server.port)}",
        f"fingerprint {server.fingerprint}",
        f"known_hosts {server.host_key_line}",
    )


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``[V6]:PORT`` or ``:PORT``.

    Raises:
        UsageError: it is none of these.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004
        raise UsageError(f"{text!r} is not HOST:PORT", hint="For example --listen 127.0.0.1:2222")
    if ":" in host and bare == host:
        raise UsageError(f"{text!r}: an IPv6 address goes in brackets, as in [::1]:2222")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """Return what `split_address` takes."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
