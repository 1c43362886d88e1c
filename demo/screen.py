"""What the audience sees: the story, and below it the dashboard of aimfuse itself.

On a terminal the dashboard is live. Into a pipe or a file go plain lines: the story, and every
few seconds one line on how far the mirror is.
"""

import contextlib
import threading
import time
from pathlib import Path
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from aimfuse.errors import AimfuseError
from aimfuse.manager import dashboard, render
from aimfuse.manager.layout import paragraph
from aimfuse.manager.snapshot import Snapshot
from aimfuse.units import format_bytes, format_seconds

INTERVAL_S = 0.5
PLAIN_EVERY_S = 3.0
STORY_LINES = 7


class Screen:
    """Shows the story as it is told; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._story: list[Text] = []
        self._began_s = time.monotonic()
        self._watch: dashboard.Watch | None = None
        self._history = dashboard.History(INTERVAL_S)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._live: Live | None = None
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, screen=True, auto_refresh=False)
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back, with the story on it; may be called twice."""
        if self._ending.is_set():
            return
        self._ending.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._console.print(*self._story, sep="\n")

    def say(self, text: str, style: str = "") -> None:
        """Tell what happens next, or what was found."""
        first = f"{time.monotonic() - self._began_s:5.1f} s  "
        with self._lock:
            if self._live is None:
                self._print(Text(first + text, style=style))
                return
            look = dashboard.look_of(self._console)
            self._story += paragraph(text, style, look, first, " " * len(first))

    def show(self, *paths: Path) -> None:
        """Watch what is at these paths from now on; without a path, nothing any more."""
        self._watch = dashboard.Watch(paths) if paths else None

    def _run(self) -> None:
        plain_s = time.monotonic() + PLAIN_EVERY_S
        while not self._ending.wait(INTERVAL_S):
            snap = self._look()
            if self._live is not None:
                self._live.update(Group(*self._page(snap)), refresh=True)
            elif snap is not None and time.monotonic() >= plain_s:
                plain_s = time.monotonic() + PLAIN_EVERY_S
                with self._lock:
                    self._print(Text(f"         - {_in_one_line(snap)}", style="dim"))

    def _print(self, line: Text) -> None:
        """Print one line, however long, at once: whoever reads a log wraps it himself."""
        self._console.print(line, soft_wrap=True)
        self._console.file.flush()

    def _look(self) -> Snapshot | None:
        watch = self._watch
        if watch is None:
            return None
        with contextlib.suppress(AimfuseError):
            snap = watch()
            if self._watch is watch:
                self._history.note(snap)
                return snap
        return None

    def _page(self, snap: Snapshot | None) -> list[Text]:
        look = dashboard.look_of(self._console)
        with self._lock:
            page = [Text("aimfuse: a source, a far host and a disaster", style="bold"), Text()]
            page += self._story[-STORY_LINES:]
        page += [Text()] * (STORY_LINES + 3 - len(page))
        if snap is not None:
            height = max(8, self._console.height - len(page))
            page += render.dashboard(snap, self._history.rates, look, height)
        return page


def _in_one_line(snap: Snapshot) -> str:
    parts = []
    for source in snap.sources:
        parts.append(f"source {source.state}, {source.accepted_seq:,} records")
        for one in source.destinations:
            lag = one.lag
            behind = "" if lag.seconds is None else f", {format_seconds(lag.seconds)} behind"
            waiting = f" ({format_bytes(lag.bytes)})" if lag.bytes else ""
            trouble = f": {one.problems[0].text}" if one.problems else ""
            parts.append(f"shipping: {one.state}{behind}{waiting}{trouble}")
    parts += [f"mirror {store.state}, at file {store.applied_number}" for store in snap.stores]
    return " | ".join(parts)
