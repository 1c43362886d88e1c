"""A stock OpenSSH server: own configuration, own host key, one authorised key.

It listens on loopback, or at the addresses of another network namespace that a launcher enters.

It runs as the current user (root also needs /run/sshd) and serves the whole file tree over
internal-sftp, so a test gives it absolute paths beneath its own directory.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

START_S_MAX = 120.0


def find_sshd() -> str:
    """Return sshd's path; without one skip, or fail where CI promises to have it."""
    path = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no sshd: install openssh-server")
        pytest.skip("no sshd: install openssh-server")
    return path


def make_key(path: Path) -> Path:
    """Make an ed25519 key pair, replacing what is there; return the private half's path."""
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


class Port:
    """A loopback port that is nobody else's until it is released, also between two servers of it.

    A socket stays bound to it and never listens: the kernel gives the number to no one, while a
    server that reuses addresses can listen there.
    """

    def __init__(self) -> None:
        """Take one that is free."""
        with socket.socket() as holder:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
            self.number: int = holder.getsockname()[1]
            self._holder = holder.detach()

    def release(self) -> None:
        """Give it back; may be called twice."""
        if self._holder >= 0:
            os.close(self._holder)
            self._holder = -1


def free_port() -> int:
    """Return a loopback port that nobody else is given before this process ends."""
    return Port().number


@dataclass
class Sshd:
    """A running server; `known_hosts` names it as ``[address]:port``."""

    directory: Path
    held: Port
    known_hosts: Path
    identity: Path
    user: str
    addresses: tuple[str, ...] = ("127.0.0.1",)
    launcher: tuple[str, ...] = ()
    """Words before the command; what they run has to become sshd, under the same id."""
    extra_config: str = ""
    """Lines for sshd_config; they count from the next start on."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.held.number

    def url(self, store: Path, address: str = "127.0.0.1") -> str:
        """Return the URL of a store directory on this host."""
        return f"sftp://{self.user}@{address}:{self.port}{store}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        config = self.directory / "sshd_config"
        config.write_text(self._config())
        command = [*self.launcher, find_sshd(), "-D", "-e", "-f", str(config)]
        with (self.directory / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._wait_until_listening()

    def stop(self) -> None:
        """End it and every connection it serves, at once."""
        process, self._process = self._process, None
        if process is None:
            return
        for each in _halted_tree(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()

    def close(self) -> None:
        """Stop it for good."""
        self.stop()
        self.held.release()

    def restart(self) -> None:
        """Stop and start it again on the same port, with the same keys."""
        self.stop()
        self.start()

    def change_host_key(self) -> None:
        """Give the server another identity; `known_hosts` still holds the old one."""
        self.stop()
        make_key(self.directory / "host_key")
        self.start()

    def write_known_hosts(self, port: int | None = None) -> None:
        """Trust the present host key, under this or another port (that of a proxy)."""
        key = (self.directory / "host_key.pub").read_text().split()
        ports = {self.port, port or self.port}
        lines = [
            f"[{address}]:{number} {key[0]} {key[1]}\n"
            for address in self.addresses
            for number in sorted(ports)
        ]
        self.known_hosts.write_text("".join(lines))

    def _config(self) -> str:
        listen = "\n".join(f"ListenAddress {address}" for address in self.addresses)
        return f"""
Port {self.port}
{listen}
HostKey {self.directory / "host_key"}
AuthorizedKeysFile {self.directory / "authorized_keys"}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
Subsystem sftp internal-sftp
LogLevel ERROR
{self.extra_config}
"""

    def _wait_until_listening(self) -> None:
        process = self._process
        assert process is not None
        deadline_s = time.monotonic() + START_S_MAX
        while _count_listeners(process.pid, self.port) < len(self.addresses):
            if process.poll() is not None or time.monotonic() > deadline_s:
                pytest.fail("sshd did not start: " + (self.directory / "sshd.log").read_text())
            time.sleep(0.02)


def _halted_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all below it, stopped: none of them can become more meanwhile.

    Connections are served by children in sessions of their own, which outlive sshd.
    """
    tree = [psutil.Process(pid)]
    tree[0].suspend()
    while found := [one for one in tree[0].children(recursive=True) if one not in tree]:
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()
        tree += found
    return tree


def _count_listeners(pid: int, port: int) -> int:
    """Return how many sockets listen on *port* in the network of a process."""
    with contextlib.suppress(OSError):  # It has gone.
        table = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()]
        return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in table[1:])
    return 0


def start_sshd(
    directory: Path,
    addresses: tuple[str, ...] = ("127.0.0.1",),
    launcher: tuple[str, ...] = (),
) -> Sshd:
    """Start a server whose keys, log and configuration live in *directory*."""
    find_sshd()
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    make_key(directory / "host_key")
    identity = make_key(directory / "identity")
    shutil.copy(identity.with_suffix(".pub"), directory / "authorized_keys")
    user = pwd.getpwuid(os.geteuid()).pw_name
    sshd = Sshd(directory, Port(), directory / "known_hosts", identity, user, addresses, launcher)
    sshd.write_known_hosts()
    sshd.start()
    return sshd
