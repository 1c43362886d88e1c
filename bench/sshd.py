"""A stock OpenSSH server on loopback, with keys of its own, at low priority."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from bench.running import LOW_PRIORITY, Failed, Runner

_START_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Sshd:
    """A running server, and what a client needs to get in."""

    port: int
    user: str
    identity: Path
    known_hosts: Path

    def url(self, path: Path) -> str:
        """Return the URL of *path* on this host."""
        return f"sftp://{self.user}@127.0.0.1:{self.port}{path}"

    def scp_words(self, files: list[Path], directory: Path) -> list[str | Path]:
        """Return the command that copies *files* to *directory* there, with our cipher."""
        return [
            "scp", "-q", "-B", "-F", "none", "-c", "aes128-gcm@openssh.com", "-P", str(self.port),
            "-i", self.identity, "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={self.known_hosts}",
            *files, f"{self.user}@127.0.0.1:{directory}/",
        ]  # fmt: skip


@contextlib.contextmanager
def serving(runner: Runner, directory: Path) -> Generator[Sshd]:
    """Serve the whole file tree to one key while the block runs; everything lies in *directory*."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise Failed("there is no sshd: install openssh-server")
    directory.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host_key", "identity"):
        runner.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    user = pwd.getpwuid(os.geteuid()).pw_name
    known_hosts = directory / "known_hosts"
    algorithm, key = (directory / "host_key.pub").read_text().split()[:2]
    known_hosts.write_text(f"[127.0.0.1]:{port} {algorithm} {key}\n")
    config = directory / "sshd_config"
    config.write_text(_config(directory, port))
    log = directory / "sshd.log"
    with runner.running((*LOW_PRIORITY, program, "-D", "-e", "-f", config), log) as child:

        def is_listening() -> bool:
            runner.check_alive(child, log)
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return True
            return False

        runner.until(is_listening, "sshd listens", _START_S_MAX)
        try:
            yield Sshd(port, user, directory / "identity", known_hosts)
        finally:
            _end_connections(child.pid)


def _end_connections(pid: int) -> None:
    """End the processes that serve connections: they outlive the server."""
    for child in children(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)


def children(pid: int) -> list[int]:
    """Return the process ids of the children of *pid*."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, listing.read_text().split())
    return found


def _config(directory: Path, port: int) -> str:
    return f"""
Port {port}
ListenAddress 127.0.0.1
HostKey {directory / "host_key"}
AuthorizedKeysFile {directory / "identity.pub"}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
LogLevel ERROR
"""
