"""A source host and a far host as real processes on one machine, for end-to-end tests.

    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near") as source:
        far.start()
        source.init(to=[far.url()])
        source.mount()
        source.volume.write_bytes(b"...")
        source.wait_mirrored(far)
        assert far.mirror().read_bytes() == ...
        source.umount()

Leaving the block undoes only what these objects made: their processes, mounts and loop devices.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import psutil

from aimfuse import config as configuration
from aimfuse.config import DestinationConfig, GroupConfig, JournalConfig, add_destination
from aimfuse.disk import Disk
from aimfuse.driver.group import GroupPaths, init_group
from aimfuse.errors import JournalError
from aimfuse.journal.reader import AimFile, read_sealed
from aimfuse.journal.records import Iocb
from aimfuse.journal.spool import sealed_names
from aimfuse.manager import control_client
from aimfuse.units import MIB

AIMFUSE = (sys.executable, "-m", "aimfuse")
WAIT_S_MAX = 60.0
POLL_S = 0.02

QUICK = JournalConfig(
    file_bytes=4 * MIB,
    file_age_s=0.1,
    commit_interval_s=0.02,
    checkpoint_interval_s=0.3,
    memory_bytes_max=32 * MIB,
    spool_reserve_bytes=16 * MIB,
)
"""Settings under which everything happens soon."""

Answer = dict[str, Any]


class MountFailed(Exception):
    """The driver ended before it was ready: with which exit code, and what it said."""

    def __init__(self, exit_code: int, said: str) -> None:
        super().__init__(f"exit code {exit_code}: {said}")
        self.exit_code = exit_code
        self.said = said


class Source:
    """A group below the directory *root*, and the driver that serves it at `mountpoint`.

    With *size* the group is one image of so many bytes; without, a directory of images.
    """

    def __init__(self, root: Path, size: int | None = 16 * MIB, name: str = "v.img") -> None:
        self.root = root
        self.size = size
        self.image = root / name
        self.state_dir = root / f"{name}.aim"
        self.spool = self.state_dir / "spool"
        self.mountpoint = root / "mnt"
        self.log = root / "driver.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._loops: dict[str, str] = {}
        self._file_systems: list[Path] = []
        self.mountpoint.mkdir(parents=True)
        if size is None:
            self.image.mkdir()
        else:
            with self.image.open("wb") as file:
                file.truncate(size)

    @classmethod
    def at(cls, root: Path, image: Path, state_dir: Path) -> "Source":
        """Return the source that is in *state_dir* already, to be mounted below *root*."""
        found = cls(root)
        found.image.unlink()
        found.size, found.image, found.state_dir = image.stat().st_size, image, state_dir
        found.spool = state_dir / "spool"
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def volume(self) -> Path:
        """The volume of an image group in the mount."""
        return self.mountpoint / self.image.name

    # Its life.

    def init(
        self, to: Iterable[str | DestinationConfig] = (), journal: JournalConfig = QUICK
    ) -> GroupConfig:
        """Initialise the group. A volume keeps its size unless *journal* allows more."""
        if self.size is not None and journal.size_bytes_max is None:
            journal = replace(journal, size_bytes_max=self.size)
        config = GroupConfig(self.state_dir, self.image, journal=journal)
        for one in to:
            if isinstance(one, str):
                config = add_destination(config, one)
            else:
                config = replace(config, destinations=(*config.destinations, one))
        init_group(Disk(), GroupPaths(config.image, config.state_dir, config.spool))
        configuration.save(config)
        return config

    def mount(
        self,
        *options: str,
        mountpoint: Path | None = None,
        command: Sequence[str] = AIMFUSE,
    ) -> None:
        """Start the driver and wait until the volume can be used.

        *command* is a launcher that ends up in aimfuse's own main().

        Raises:
            MountFailed: it ended instead; nothing is left running.
        """
        assert self.process is None, "mounted already"
        ready, told = os.pipe()
        said_at = self.log.stat().st_size if self.log.exists() else 0
        arguments = (str(self.image), str(mountpoint or self.mountpoint), *options)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                (*command, "mount", *arguments, "--ready-fd", str(told)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[told],
            )  # fmt: skip
        os.close(told)
        with os.fdopen(ready) as pipe:
            is_mounted = bool(pipe.readline())
        if not is_mounted:
            code = self.process.wait(WAIT_S_MAX)
            self.process = None
            raise MountFailed(code, self.log.read_text(errors="replace")[said_at:])

    def umount(self) -> int:
        """End the driver cleanly and return its exit code."""
        assert self.process is not None
        with contextlib.suppress(control_client.DriverGone):  # It went before it could answer.
            self.call("stop")
        return self.wait_ended()

    def wait_ended(self) -> int:
        """Wait until the driver has ended by itself and return its exit code."""
        assert self.process is not None
        code = self.process.wait(WAIT_S_MAX)
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL the driver; its dead mount stays until the next `mount` cleans it up.

        When this returns its coordinator is gone as well.
        """
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT_S_MAX)
        self.process = None
        until(lambda: not _is_locked(self.state_dir / "ship.lock"))

    def remount(self, *options: str) -> None:
        """Unmount cleanly and mount again."""
        assert self.umount() == 0
        self.mount(*options)

    def close(self) -> None:
        """Take everything down, in whatever state it is."""
        for place in reversed(self._file_systems):
            _run("umount", str(place), check=False)
        for device in self._loops:
            if self._is_attached(device):
                _run("losetup", "--detach", device, check=False)
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                until_quietly(lambda: not self._is_used())
                _run("fusermount3", "-u", str(self.mountpoint), check=False)
                self.process.wait(WAIT_S_MAX / 2)
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.process = None
        if is_mountpoint(self.mountpoint):
            _run("fusermount3", "-uz", str(self.mountpoint), check=False)

    # Its control socket.

    def call(self, cmd: str, timeout_s: float = WAIT_S_MAX, **request: object) -> Answer:
        """Ask the driver.

        Raises:
            BusyError, DriverError: not mounted; the driver said no.
        """
        return control_client.call(self.state_dir, {"cmd": cmd, **request}, timeout_s)

    def status(self) -> Answer:
        """Return the driver's status."""
        return self.call("status")

    def told(self, name: str) -> Answer:
        """Return what the coordinator says of a destination."""
        path = self.state_dir / "destinations" / name / "status.json"
        until(path.exists)
        found: Answer = json.loads(path.read_text())
        return found

    def wait_applied(self) -> None:
        """Wait until the image itself holds everything that was written so far."""
        self.call("applied")

    def wait_mirrored(self, far: "FarHost", store: str = "v") -> None:
        """Wait until the mirror holds everything that was written so far."""
        far.wait_applied(self.call("roll")["number"], store)

    # What it wrote down.

    def files(self) -> list[AimFile]:
        """Return the sealed AIM files that are still in the spool, oldest first."""
        disk = Disk()
        found = []
        for name in sealed_names(disk, self.spool):
            path = self.spool / name.sealed
            try:
                found.append(read_sealed(disk, path))
            except (FileNotFoundError, JournalError):
                if path.exists():  # Else it was released meanwhile, and may be written anew.
                    raise
        return found

    def records(self) -> list[Iocb]:
        """Return the records in them; a group without destinations keeps only the newest."""
        return [record for file in self.files() for record in file.records()]

    # Loop devices and file systems on it.

    def attach(self, *options: str, volume: str | None = None) -> str:
        """Put a loop device with direct I/O on a volume and return its path."""
        file = self.mountpoint / (volume or self.image.name)
        found = _run("losetup", "--find", "--show", "--direct-io=on", *options, str(file))
        device = found.strip()
        self._loops[device] = _backing_file(device)
        return device

    def detach(self, device: str) -> None:
        """Detach a loop device and wait until it has let go."""
        _run("losetup", "--detach", device)
        until(lambda: not self._is_attached(device))
        del self._loops[device]

    @contextlib.contextmanager
    def file_system(self, device: str, *options: str) -> Iterator[Path]:
        """Mount the file system on *device* for the block, and give the directory."""
        place = self.root / f"fs-{Path(device).name}"
        place.mkdir(exist_ok=True)
        _run("mount", *options, device, str(place))
        self._file_systems.append(place)
        yield place
        _run("umount", str(place))
        self._file_systems.remove(place)

    def _is_attached(self, device: str) -> bool:
        """Tell whether it is still ours: its number is anybody's as soon as it is free."""
        return _backing_file(device) == self._loops[device]

    def _is_used(self) -> bool:
        return any(map(self._is_attached, self._loops))


