"""The play of `make demo`, act by act, and what it comes to.

Makes an image, mirrors it over SFTP on loopback, works on it, breaks the line, kills the
replayer in the middle of its work, and holds both ends against each other. Exit code 0: all
was as promised. 1: it was not. 130, 143: interrupted. Whatever happens, it cleans up.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from aimfuse.units import GIB, format_bytes
from demo import checks, disks
from demo.hosts import Far, Source
from demo.line import Line
from demo.running import Failed, Interrupted, Patience
from demo.screen import Screen
from demo.workload import Workload

DESCRIPTION = "A source, a far host and a disaster, on this machine, in about a minute."
IMAGE_SIZE = "192MiB"
FREE_BYTES_MIN = 2 * GIB
QUIET_S = 7.0
OUTAGE_S = 12.0
CATCH_S_MAX = 60.0
LOG_LINES = 5
SIGNAL_EXIT = 128


class Demo:
    """The play, act by act. What an act makes is noted in *exits* before it is made."""

    def __init__(
        self,
        screen: Screen,
        patience: Patience,
        exits: contextlib.ExitStack,
        directory: Path,
        *,
        on_ext4: bool,
    ) -> None:
        self.findings: list[str] = []
        self._screen = screen
        self._patience = patience
        self._exits = exits
        self._directory = directory
        self._on_ext4 = on_ext4
        self._far = Far(patience, directory / "far")
        self._source = Source(patience, directory / "source", "disk.img" if on_ext4 else "volumes")
        volume = self._source.mountpoint / "disk.img"
        self._disk = disks.LoopDisk(patience, volume, directory / "fs") if on_ext4 else None
        self._work = Workload(self._disk.mountpoint if self._disk else self._source.mountpoint)

    def play(self) -> None:
        """Play all acts.

        Raises:
            Failed: something was not as promised.
            Interrupted: a signal came.
        """
        line = self._set_up()
        self._begin_work()
        self._break(line)
        self._mend(line)
        self._kill_the_replayer()
        self._settle()
        self._compare()

    def _set_up(self) -> Line:
        far, source, say = self._far, self._source, self._screen.say
        say("A far host: `aimfuse serve`, an SFTP server and a replayer in one.")
        far.authorise(source.make_key())
        self._exits.callback(far.stop)
        far.serve()
        line = Line(far.port)
        self._exits.callback(line.cut)
        what = f"an image of {IMAGE_SIZE}" if self._on_ext4 else "a directory for SQLite's files"
        say(f"A source: {what}, mirrored over SSH; the far host's key is pinned.")
        source.init(IMAGE_SIZE if self._on_ext4 else None)
        source.point_at(line, far.host_key)
        self._exits.callback(source.force_away)
        source.mount()
        self._screen.show(source.image)
        return line

    def _begin_work(self) -> None:
        say = self._screen.say
        if self._disk is not None:
            self._exits.callback(self._disk.release)
            say("ext4 on a loop device over the volume, as a virtual machine's disk would be.")
            self._disk.format_and_mount()
        self._exits.callback(self._work.stop)
        say("The application starts: a SQLite ledger, each row committed durably, and files.")
        self._work.start()
        self._patience.until(self._far.has_mirror, "the first copy was complete")
        self._screen.show(self._source.image, self._far.store)
        self._watch_work(QUIET_S)
        say(f"{self._work.rows} rows so far, the slowest commit took {self._slowest()}.")

    def _break(self, line: Line) -> None:
        say = self._screen.say
        line.cut()
        say("The line breaks. The application goes on; the spool keeps what cannot leave.", "red")
        self._patience.until(self._far.is_at_rest, "the far host had applied what it got")
        scratch = self._directory / "takeover"
        rows = checks.open_copy(
            self._patience, self._far.store / "mirror", scratch, on_ext4=self._on_ext4
        )
        checks.forget(scratch)
        say(
            f"If the source burned now: a copy of the mirror opens, {self._sound()}, and its "
            f"ledger holds rows 1 to {rows} without a hole. (The source is at {self._work.rows}.)",
            "green",
        )
        self.findings.append(f"cut off, the mirror was a sound state of the past, at row {rows}")
        self._watch_work(OUTAGE_S)
        slowest = self._slowest()
        say(f"Still cut off, {self._work.rows} rows; the slowest commit took {slowest}.")
        self.findings.append(f"without a line the slowest commit took {slowest}")

    def _mend(self, line: Line) -> None:
        line.mend()
        self._screen.say("The line is back. The source tries again by itself, and catches up.")
        before = self._far.applied()
        self._patience.until(lambda: self._far.applied() > before, "the mirror went on", 90.0)

    def _kill_the_replayer(self) -> None:
        """Freeze it again and again until it is in the middle of a file; then SIGKILL."""
        end_s = time.monotonic() + CATCH_S_MAX
        while not self._kill_in_mid_apply():
            if time.monotonic() >= end_s:
                raise Failed("the replayer was never caught in the middle of a file")
            self._check_work()
            self._patience.pause(0.01)
        number = self._far.applied() + 1
        self._screen.say(
            f"SIGKILL to the replayer in the middle of file {number}: the mirror is neither the "
            "state before it nor the one after.", "red",
        )  # fmt: skip
        self._patience.until(lambda: self._far.applied() >= number, "the file was redone")
        self._screen.say(
            f"A new replayer (process {self._far.replayer_pid()}) redid file {number} from its "
            "own durable copy, from the beginning, and went on.", "green",
        )  # fmt: skip
        self.findings.append(f"killed in the middle of file {number}, the replayer redid it")

    def _kill_in_mid_apply(self) -> bool:
        pid = self._far.replayer_pid()
        if pid is None:
            return False
        in_the_middle = False
        try:
            self._far.freeze(pid)
            in_the_middle = self._far.is_in_mid_apply()
        finally:
            os.kill(pid, signal.SIGKILL if in_the_middle else signal.SIGCONT)
        return in_the_middle

    def _settle(self) -> None:
        say = self._screen.say
        self._watch_work(QUIET_S / 2)
        self._work.stop()
        say(f"The application ends with {self._work.rows} rows. Unmount, and wait for the mirror.")
        if self._disk is not None:
            self._disk.release()
        said = self._source.flush()
        self._source.unmount()
        say(said)

    def _compare(self) -> None:
        mirror = self._far.store / "mirror"
        count = checks.compare_all(self._source.image, mirror)
        what = "image" if self._on_ext4 else "volumes"
        self.findings.append(f"{what} and mirror are the same, all {format_bytes(count)}")
        scratch = self._directory / "takeover"
        rows = checks.open_copy(self._patience, mirror, scratch, on_ext4=self._on_ext4)
        if rows != self._work.rows:
            raise Failed(f"{self._work.rows} rows were committed, the mirror has {rows}")
        self.findings.append(f"on the mirror {self._sound()}, all {rows} committed rows are there")

    def _sound(self) -> str:
        return "fsck and SQLite find it sound" if self._on_ext4 else "SQLite finds it sound"

    def _slowest(self) -> str:
        return f"{self._work.take_slowest_s() * 1000:.0f} ms"

    def _watch_work(self, seconds: float) -> None:
        self._patience.pause(seconds)
        self._check_work()

    def _check_work(self) -> None:
        if self._work.error is not None:
            raise Failed(f"the application failed: {self._work.error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, clean up, give the verdict; return the exit code."""
    options = _parse(arguments)
    console = Console(
        highlight=False, soft_wrap=False, force_terminal=False if options.plain else None
    )
    patience = Patience()
    disks.find_programs_of_root()
    base: Path = options.dir
    made_base = not base.exists()
    base.mkdir(parents=True, exist_ok=True)
    try:
        free = shutil.disk_usage(base).free
        if free < FREE_BYTES_MIN:
            console.print(f"{base}: {format_bytes(free)} free, of {format_bytes(FREE_BYTES_MIN)}.")
            return 1
        return _run(console, patience, base, sqlite=options.sqlite)
    finally:
        if made_base:
            with contextlib.suppress(OSError):  # Another demo is at work there.
                base.rmdir()


