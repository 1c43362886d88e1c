"""The two hosts of the demo, both on this machine: a source that mounts, a far one that serves."""

import contextlib
import os
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import asyncssh

from aimfuse import config
from aimfuse.manager.files import count_files, lock_holder, read_json, read_slots
from aimfuse.manager.target import mounts
from demo.line import Line
from demo.running import AIMFUSE, Failed, Patience, end

_SECRET_MODE = 0o600
_LISTENING = 30.0


class Far:
    """The far host: `aimfuse serve`, which receives over SFTP and replays."""

    def __init__(self, patience: Patience, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "volume"
        self.port = 0
        self.host_key = ""
        self._patience = patience
        self._log = directory.with_name("serve.log")
        self._server: subprocess.Popen[str] | None = None

    def authorise(self, key: asyncssh.SSHKey) -> None:
        """Let the owner of *key* log in."""
        private = self.directory / ".aimfuse"
        private.mkdir(mode=0o700, parents=True)
        key.write_public_key(private / "authorized_keys")

    def serve(self) -> None:
        """Start the server on a free port of loopback."""
        command = [*AIMFUSE, "serve", str(self.directory), "--listen", "127.0.0.1:0"]
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                text=True, process_group=0,
            )  # fmt: skip
        said: dict[str, str] = {}
        threading.Thread(target=self._listen, args=(self._server, said), daemon=True).start()
        self._patience.until(lambda: "known_hosts" in said, "the far host listened", _LISTENING)
        self.port = int(said["listening"].rpartition(":")[2])
        self.host_key = said["known_hosts"].partition(" ")[2]

    def _listen(self, server: subprocess.Popen[str], said: dict[str, str]) -> None:
        assert server.stdout is not None
        with contextlib.suppress(ValueError):  # Closed at the end.
            for line in server.stdout:
                key, _, value = line.strip().partition(" ")
                said[key] = value

    def replayer_pid(self) -> int | None:
        """Return the process that applies files to the mirror, if it is one of ours."""
        pid = lock_holder(self.store / "lock")
        if pid is None or self._server is None:
            return None
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            if f"\nPPid:\t{self._server.pid}\n" in status:
                return pid
        return None

    def applied(self) -> int:
        """Return the number of the newest file that is in the mirror, as the store knows it."""
        state, _problem = read_slots(self.store / "state")
        head = (state or {}).get("head") or {}
        return int(head.get("number", 0))

    def has_mirror(self) -> bool:
        """Tell whether the first copy is complete: before that, the store shows no mirror."""
        mirror = self.store / "mirror"
        return mirror.is_dir() and any(mirror.iterdir())

    def is_at_rest(self) -> bool:
        """Tell whether everything that arrived is applied."""
        queue = (read_json(self.store / "ack.json") or {}).get("queue") or {}
        return queue.get("files") == 0 and count_files(self.store / "work")[0] == 0

    def is_in_mid_apply(self) -> bool:
        """Tell whether the mirror has newer data than the position beside it says."""
        next_file = f"-{self.applied() + 1:012d}.aim"
        waiting = any(path.name.endswith(next_file) for path in (self.store / "work").iterdir())
        noted_ns = max(path.stat().st_mtime_ns for path in self.store.glob("state.[01]"))
        data_ns = [path.stat().st_mtime_ns for path in (self.store / "volumes").iterdir()]
        return waiting and max(data_ns, default=0) > noted_ns

    def freeze(self, pid: int) -> None:
        """Stop a process, and wait until none of its threads does anything more."""
        os.kill(pid, signal.SIGSTOP)
        threads = Path(f"/proc/{pid}/task")
        self._patience.until(
            lambda: all(
                task.joinpath("stat").read_text().rpartition(")")[2].split()[0] in {"T", "Z"}
                for task in threads.iterdir()
            ),
            "the replayer stood still",
        )

    def stop(self) -> None:
        """End the server, and with it the replayer."""
        if self._server is not None:
            end(self._server)
            assert self._server.stdout is not None
            self._server.stdout.close()


class Source:
    """The source host: an image or a directory of images, its state, and a mount."""

    def __init__(self, patience: Patience, directory: Path, image: str) -> None:
        self.directory = directory
        self.image = directory / image
        self.state = config.state_dir_for(self.image)
        self.mountpoint = directory / "mnt"
        self._patience = patience
        self._known_hosts = directory / "known_hosts"
        self._key = directory / "id_ed25519"

    def make_key(self) -> asyncssh.SSHKey:
        """Make the key pair that the source logs in with."""
        self.mountpoint.mkdir(parents=True)
        key = asyncssh.generate_private_key("ssh-ed25519", comment="aimfuse demo")
        self._key.touch(_SECRET_MODE)
        key.write_private_key(self._key)
        return key

    def init(self, size: str | None) -> None:
        """Make the image, *size* large, or take the directory."""
        if size is None:
            self.image.mkdir()
            self._patience.aimfuse("init", self.image)
        else:
            self._patience.aimfuse("init", self.image, "--size", size)

    def point_at(self, line: Line, host_key: str) -> None:
        """Make the store at the line's far end a destination, its host key pinned."""
        self._known_hosts.write_text(f"[127.0.0.1]:{line.port} {host_key}\n", encoding="ascii")
        nothing = self.directory / "ssh_config"  # Whatever the user's own says.
        nothing.touch()
        settings = config.add_destination(
            config.load(self.state),
            f"sftp://demo@127.0.0.1:{line.port}/volume",
            name="far",
            known_hosts=self._known_hosts,
            identity_files=(self._key,),
            ssh_config=nothing,
            use_agent=False,
        )
        config.save(replace(settings, journal=replace(settings.journal, spool_reserve_bytes=0)))

    def mount(self) -> None:
        """Mount in the background."""
        self._patience.aimfuse("mount", self.image, self.mountpoint, "--background")

    def flush(self) -> str:
        """Wait until the mirror has everything that was written so far."""
        return self._patience.aimfuse(
            "flush", self.image, "--wait", "applied", "--timeout", "90s", interruptible=True
        )

    def unmount(self) -> None:
        """Unmount cleanly, if it is mounted."""
        if self.mountpoint in mounts():
            self._patience.aimfuse("umount", self.image, "--timeout", "20s")

    def force_away(self) -> None:
        """End the mount by whatever means: only for the end of a demo that went wrong."""
        with contextlib.suppress(Failed):
            self.unmount()
        pid = lock_holder(self.state / "lock")
        if pid is not None:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if self.mountpoint in mounts():
            with contextlib.suppress(Failed):
                self._patience.run("fusermount3", "-uz", "--", self.mountpoint)
