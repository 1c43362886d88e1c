"""Reach SSH servers by the system's own ``ssh`` program: it encrypts in C, we write to a pipe.

Its errors are given asyncssh's types, so that whoever delivers need not know who speaks SSH. The
program is told whom to trust by a configuration file of its own, made here, since it hands that
to the programs of jump hosts and nothing else. What it says on its way out is mapped here.
"""

import asyncio
import contextlib
import math
import os
import re
import shutil
import signal
import socket
import tempfile
from collections import deque
from pathlib import Path
from typing import Never

import asyncssh

from aimfuse.errors import Refused, TransportError, Unavailable
from aimfuse.transport.base import TransportSettings
from aimfuse.transport.requests import Requests
from aimfuse.transport.ssh import CLOSE_S_MAX, Target, find_target, host_key_refused, key_refused

_SAID_BYTES_MAX = 16 * 1024
_PARTS_MAX = 64
"""Pieces handed to the kernel at once."""

_BUFFER_BYTES = 1 << 20
"""Room between us and the program: it takes a block while we prepare the next."""

_HOST_KEY = re.compile(r"(?:host key is known for|Host key for) (\S+)(?: has (changed))?")
_CONFIGURATION = ("onfiguration option", "owner or permissions on", " line ")


class ProgramConnector:
    """One ``ssh`` and its SFTP session; everything here runs on the asyncio thread."""

    def __init__(self, settings: TransportSettings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._writer: _Writer | None = None
        self._said: asyncio.Task[str] | None = None
        self._answers: asyncio.Task[None] | None = None

    async def start_sftp(self, host: str, port: int | None, user: str | None) -> Requests:
        """Return an SFTP client for *host*, reached as the SSH configuration says.

        Raises:
            Refused: the configuration, a host key or our key; with what to do.
            Unavailable: anything else that the program gave up for.
        """
        target = find_target(self._settings, host, port, user)
        words = ["-s", "-p", str(port)] if port is not None else ["-s"]
        words += ["-l", user] if user is not None else []
        with tempfile.NamedTemporaryFile("w", prefix="aimfuse-ssh-") as config:
            # It has been read, by the programs of jumps too, once the server answers.
            config.write(_configuration(self._settings, target.known_hosts))
            config.flush()
            reader = await self._spawn("-F", config.name, *words, "--", host, "sftp")
            assert self._writer is not None
            client = Requests(self._writer, reader)
            try:
                await client.start()
                self._answers = asyncio.get_running_loop().create_task(client.run())
                await client.learn_limits()
            except asyncssh.Error as exc:
                raise await self._explain(exc, target) from exc
        return client

    async def close(self) -> None:
        """End the program; one that is slow to go is killed."""
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S_MAX):
                    await self._process.wait()
            self.abort()  # Its children too.
            await self._process.wait()
        for task in (self._answers, self._said):
            if task is not None:
                await asyncio.wait([task], timeout=CLOSE_S_MAX)
                task.cancel()

    def abort(self) -> None:
        """Cut everything off now; every waiting request fails."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _spawn(self, *words: str) -> "_Reader":
        program = shutil.which("ssh")
        if program is None:
            raise Refused(
                "there is no program ssh here",
                hint='Install OpenSSH\'s client, or set ssh_client = "built-in".',
            )
        ours, its = socket.socketpair()
        with its:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            self._writer = _Writer(ours)
            self._process = await asyncio.create_subprocess_exec(
                program, *words, stdin=its.fileno(), stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None
        assert stderr is not None
        self._said = asyncio.get_running_loop().create_task(_listen(stderr))
        return _Reader(stdout, self)

    async def last_words(self) -> str:
        """Return what the program said, once it has ended."""
        if self._said is None:
            return ""
        await asyncio.wait([self._said], timeout=CLOSE_S_MAX)
        return self._said.result() if self._said.done() else ""

    async def _explain(self, exc: asyncssh.Error, target: Target) -> TransportError:
        said = await self.last_words()
        found = _HOST_KEY.search(said)
        if found is not None:
            return host_key_refused(found[1], target, changed=found[2] is not None)
        if "Host key verification failed" in said:
            return host_key_refused(target.shown, target, changed=True, reason=_reason(said))
        if "Permission denied" in said or "Too many authentication failures" in said:
            return key_refused(target, _reason(said))
        if "Unable to negotiate" in said:
            return Refused(_reason(said), hint="Is that server very old, or very new?")
        if any(word in said for word in _CONFIGURATION):
            return Refused(f"{target.shown}: {_reason(said)}", hint="Look at ~/.ssh/config.")
        return Unavailable(f"{target.shown}: {_reason(said) or exc.reason}")


class _Writer:
    """The way to the program's input: what does not go at once waits here, uncopied."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.settimeout(0.0)
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[memoryview] = deque()
        self._is_watching = False
        self._is_closed = False

    def write(self, *parts: bytes) -> None:
        """Send *parts* after everything that waits; once it is closed they go nowhere."""
        if self._is_closed:
            return
        self._waiting.extend(memoryview(part) for part in parts)
        if not self._is_watching:
            self._send()

    def close(self) -> None:
        """End the program's input; what still waits is dropped."""
        if not self._is_closed:
            self._is_closed = True
            self._watch(wanted=False)
            self._waiting.clear()
            self._socket.close()

    def _send(self) -> None:
        try:
            while self._waiting:
                parts = [self._waiting[at] for at in range(min(_PARTS_MAX, len(self._waiting)))]
                self._forget(self._socket.sendmsg(parts))
        except BlockingIOError:
            self._watch(wanted=True)
        except OSError:  # It has gone; whoever waits hears of that from its output.
            self.close()
        else:
            self._watch(wanted=False)

    def _forget(self, count_bytes: int) -> None:
        while self._waiting and count_bytes >= len(self._waiting[0]):
            count_bytes -= len(self._waiting.popleft())
        if count_bytes:
            self._waiting[0] = self._waiting[0][count_bytes:]

    def _watch(self, *, wanted: bool) -> None:
        if wanted and not self._is_watching:
            self._loop.add_writer(self._socket, self._send)
        elif self._is_watching and not wanted:
            self._loop.remove_writer(self._socket)
        self._is_watching = wanted