def _run(console: Console, patience: Patience, base: Path, *, sqlite: bool) -> int:
    trouble: Failed | Interrupted | None = None
    findings: list[str] = []
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=base)).resolve()
    exits = contextlib.ExitStack()
    exits.callback(_remove, directory)
    with Screen(console) as screen:
        try:
            on_ext4 = not sqlite and disks.may_use_loop_devices(patience, directory)
            demo = Demo(screen, patience, exits, directory, on_ext4=on_ext4)
            findings = demo.findings
            demo.play()
        except (Failed, Interrupted) as exc:
            trouble = exc
            _tell_of(exc, screen, directory)
        finally:
            screen.show()  # What is taken away looks damaged halfway.
            screen.say("Cleaning up.")
            with patience.finishing():
                exits.close()
    return _verdict(console, findings, trouble, directory)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=DESCRIPTION)
    here = Path(__file__).resolve().parent.parent / ".demo"
    parser.add_argument("--dir", type=Path, default=here, help="where to work (default: .demo)")
    parser.add_argument("--sqlite", action="store_true", help="no loop device, also as root")
    parser.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")
    return parser.parse_args(arguments)


def _remove(directory: Path) -> None:
    """Remove what the demo made, but never through a mount that would not go."""
    if not any(os.path.ismount(path) for path in (directory / "fs", directory / "source/mnt")):
        shutil.rmtree(directory, ignore_errors=True)


def _tell_of(trouble: Failed | Interrupted, screen: Screen, directory: Path) -> None:
    """Tell what went wrong, and the last words of both hosts: their logs are about to go."""
    if isinstance(trouble, Interrupted):
        screen.say(f"Interrupted by {trouble}.", "yellow")
        return
    screen.say(f"Failed: {trouble}", "bold red")
    for log in (directory / "serve.log", *directory.glob("source/*.aim/mount.log")):
        if log.is_file():
            for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                screen.say(f"{log.name}: {line}")


def _verdict(
    console: Console, findings: list[str], trouble: Failed | Interrupted | None, directory: Path
) -> int:
    for finding in findings:
        console.print(f"  ok  {finding}")
    left = f"Left behind, still in use: {directory}" if directory.exists() else ""
    if isinstance(trouble, Interrupted):
        console.print(f"Interrupted by {trouble}. {left or 'Nothing was left behind.'}")
        return SIGNAL_EXIT + trouble.number
    if trouble is not None or left:
        console.print(f"NOT AS PROMISED: {trouble or left}", style="bold red", markup=False)
        return 1
    console.print(
        "AS PROMISED: the mirror was always a state of the past, and has everything.",
        style="bold green",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
