"""The contestant that mirrors in the background: QEMU's storage daemon, mounted with nbdfuse.

One daemon exports a raw file by NBD and mirrors it with a background job to a second daemon
over a unix socket. The job keeps a map of dirty blocks: its mirror is not in write order.
"""

import contextlib
import json
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any, Self

from bench.load import fill
from bench.rig import MOUNTPOINT, VOLUME, Places, Rig
from bench.running import LOW_PRIORITY, Child, Failed, Runner, unmounting

_DAEMON = "qemu-storage-daemon"
_ANSWER_S_MAX = 30.0
_START_S_MAX = 10.0


@contextlib.contextmanager
def qemu(runner: Runner, places: Places) -> Generator[Rig]:
    """Mount it; everything is copied and the job keeps up when the block begins."""
    places.make()
    fill(places.near / VOLUME, places.size)
    with (places.far / "copy.img").open("ab") as file:
        file.truncate(places.size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_far_daemon(runner, places))
        stack.enter_context(_near_daemon(runner, places))
        job = stack.enter_context(Job(runner, places.far / "monitor"))
        job.start()
        mountpoint, log = places.near / MOUNTPOINT, places.far / "nbdfuse.log"
        words = ("nbdfuse", mountpoint / VOLUME, f"nbd+unix:///disk?socket={places.far / 'near'}")
        child = stack.enter_context(runner.running(words, log))
        stack.enter_context(unmounting(mountpoint))
        runner.until_mounted(child, mountpoint / VOLUME, log)
        yield Rig(mountpoint / VOLUME, job.drain)


@contextlib.contextmanager
def _far_daemon(runner: Runner, places: Places) -> Generator[None]:
    address, log = places.far / "far", places.far / "far.log"
    address.unlink(missing_ok=True)
    words = (*LOW_PRIORITY, _DAEMON, *_export(places.far / "copy.img", address))
    with runner.running(words, log) as child:
        _until_listening(runner, child, log, address)
        yield


@contextlib.contextmanager
def _near_daemon(runner: Runner, places: Places) -> Generator[None]:
    address, monitor, log = (places.far / name for name in ("near", "monitor", "near.log"))
    for path in (address, monitor):
        path.unlink(missing_ok=True)
    server = f"server.type=unix,server.path={places.far / 'far'}"
    words = (
        _DAEMON, *_export(places.near / VOLUME, address),
        "--blockdev", f"driver=nbd,node-name=mirror,{server},export=disk",
        "--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off",
        "--monitor", "chardev=monitor",
    )  # fmt: skip
    with runner.running(words, log) as child:
        _until_listening(runner, child, log, address)
        _until_listening(runner, child, log, monitor)
        yield


def _export(image: Path, address: Path) -> tuple[str, ...]:
    return (
        "--blockdev", f"driver=file,node-name=file,filename={image}",
        "--blockdev", "driver=raw,node-name=disk,file=file",
        "--nbd-server", f"addr.type=unix,addr.path={address}",
        "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
    )  # fmt: skip


def _until_listening(runner: Runner, child: Child, log: Path, address: Path) -> None:
    def is_there() -> bool:
        runner.check_alive(child, log)
        return address.is_socket()

    runner.until(is_there, f"{_DAEMON} listens", _START_S_MAX)


class Job:
    """The mirror job, over the daemon's QMP socket."""

    def __init__(self, runner: Runner, monitor: Path) -> None:
        """Talk to the daemon at *monitor*."""
        self._runner = runner
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._link.settimeout(_ANSWER_S_MAX)
        self._link.connect(str(monitor))
        self._lines = self._link.makefile("rb")
        self._lines.readline()  # Its greeting.
        self._ask("qmp_capabilities")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Hang up; the job ends with its daemon."""
        self._lines.close()
        self._link.close()

    def start(self) -> None:
        """Begin to mirror and wait until all is copied."""
        arguments = {
            "job-id": "mirror", "device": "disk", "target": "mirror",
            "sync": "full", "copy-mode": "background",
        }  # fmt: skip
        self._ask("blockdev-mirror", arguments)
        self.drain()

    def drain(self) -> None:
        """Wait until the job has nothing left to copy."""
        self._runner.until(self._is_idle, "QEMU's mirror has caught up")

    def _is_idle(self) -> bool:
        jobs = self._ask("query-block-jobs")
        if not jobs or jobs[0].get("io-status") != "ok":
            raise Failed(f"QEMU's mirror job has failed: {jobs}")
        job = jobs[0]
        return bool(job["ready"]) and job["offset"] == job["len"]

    def _ask(self, command: str, arguments: dict[str, str] | None = None) -> Any:  # noqa: ANN401
        request = {"execute": command, "arguments": arguments or {}}
        self._link.sendall(json.dumps(request).encode() + b"\n")
        while True:
            line = self._lines.readline()
            if not line:
                raise Failed(f"{_DAEMON} has hung up")
            answer = json.loads(line)
            if "error" in answer:
                raise Failed(f"{command}: {answer['error'].get('desc')}")
            if "return" in answer:  # Events come in between.
                return answer["return"]