class FarHost:
    """A directory of stores below *root* and the process that replays what arrives in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stores = root / "stores"
        self.log = root / "far.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.stores.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def url(self, store: str = "v") -> str:
        """Return the destination URL that leads to the store *store* by plain copying."""
        return f"dir://{self.stores / store}"

    def start(self) -> None:
        """Start `aimfuse replay`."""
        self._start("replay", str(self.stores), stdout=subprocess.DEVNULL)

    def serve(self, store: str = "v", address: str = "127.0.0.1:0") -> DestinationConfig:
        """Start `aimfuse serve` and return the destination that leads to *store* by SFTP.

        After `stop` or `kill` it can be served again at the address in the destination's URL.
        """
        identity = self.root / "identity"
        if not identity.exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(identity))
        keys = identity.with_suffix(".pub")
        process = self._start(
            "serve", str(self.stores), "--listen", address, "--authorized-keys", str(keys),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline().decode().rstrip("\n") for _line in range(3)]
        said = dict(line.split(" ", 1) for line in lines)
        known_hosts = self.root / "known_hosts"
        known_hosts.write_text(f"{said['known_hosts']}\n")
        url = f"sftp://aimfuse@{said['listening']}/{store}"
        return DestinationConfig(
            store, url, known_hosts=known_hosts, identity_files=(identity,), use_agent=False
        )

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self._wait_ended()

    def kill(self) -> None:
        """SIGKILL it; a server's replayer dies with it."""
        assert self.process is not None
        self.process.kill()
        self._wait_ended()

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process is not None:
            self.kill()

    def store(self, store: str = "v") -> Path:
        """Return the path of a store."""
        return self.stores / store

    def mirror(self, volume: str = "v.img", store: str = "v") -> Path:
        """Return the path of a mirrored volume."""
        return self.stores / store / "mirror" / volume

    def ack(self, store: str = "v") -> Answer:
        """Return the store's last acknowledgement, or nothing before the first."""
        try:
            ack: Answer = json.loads((self.stores / store / "ack.json").read_bytes())
        except FileNotFoundError:
            return {}
        return ack

    def wait_applied(self, number: int, store: str = "v") -> None:
        """Wait until the mirror is consistent and holds the journal file *number*."""

        def there() -> bool:
            ack = self.ack(store)
            applied = ack.get("applied") or {}
            return ack.get("phase") == "consistent" and applied.get("number", 0) >= number

        until(there, lambda: f"file {number}; ack: {self.ack(store)}")

    def _start(self, *arguments: str, stdout: int) -> subprocess.Popen[bytes]:
        assert self.process is None, "running already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                (*AIMFUSE, *arguments), stdin=subprocess.DEVNULL, stdout=stdout, stderr=log
            )
        return self.process

    def _wait_ended(self) -> int:
        assert self.process is not None
        with self.process:
            code = self.process.wait(WAIT_S_MAX)
        self.process = None
        for lock in self.stores.glob("*/lock"):
            until(lambda lock=lock: not _is_locked(lock))  # type: ignore[misc]
        return code


def aimfuse(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one command of the command line to its end."""
    command = (*AIMFUSE, *map(str, arguments))
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=2 * WAIT_S_MAX
    )


def until(
    condition: Callable[[], bool], told: Callable[[], object] = lambda: "", s_max: float = 60.0
) -> None:
    """Wait until *condition* holds; *told* describes the state when it never does."""
    assert until_quietly(condition, s_max), f"still not after {s_max} s: {told()}"


def until_quietly(condition: Callable[[], bool], s_max: float = 10.0) -> bool:
    """Wait until *condition* holds and return whether it does."""
    end_s = time.monotonic() + s_max
    while not (holds := condition()) and time.monotonic() < end_s:
        time.sleep(POLL_S)
    return holds


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and not only its exit code."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_mountpoint(path: Path) -> bool:
    """Tell whether something is mounted at *path*, dead or alive, without touching it."""
    escaped = str(path).replace("\\", "\\134").replace(" ", "\\040")
    with Path("/proc/self/mounts").open() as mounts:
        return any(line.split(" ")[1] == escaped for line in mounts)


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _backing_file(device: str) -> str:
    path = Path("/sys/block", Path(device).name, "loop", "backing_file")
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=2 * WAIT_S_MAX
    )
    if check:
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout
