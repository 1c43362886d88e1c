"""The live view: look at everything once per interval, draw it, until Ctrl-C.

On a terminal it takes the screen and gives it back at the end; into a pipe, a file or a terminal
that can do nothing but print it prints one plain block per interval.
"""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from aimfuse.errors import BusyError, UsageError
from aimfuse.manager import render
from aimfuse.manager.layout import Look
from aimfuse.manager.snapshot import Snapshot, snapshot
from aimfuse.manager.target import Kind, Target, find_targets
from aimfuse.units import SECOND_NS

INTERVAL_S_MIN = 0.1
HISTORY_S = 60.0
HISTORY_LOOKS_MAX = 600

Take = Callable[[], Snapshot]


class History:
    """How fast everything went at each look of the last minute."""

    def __init__(self, interval_s: float) -> None:
        """Expect a look each *interval_s* seconds."""
        looks = max(2, min(HISTORY_LOOKS_MAX, round(HISTORY_S / interval_s)))
        self.rates: defaultdict[tuple[str, ...], deque[float]] = defaultdict(
            lambda: deque(maxlen=looks)
        )
        self._last: dict[tuple[str, ...], int] = {}
        self._last_ns = 0

    def note(self, snap: Snapshot) -> None:
        """Add what *snap* shows; a counter that went back started anew."""
        passed_s = (snap.taken_ns - self._last_ns) / SECOND_NS
        for key, counter in _counters(snap):
            before = self._last.get(key)
            if before is not None and passed_s > 0:
                self.rates[key].append(max(0, counter - before) / passed_s)
            self._last[key] = counter
        self._last_ns = snap.taken_ns


def _counters(snap: Snapshot) -> Sequence[tuple[tuple[str, ...], int]]:
    found: list[tuple[tuple[str, ...], int]] = []
    for source in snap.sources:
        found.append(((source.image,), source.accepted_seq))
        found += [((source.image, one.name), one.sent_bytes) for one in source.destinations]
    found += [((store.path,), store.applied_seq) for store in snap.stores]
    return found


class Watch:
    """Looks at the same paths again and again; what appears beneath them joins in."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Find out what the paths mean.

        Raises:
            UsageError, BusyError: as `find_targets`.
        """
        self._paths = list(paths)
        self._targets = find_targets(self._paths)

    def __call__(self) -> Snapshot:
        """Return how everything is now; what has vanished is shown as what is left of it."""
        with contextlib.suppress(UsageError, BusyError):
            self._targets = find_targets(self._paths)
        return take(self._targets)


def take(targets: Sequence[Target]) -> Snapshot:
    """Look at all targets now; blocks for a few seconds at worst for each that hangs."""
    sources = [target.status() for target in targets if target.kind is Kind.SOURCE]
    stores = [target.status() for target in targets if target.kind is Kind.STORE]
    return snapshot(sources, stores, time.time_ns())


def look_of(console: Console) -> Look:
    """Return what the console can show."""
    return Look(console.width, console.encoding.lower().startswith("utf"))


def run(console: Console, look: Take, interval_s: float, *, once: bool = False) -> None:
    """Show what *look* returns, again and again; Ctrl-C returns."""
    interval_s = max(INTERVAL_S_MIN, interval_s)
    history = History(interval_s)
    try:
        if console.is_terminal and not console.is_dumb_terminal and not once:
            _run_live(console, look, interval_s, history)
        else:
            _run_plain(console, look, interval_s, history, once=once)
    except KeyboardInterrupt:
        return  # The one key there is, and no error.


def _run_live(console: Console, look: Take, interval_s: float, history: History) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            snap = look()
            history.note(snap)
            lines = render.dashboard(snap, history.rates, look_of(console), console.height)
            live.update(Group(*lines), refresh=True)
            time.sleep(interval_s)


def _run_plain(
    console: Console, look: Take, interval_s: float, history: History, *, once: bool
) -> None:
    while True:
        snap = look()
        history.note(snap)
        console.print(*render.dashboard(snap, history.rates, look_of(console)), sep="\n")
        if once:
            return
        console.print()
        console.file.flush()
        time.sleep(interval_s)
