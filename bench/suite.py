"""Measure this machine: aimfuse beside its yardsticks, in one run, and whether the bars hold.

The contestants take turns in every round, so that whatever else the machine does hits all
alike; the table shows medians over the rounds. Nothing is left behind, also after Ctrl-C.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench import cap, copies, lag, load, memory, promotions, rows, scrubs, views, waiting
from bench.backlog import Backlog
from bench.bare import bare
from bench.load import GIB, MIB, Work
from bench.ours import aimfuse, with_three_destinations
from bench.past import REPLAYED_SIZE, SIZE, Past, Taken
from bench.qemu import qemu
from bench.rig import Places, Rig
from bench.rows import BARE, CP, FORGETFUL, ONE, OURS, QEMU, QUIET, RESTORE, ROWS, SCP, Row
from bench.running import Failed, Interrupted, Runner

LATEST = Path(__file__).with_name("latest.json")
IMAGE_BYTES = 256 * MIB
WARM_UP_BYTES = 6 * GIB
EXIT_INCOMPLETE = 1

Mount = Callable[[Runner, Places], contextlib.AbstractContextManager[Rig]]
CONTESTANTS: dict[str, Mount] = {OURS: aimfuse, BARE: bare, QEMU: qemu}


class Bench:
    """One run: measures what the wanted rows need, and keeps the figures."""

    def __init__(self, options: argparse.Namespace, wanted: Sequence[Row], runner: Runner) -> None:
        """Measure for *wanted* rows."""
        self.samples: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.is_complete = True
        self._options = options
        self._wanted = wanted
        self._runner = runner
        self._began_s = time.monotonic()

    def run(self) -> None:
        """Measure everything; what fails is told and left out."""
        memory_dir, disk_dir = self._options.dir_memory, self._options.dir_disk
        if any(row.work != "fsync" for row in self._wanted):
            with self._directory(memory_dir) as near:
                self._say(f"touching {WARM_UP_BYTES / GIB:.0f} GiB of memory")
                load.warm_up(near, WARM_UP_BYTES, self._runner)
        self._volumes(memory_dir, (load.RANDOM, load.SEQUENTIAL))
        self._volumes(disk_dir, (load.FSYNC,))
        if self._wants("lag"):
            with (
                self._attempt("lag"),
                self._directory(disk_dir) as near,
                self._directory(memory_dir) as far,
            ):
                self._lag(near, far)
        if self._wants("backlog"):
            with self._attempt("backlog"), self._directory(memory_dir) as near:
                self._backlog(near)
        if self._wants("fan-out"):
            self._fan_out(memory_dir)
        if self._wants("scrub"):
            with self._attempt("scrub"), self._directory(memory_dir) as place:
                ours, theirs = scrubs.iops(self._runner, place, self._options.rounds)
                for name, values in ((OURS, ours), (QUIET, theirs)):
                    for value in values:
                        self._note("scrub", name, value, "IOPS")
        self._copies(memory_dir)
        self._large(memory_dir, disk_dir)

    def _large(self, memory_dir: Path, disk_dir: Path) -> None:
        """Measure what has to be quick, or small, where there is much of something."""
        if self._wants("cap"):
            with self._attempt("cap"), self._directory(memory_dir) as near:
                self._note("cap", OURS, max(cap.measure(self._runner, near)), "% off")
        if self._wants("queue"):
            with self._attempt("queue"), self._directory(disk_dir) as near:
                for name, seconds in waiting.measure(
                    self._runner, near, self._options.rounds
                ).items():
                    for one in seconds:
                        self._note(f"queue-{name}", OURS, one, "s")
        self._pasts(memory_dir)
        if self._wants("view"):
            with self._attempt("view"), self._directory(disk_dir) as place:
                for one in views.first_byte_s(self._runner, place, self._options.rounds):
                    self._note("view", OURS, one, "s")
        if self._wants("rss"):
            with self._attempt("rss"), self._directory(memory_dir) as near:
                for name, megabytes in memory.measure(self._runner, near).items():
                    self._note(f"rss-{name}", OURS, megabytes, "MB")
                self._note("rss-copy", OURS, memory.copying(self._runner, near), "MB")

    def _volumes(self, place: Path, works: Sequence[Work]) -> None:
        """Measure loads on volumes whose images lie in *place*."""
        works = [work for work in works if self._wants(work.name)]
        names = {row.work: {OURS} for row in self._wanted}
        for row in self._wanted:
            names[row.work].add(row.yardstick or OURS)
        for number in range(1, self._options.rounds + 1):
            for name, mount in CONTESTANTS.items():
                todo = [work for work in works if name in names[work.name]]
                if not todo:
                    continue
                self._say(f"round {number}: {name}")
                with self._attempt(name), self._mounted(mount, place) as (rig, report):
                    for work in todo:
                        self._load(work.name, name, rig, work, report)

    def _fan_out(self, place: Path) -> None:
        """Measure random writes with three destinations, and with one."""
        for number in range(1, self._options.rounds + 1):
            for name, mount in ((OURS, with_three_destinations), (ONE, aimfuse)):
                self._say(f"round {number}: {'three destinations' if name == OURS else name}")
                with self._attempt(name), self._mounted(mount, place) as (rig, report):
                    self._load("fan-out", name, rig, load.RANDOM, report)

    @contextlib.contextmanager
    def _mounted(self, mount: Mount, place: Path) -> Iterator[tuple[Rig, Path]]:
        """Have a contestant's volume, its image in *place*, and a path for fio's report."""
        with (
            self._directory(place) as near,
            self._directory(self._options.dir_memory) as far,
            mount(self._runner, Places(near, far, IMAGE_BYTES)) as rig,
        ):
            yield rig, far / "fio.json"

    def _load(self, kind: str, name: str, rig: Rig, work: Work, report: Path) -> None:
        value = load.measure(self._runner, work, rig.volume, self._options.seconds, report)
        self._note(kind, name, value, work.unit)
        rig.drain()

    def _lag(self, near: Path, far: Path) -> None:
        samples = lag.measure(self._runner, near, far, self._options.lag_seconds)
        middle = rows.percentile(samples, 50)
        self._say(f"lag: median {middle:.2f} s, most {max(samples):.2f} s, {len(samples)} samples")
        self._note("lag", OURS, lag.p99(samples), "s")

    def _backlog(self, directory: Path) -> None:
        ours, theirs = Backlog(self._runner, directory).measure(self._options.rounds)
        for name, values in ((OURS, ours), (SCP, theirs)):
            for value in values:
                self._note("backlog", name, value, "MB/s")

    def _copies(self, memory_dir: Path) -> None:
        if self._wants("copy-first"):
            with self._attempt("copy-first"), self._directory(memory_dir) as place:
                ours, theirs = copies.first_copy(self._runner, place, self._options.rounds)
                for name, values in ((OURS, ours), (SCP, theirs)):
                    for value in values:
                        self._note("copy-first", name, value, "MB/s")
        if self._wants("copy-fold"):
            with (
                self._attempt("copy-fold"),
                self._directory(memory_dir) as near,
                self._directory(memory_dir) as far,
            ):
                self._note("copy-fold", OURS, copies.resync_ratio(self._runner, near, far), "x")
        if self._wants("map"):
            for name, megabytes in zip(("memory", "file"), copies.map_megabytes(), strict=True):
                self._note(f"map-{name}", OURS, megabytes, "MB")

    def _pasts(self, memory_dir: Path) -> None:
        """Measure what keeping a past costs, and how fast it comes back."""
        if self._wants("history") or self._wants("promote"):
            with self._attempt("history"), self._directory(memory_dir) as place:
                self._replayed(Past(self._runner, place, REPLAYED_SIZE))
        if self._wants("restore") or self._wants("rewind"):
            with self._attempt("restore"), self._directory(memory_dir) as place:
                self._gone_back(Past(self._runner, place, SIZE))

    def _replayed(self, past: Past) -> None:
        """Measure what history costs, and what a promotion takes."""
        rounds = self._options.rounds
        if self._wants("promote"):
            for one in promotions.beyond_applying_s(self._runner, past, rounds):
                self._note("promote", OURS, one, "s")
        if self._wants("history"):
            self._beside("history", FORGETFUL, past.replay(rounds))

    def _gone_back(self, past: Past) -> None:
        """Measure how fast the past comes back."""
        rounds = self._options.rounds
        past.apply_last()
        if self._wants("restore"):
            self._beside("restore", CP, past.restore(rounds))
        if self._wants("rewind"):
            self._beside("rewind", RESTORE, promotions.rewind(self._runner, past, rounds))

    def _beside(self, work: str, yardstick: str, taken: Taken) -> None:
        for name, values in zip((OURS, yardstick), taken, strict=True):
            for value in values:
                self._note(work, name, value, "MB/s")

    def _wants(self, work: str) -> bool:
        return any(row.work == work or row.work.startswith(f"{work}-") for row in self._wanted)

    def _note(self, work: str, name: str, value: float, unit: str) -> None:
        self.samples[work, name].append(value)
        self._say(f"  {work:<15} {name:<18} {rows.number(value):>8} {unit}")

    @contextlib.contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        try:
            yield
        except Failed as exc:
            self.is_complete = False
            self._say(f"{what}: {exc}")

    @contextlib.contextmanager
    def _directory(self, place: Path) -> Iterator[Path]:
        path = Path(tempfile.mkdtemp(prefix="aimfuse-bench-", dir=place))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self._began_s:6.1f} s  {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print the table, write ``latest.json``; return the exit code."""
    options = _options()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # Nobody who has it installed compiles it anew.
    wanted = [row for row in ROWS if not options.only or row.id in options.only]
    runner = Runner()
    bench = Bench(options, wanted, runner)
    try:
        bench.run()
    except Interrupted as exc:
        print(f"aimfuse bench: stopped by {exc}", file=sys.stderr)
        return 128 + exc.number
    found = rows.results(wanted, bench.samples)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(rows.to_table(wanted, found))
    console.print(
        f"Medians of {options.rounds} rounds. Whatever stands for another machine (store, SSH "
        "server, QEMU's second daemon) ran here too, at low priority (nice 19).",
        soft_wrap=True,
    )
    LATEST.write_text(rows.to_json(found))
    return 0 if bench.is_complete and len(found) == len(wanted) else EXIT_INCOMPLETE


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure aimfuse beside its yardsticks.")
    parser.add_argument(
        "--only", nargs="+", metavar="ID", choices=[row.id for row in ROWS], default=[],
        help="measure these rows: " + ", ".join(row.id for row in ROWS),
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="how often; default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="length of one load; default %(default)s"
    )
    parser.add_argument(
        "--lag-seconds", type=float, default=30.0, help="length of the load under which the lag "
        "is sampled; default %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--dir-memory", type=Path, default=Path("/dev/shm"),  # noqa: S108 - only unique names
        help="a directory in memory with 10 GiB free; default %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--dir-disk", type=Path, default=Path(__file__).resolve().parent,
        help="a directory on a real disk; default: beside this program",
    )  # fmt: skip
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0 or options.lag_seconds <= 0:
        parser.error("rounds and seconds must be positive")
    return options
