"""Draw a snapshot: lines of text for a terminal of a given size. Pure; the clock stays outside."""

from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from aimfuse.manager.layout import Look, between, finished
from aimfuse.manager.scene import MARKS, Detail, Lines, Rates, Scene
from aimfuse.manager.snapshot import Snapshot
from aimfuse.manager.source_view import draw_source
from aimfuse.manager.store_view import draw_store

NO_RATES: Rates = {}


def status(snap: Snapshot, look: Look) -> RenderableType:
    """Return what `aimfuse status` prints."""
    return Group(*finished(_body(snap, Scene(snap.taken_ns, look)), look))


def dashboard(snap: Snapshot, rates: Rates, look: Look, height: int | None = None) -> Lines:
    """Return the lines of the dashboard, not more than *height* of them.

    Where everything does not fit, everything is told in fewer words. Where that is not enough
    either, trouble moves to the top, and the end is cut off.
    """
    head = [*_title(snap, look), Text("─" * look.width, style="dim")]
    lines: Lines = []
    for detail in (Detail.FULL, Detail.SHORT, Detail.LINE):
        lines = head + _body(snap, Scene(snap.taken_ns, look, detail, rates))
        if height is None or len(lines) <= height:
            return finished(lines, look)
    lines = head + _body(_worst_first(snap), Scene(snap.taken_ns, look, Detail.LINE, rates))
    assert height is not None
    hidden = len(lines) - height + 1
    lines = [*lines[: max(0, height - 1)], Text(f"… {hidden} more lines", style="dim")]
    return finished(lines, look)


def _title(snap: Snapshot, look: Look) -> Lines:
    mark, style = MARKS[snap.level]
    left = Text.assemble((f"{mark} ", style), ("aimfuse", "bold"))
    return between(left, Text(look.clock(snap.taken_ns, snap.taken_ns), style="dim"), look)


def _body(snap: Snapshot, scene: Scene) -> Lines:
    lines: Lines = []
    for source in snap.sources:
        lines += [*draw_source(source, scene), Text()]
    for store in snap.stores:
        lines += [*draw_store(store, scene), Text()]
    return lines[:-1]


def _worst_first(snap: Snapshot) -> Snapshot:
    """Return the same with trouble in front: what is cut off should be what is fine."""
    sources = [
        replace(one, destinations=tuple(sorted(one.destinations, key=lambda d: -d.level)))
        for one in snap.sources
    ]
    worst = [max([one.level, *(d.level for d in one.destinations)]) for one in sources]
    order = sorted(range(len(sources)), key=lambda index: -worst[index])
    stores = sorted(snap.stores, key=lambda store: -store.level)
    return replace(snap, sources=tuple(sources[i] for i in order), stores=tuple(stores))