class _Reader:
    """The program's output; at its end stands what the program said."""

    def __init__(self, stream: asyncio.StreamReader, connector: ProgramConnector) -> None:
        self._stream = stream
        self._connector = connector

    async def readexactly(self, count_bytes: int) -> bytes:
        """Return so many bytes.

        Raises:
            asyncssh.ConnectionLost: the program has ended.
        """
        try:
            return await self._stream.readexactly(count_bytes)
        except asyncio.IncompleteReadError:
            await self._lost()

    async def _lost(self) -> Never:
        reason = _reason(await self._connector.last_words())
        raise asyncssh.ConnectionLost(reason or "the connection was lost") from None


async def _listen(stream: asyncio.StreamReader) -> str:
    said = bytearray()
    while line := await stream.read(_SAID_BYTES_MAX):
        said += line
        del said[:-_SAID_BYTES_MAX]
    return said.decode(errors="replace")


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1] if lines else ""
    return f"keepalive: {reason}" if "not responding" in reason else reason


def _configuration(settings: TransportSettings, known_hosts: Path) -> str:
    """Return what the program has to obey, before what the operator wrote."""
    connect_s = max(1, math.ceil(settings.connect_s_max))
    lines = [
        f"UserKnownHostsFile {_quoted(known_hosts)}",
        "GlobalKnownHostsFile /dev/null",
        "KnownHostsCommand none",
        "StrictHostKeyChecking yes",
        "UpdateHostKeys no",
        "VerifyHostKeyDNS no",
        "CheckHostIP no",
        "BatchMode yes",
        "PreferredAuthentications publickey",
        "ControlMaster no",
        "ControlPath none",
        "ClearAllForwardings yes",
        "ForwardAgent no",
        "ForwardX11 no",
        "PermitLocalCommand no",
        "RequestTTY no",
        "Compression no",
        "Ciphers ^aes128-gcm@openssh.com",
        "LogLevel INFO",
        f"ConnectTimeout {connect_s}",
        f"ServerAliveInterval {max(1, math.ceil(settings.keepalive_interval_s))}",
        f"ServerAliveCountMax {settings.keepalive_count_max}",
    ]
    lines += [f"IdentityFile {_quoted(path.expanduser())}" for path in settings.identity_files]
    if settings.identity_files:
        lines.append("IdentitiesOnly yes")
    if not settings.use_agent:
        lines.append("IdentityAgent none")
    own = (settings.ssh_config or Path("~/.ssh/config")).expanduser().absolute()
    return "\n".join([*lines, f'Include "{own}"', ""])


def _quoted(path: Path) -> str:
    return '"' + str(path.absolute()).replace("%", "%%") + '"'
