"""Real aimfuse processes of one test: started, killed, and always gone at its end."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aimfuse import config as configuration
from aimfuse.config import JournalConfig
from aimfuse.disk import Disk
from aimfuse.driver.group import GroupPaths, init_group
from aimfuse.errors import AimfuseError, NotCaughtUp, Unavailable
from aimfuse.journal.names import JournalName, SyncName, parse
from aimfuse.manager import control_client, wait
from aimfuse.manager.files import lock_holder
from aimfuse.units import KIB, MIB

REPO = Path(__file__).resolve().parents[3]
SEAM = Path(__file__).resolve().parent / "seam"
PATIENCE_S = 120.0
"""No wait for something that has to come takes longer on any machine; nothing is timed."""

_WAITS = re.compile("has not come|the first copy is not complete")

FAST = JournalConfig(
    file_bytes=64 * KIB,
    file_age_s=0.05,
    commit_interval_s=0.01,
    checkpoint_interval_s=0.1,
    spool_reserve_bytes=0,
    memory_bytes_max=MIB,
)


@dataclass(frozen=True, slots=True)
class Cruelty:
    """What happens to a process, and at which step; see seam/sitecustomize.py."""

    role: str
    at: str = ""
    nth: int = 1
    do: str = "kill"
    times: int = 1
    once: bool = True
    only: tuple[str, ...] = ("",)


class Machine:
    """A directory, and every process and mount that a test makes beneath it.

    *launcher* are words before each command, to run it elsewhere: it has to keep its id.
    """

    def __init__(self, root: Path, launcher: tuple[str, ...] = ()) -> None:
        self.root = root
        self.launcher = launcher
        self.trace = root / "labels"
        self.armed = root / "armed"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._mountpoints: list[Path] = []

    def start(
        self, *words: str | Path, cruelty: Cruelty | None = None, fds: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start `aimfuse WORDS...`; its output goes to a log named for the command."""
        with (self.root / f"{words[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self.launcher, sys.executable, "-m", "aimfuse", *map(str, words)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment(cruelty), pass_fds=fds, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def run(self, *words: str | Path, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run `aimfuse WORDS...` to its end."""
        done = subprocess.run(
            [*self.launcher, sys.executable, "-m", "aimfuse", *map(str, words)],
            check=False, capture_output=True, text=True, timeout=2 * PATIENCE_S,
            env=self.environment(None), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert expect is None or done.returncode == expect, (words, done.stdout, done.stderr)
        return done

    def environment(self, cruelty: Cruelty | None) -> dict[str, str]:
        """Return what a process gets to see; *cruelty* is armed anew."""
        env = {**os.environ, "PYTHONPATH": f"{REPO / 'src'}:{SEAM}"}
        env.pop("AIMFUSE_CRUELTY", None)
        if cruelty is not None:
            plan: dict[str, Any] = {
                "role": cruelty.role, "at": cruelty.at, "nth": cruelty.nth, "do": cruelty.do,
                "times": cruelty.times, "trace": str(self.trace), "relay": str(self.root),
                "only": cruelty.only,
            }  # fmt: skip
            if cruelty.once:
                self.armed.touch()
                plan["armed"] = str(self.armed)
            env["AIMFUSE_CRUELTY"] = json.dumps(plan)
        return env

    def steps(self) -> list[tuple[str, int]]:
        """Return the labels that traced processes came by, each with 1 and, if so, 2 and 4."""
        found = (line.rsplit(" ", 1) for line in dict.fromkeys(_whole_lines(self.trace)))
        return [(label, int(count)) for label, count in found]

    def met(self, role: str) -> set[str]:
        """Return the labels at which a process of that role has died in a relay."""
        return set(_whole_lines(self.root / f"met-{role}"))

    def deaths(self) -> int:
        """Return how often a process has died in a relay."""
        return sum(len(_whole_lines(path)) for path in self.root.glob("met-*"))

    def log(self, command: str) -> str:
        """Return what all processes of a command have said."""
        path = self.root / f"{command}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def will_be_mounted(self, mountpoint: Path) -> None:
        """Note a mountpoint that has to be clean in the end."""
        if mountpoint not in self._mountpoints:
            self._mountpoints.append(mountpoint)

    def clean_up(self) -> None:
        """Kill what still runs, by its id, and unmount what is mounted."""
        for process in self._processes:
            kill(process)
        for log in sorted(self.root.glob("*.log")):  # Shown when the test has failed.
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}")
        for mountpoint in self._mountpoints:
            command = ["fusermount3", "-uz", "--", str(mountpoint)]
            subprocess.run(command, check=False, capture_output=True)


class Source:
    """One group with fast settings, mounted again and again."""

    def __init__(self, machine: Machine, place: Path, state: Path | None = None) -> None:
        self.machine = machine
        self.image = place / "v.img"
        self.state = state or place / "v.img.aim"
        self.mountpoint = machine.root / "mnt"
        self.mountpoint.mkdir(exist_ok=True)
        self.volume = self.mountpoint / "v.img"
        self.driver: subprocess.Popen[bytes] | None = None

    @property
    def spool(self) -> Path:
        return self.state / "spool"

    def initialise(self, size: int, *urls: str, journal: JournalConfig = FAST) -> None:
        if not self.image.is_block_device():
            with self.image.open("wb") as file:
                file.truncate(size)
        config = configuration.GroupConfig(
            self.state, self.image, journal=replace(journal, size_bytes_max=size)
        )
        for url in urls:
            config = configuration.add_destination(config, url)
        init_group(Disk(), GroupPaths(config.image, config.state_dir, config.spool))
        configuration.save(config)

    def configure(
        self, change: Callable[[configuration.GroupConfig], configuration.GroupConfig]
    ) -> None:
        configuration.save(change(configuration.load(self.state)))

    def mount(self, cruelty: Cruelty | None = None) -> bool:
        """Mount; tell whether it came so far. False: the process died or refused before."""
        self.machine.will_be_mounted(self.mountpoint)
        reader, writer = os.pipe()
        words = ("mount", self.image, self.mountpoint, "--state", self.state)
        self.driver = self.machine.start(
            *words, "--ready-fd", str(writer), cruelty=cruelty, fds=(writer,)
        )
        os.close(writer)
        with os.fdopen(reader) as ready:
            mounted = bool(ready.readline())
        if not mounted:
            self.driver.wait(PATIENCE_S)
        return mounted

    def must_mount(self, cruelty: Cruelty | None = None) -> None:
        assert self.mount(cruelty), self.machine.log("mount")

    def kill(self) -> None:
        """End the driver at once, and wait until what goes with it is gone.

        That is its coordinator, and of a relay the life of the moment.
        """
        assert self.driver is not None
        kill(self.driver)
        locks = [self.state / name for name in ("lock", "ship.lock")]
        eventually(lambda: not any(map(_is_locked, locks)), "its locks are free")

    def exit_code(self) -> int | None:
        """Return how the driver ended, None while it runs."""
        return self.driver.poll() if self.driver else None

    def ended(self) -> int:
        """Wait until the driver has ended by itself; return how."""
        assert self.driver is not None
        return self.driver.wait(PATIENCE_S)

    def unmount(self) -> None:
        """End the mount cleanly."""
        assert self.driver is not None
        wait.unmount(self.state, PATIENCE_S)
        assert self.driver.wait(PATIENCE_S) == 0, self.machine.log("mount")

    def try_to_unmount(self) -> None:
        """Ask for a clean end of a driver that may die of it."""
        try:
            self.unmount()
        except (AimfuseError, AssertionError) as exc:
            print(f"not unmounted: {exc}")

    def flush(self, stage: str = "applied") -> None:
        """Wait for the mirrors; in a relay each life has as much time as any process."""
        while True:
            deaths = self.machine.deaths()
            try:
                wait.flush(self.state, wait.Stage(stage), PATIENCE_S)
            except Unavailable:
                if self.machine.deaths() == deaths:
                    raise
            else:
                return

    def status(self) -> dict[str, Any]:
        """Return the source's own account."""
        return control_client.call(self.state, {"cmd": "status"}, PATIENCE_S)

    def destination(self, name: str) -> dict[str, Any]:
        """Return the status of one destination as its coordinator last wrote it."""
        path = self.state / "destinations" / name / "status.json"
        try:
            answer: dict[str, Any] = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {"state": "unknown"}
        return answer

    def coordinator_pid(self) -> int:
        """Return the process id of the running coordinator, 0 for none.

        The kernel knows it: the file may still name the one before, and one that looks at the
        lock by taking it keeps a coordinator out that starts just then.
        """
        return lock_holder(self.state / "ship.lock") or 0

    def kill_coordinator(self) -> None:
        """Kill the coordinator, if there is one at the moment: it may go by itself."""
        if pid := self.coordinator_pid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Far:
    """A directory of stores and its replayer."""

    def __init__(self, machine: Machine, place: Path) -> None:
        self.machine = machine
        self.stores = place / "stores"
        self.stores.mkdir(parents=True, exist_ok=True)
        self.store = self.stores / "v"
        self.replayer: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"dir://{self.store}"

    @property
    def mirror(self) -> Path:
        return self.store / "mirror" / "v.img"

    def start(self, cruelty: Cruelty | None = None) -> None:
        self.replayer = self.machine.start("replay", self.stores, cruelty=cruelty)

    def kill(self) -> None:
        """End it at once, and wait until what goes with it has let go of the stores.

        That is a server's replayer, and of a relay the life of the moment.
        """
        assert self.replayer is not None
        kill(self.replayer)
        eventually(lambda: not any(map(_is_locked, self._locks())), "the stores are free")

    def _locks(self) -> list[Path]:
        with contextlib.suppress(OSError):  # Its disk is dead, and so is whoever had one there.
            return list(self.stores.glob("*/lock"))
        return []

    @contextlib.contextmanager
    def kept_running(self) -> Iterator[None]:
        """Start the replayer again whenever it has died."""
        over = threading.Event()

        def keep() -> None:
            while not over.wait(0.05):
                if self.replayer is None or self.replayer.poll() is not None:
                    self.start()

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Freeze the replayer: nothing is applied and nothing confirmed meanwhile."""
        assert self.replayer is not None
        with frozen(self.replayer):
            yield

    def finish(self) -> None:
        """Let a replayer apply what it can, without a source, and finish what it had begun.

        Of files that were on their way together any may be the one that never came: those behind
        it wait for it, exit 5. A first copy may have come in part. Neither is a fault; a damaged
        file is one.
        """
        done = self.machine.run("replay", self.stores, "--once", expect=None)
        waits = done.returncode == NotCaughtUp.exit_code and _WAITS.search(done.stderr)
        assert waits or done.returncode == 0, (done.returncode, done.stdout, done.stderr)

    def unfinished(self) -> list[Path]:
        """Return the temporary files in its store that have no business there any more.

        A file may be sent again though it came, and that sending be cut short: then its part
        stays in the inbox for a day, whoever may still be writing it.
        """
        received = self.ack()["received"]["number"]
        return [
            part
            for part in self.store.rglob("*.part")
            if part.parent.name != "inbox" or not _has_come(part.stem, received)
        ]

    def ack(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((self.store / "ack.json").read_bytes())
        return answer


def _has_come(name: str, received: int) -> bool:
    match parse(name):
        case JournalName(number=number):
            return number <= received
        case SyncName():  # Of a copy that is complete.
            return True
        case _:
            return False


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL one process and reap it."""
    if process.poll() is None:
        process.kill()
    process.wait(PATIENCE_S)


@contextlib.contextmanager
def frozen(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop a process for the block; within it none of its threads does anything."""
    process.send_signal(signal.SIGSTOP)
    try:
        # Its parent is told once the last of them stands still.
        told = os.WSTOPPED | os.WNOHANG
        eventually(lambda: os.waitid(os.P_PID, process.pid, told), "it stands still")
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def eventually(
    true: Callable[[], object], what: str, moves: Callable[[], object] = lambda: None
) -> None:
    """Wait until something holds that has to come to hold.

    Whenever *moves* returns something else than before, patience begins anew.
    """
    end_s, seen = time.monotonic() + PATIENCE_S, moves()
    while not true():
        if (now := moves()) != seen:
            end_s, seen = time.monotonic() + PATIENCE_S, now
        assert time.monotonic() < end_s, f"it never came to be that {what}"
        time.sleep(0.02)


def _is_locked(path: Path) -> bool:
    """Tell whether somebody has the lock; who starts just then may be kept out by asking."""
    with contextlib.suppress(OSError), path.open("rb") as file:  # Missing, or on a dead disk.
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a file that others append to, without one that they are at."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
