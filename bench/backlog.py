"""How fast a backlog leaves: `aimfuse ship` against scp, same files, same stock OpenSSH server.

The mirror is set up with a replayer, which then ends: scp has none to share the processors
with either. So nobody confirms the files, and what counts is the time from the start of the
program, with its start-up, until the store has the last file under its final name. A file gets
that name once the server has synced it; scp's files are not synced. Everything is in memory.
"""

import shutil
import time
from pathlib import Path

from bench import sshd
from bench.load import GIB, MB, MIB, fio_words
from bench.ours import FarHost, Group
from bench.rig import MOUNTPOINT
from bench.running import AIMFUSE, Failed, Runner

SIZE = 256 * MIB
BACKLOG_BYTES = 1 * GIB
_SHIP_S_MAX = 300.0
_POLL_S = 0.02


class Backlog:
    """A group that has written `BACKLOG_BYTES` which its store does not have."""

    def __init__(self, runner: Runner, directory: Path) -> None:
        """Keep everything below *directory*."""
        self._runner = runner
        self._near = directory / "near"
        self._keys = directory / "keys"
        self._copies = directory / "copies"
        self._far = FarHost(runner, directory / "far")
        self._group = Group(runner, self._near)
        self._files: list[Path] = []
        for path in (self._near / MOUNTPOINT, self._copies, self._far.stores):
            path.mkdir(parents=True)

    @property
    def inbox(self) -> Path:
        """Return where files arrive."""
        return self._far.store / "inbox"

    @property
    def megabytes(self) -> float:
        """Return the size of all files in MB."""
        return sum(path.stat().st_size for path in self._files) / MB

    def measure(self, rounds: int) -> tuple[list[float], list[float]]:
        """Return the MB/s of ours and of scp, taking turns."""
        ours, theirs = [], []
        with sshd.serving(self._runner, self._keys) as server:
            self._build(server)
            for _ in range(rounds):
                ours.append(self.megabytes / self._ship_s())
                theirs.append(self.megabytes / self._scp_s(server))
        return ours, theirs

    def _build(self, server: sshd.Sshd) -> None:
        group, runner = self._group, self._runner
        group.initialise(SIZE)
        group.add_destination(server.url(self._far.store), server.known_hosts, server.identity)
        with self._far.replaying() as replayer, group.mounted():
            group.drain(self._far)
            group.pause(paused=True)
            runner.until(
                lambda: group.destination_status()["state"] == "paused", "shipping has paused"
            )
            applied = self._far.applied_number()
            replayer.terminate()
            replayer.wait()
            report = self._near / "fio.json"
            options = ("--rw=write", "--bs=1m", f"--io_size={BACKLOG_BYTES}")
            runner.run(*fio_words(group.volume, SIZE, options, report))
        group.pause(paused=False)
        names = sorted(group.spool.glob("*.aim"))
        self._files = [path for path in names if int(path.stem.split("-")[1]) > applied]
        if self.megabytes * MB < BACKLOG_BYTES:
            raise Failed(f"the backlog has only {self.megabytes:.0f} MB")

    def _ship_s(self) -> float:
        for path in self.inbox.glob("*.aim*"):
            path.unlink()
        wanted = {path.name for path in self._files}
        words = (*AIMFUSE, "ship", self._group.image, "--until-empty")
        log = self._near / "ship.log"
        began_s = time.monotonic()
        with self._runner.running(words, log) as child:

            def has_all() -> bool:
                self._runner.check_alive(child, log)
                return wanted <= {path.name for path in self.inbox.iterdir()}

            self._runner.until(has_all, "the store has the backlog", _SHIP_S_MAX, _POLL_S)
            took_s = time.monotonic() - began_s
        self._check(self.inbox)
        return took_s

    def _scp_s(self, server: sshd.Sshd) -> float:
        shutil.rmtree(self._copies)
        self._copies.mkdir()
        began_s = time.monotonic()
        self._runner.run(*server.scp_words(self._files, self._copies))
        took_s = time.monotonic() - began_s
        self._check(self._copies)
        return took_s

    def _check(self, directory: Path) -> None:
        for path in self._files:
            if (directory / path.name).stat().st_size != path.stat().st_size:
                raise Failed(f"{path.name} arrived with another size")
