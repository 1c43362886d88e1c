"""Draw a store: what has arrived, what is applied, and what stands in the way."""

from collections.abc import Sequence

from rich.text import Text

from aimfuse.manager.layout import amount, files, indent, paragraph, row, safe
from aimfuse.manager.scene import (
    MARGIN,
    Detail,
    Lines,
    Scene,
    behind,
    heading,
    held_lines,
    problem_lines,
    records_lines,
    sync_lines,
)
from aimfuse.manager.store_facts import FarReader, Store
from aimfuse.units import counted, format_bytes

NAMES_SHOWN_MAX = 6
REASONS_SHOWN_MAX = 3


def draw_store(store: Store, scene: Scene) -> Lines:
    """Return the lines of a store."""
    lines = heading(store.path, store.state, store.level, behind(store), scene.look)
    inner = scene.narrowed()
    body = problem_lines(store.problems, inner)
    if store.sync is not None:
        body += sync_lines(store.sync, inner.look)
    if scene.detail > Detail.LINE:
        body += _stages(store, inner)
    return lines + indent(body, MARGIN)


def _stages(store: Store, scene: Scene) -> Lines:
    look, full = scene.look, scene.detail is Detail.FULL
    lines: Lines = []
    if full:
        lines += row("mirror", _mirror(store, scene), look)
        lines += row("inbox", [Text(amount(store.arrived.files, store.arrived.bytes))], look)
        lines += _received(store, scene)
    lines += held_lines(store.held, scene)
    lines += row("applied", _applied(store), look)
    lines += records_lines("rate", scene.rates.get((store.path,), ()), look, "green")
    lines += _checks(store, scene)
    if not full:
        return lines
    if store.compared_ns:
        text = f"with its image, last at {scene.clock(store.compared_ns)}"
        lines += row("compared", [Text(text)], look)
    if store.readers:
        shown = ", ".join(map(str, store.readers[:NAMES_SHOWN_MAX]))
        more = ", …" if len(store.readers) > NAMES_SHOWN_MAX else ""
        chunks = [
            Text(f"by process {shown}{more}"),
            Text("nothing it needs is pruned", style="dim"),
        ]
        lines += row("read", chunks, look)
    for one in store.far_readers[:NAMES_SHOWN_MAX]:
        lines += row("read", _far_reader(one, scene), look)
    free = format_bytes(store.free_bytes) if store.free_bytes is not None else "unknown"
    lines += row("disk", [Text(f"{free} free")], look)
    return lines + _source(store, scene)


def _far_reader(one: FarReader, scene: Scene) -> list[Text]:
    return [
        Text(f"from afar by {safe(one.who)}, user id {one.owner} here"),
        Text(f"since {scene.clock(one.since_ns)}"),
        Text(f"files {one.first:,} to {one.last:,} are kept for that, {format_bytes(one.bytes)}"),
    ]


def _source(store: Store, scene: Scene) -> Lines:
    """Return what the source last said of itself."""
    if not store.source_time_ns:
        return []
    chunks = [Text(f"last heard at {scene.clock(store.source_time_ns)}", style="dim")]
    if store.source_state:
        chunks.append(Text(safe(store.source_state)))
    if store.source_newest is not None:
        chunks.append(Text(f"newest file {store.source_newest:,}"))
    if store.source_seq is not None:
        chunks.append(Text(f"record {store.source_seq:,}"))
    if store.source_spool.files:
        chunks.append(Text(f"spool {amount(store.source_spool.files, store.source_spool.bytes)}"))
    return row("source", chunks, scene.look)


def _mirror(store: Store, scene: Scene) -> list[Text]:
    if not store.volumes:
        return [Text("nothing yet")]
    size = format_bytes(sum(volume.size for volume in store.volumes))
    chunks = [Text(f"{counted(len(store.volumes), 'volume')} · {size}")]
    if store.mirror_time_ns:
        chunks.append(Text(f"as of {scene.clock(store.mirror_time_ns)}"))
    return chunks


def _received(store: Store, scene: Scene) -> Lines:
    if store.received_number is None:
        return []
    chunks = [Text(f"through file {store.received_number:,}")]
    if store.waiting.files:
        chunks.append(Text(f"{amount(store.waiting.files, store.waiting.bytes)} to apply"))
    return row("received", chunks, scene.look)


def _applied(store: Store) -> list[Text]:
    if not store.applied_number:
        return [Text("nothing yet")]
    return [
        Text(f"through file {store.applied_number:,}"),
        Text(f"record {store.applied_seq:,}"),
        Text(f"epoch {store.epoch}", style="dim"),
    ]


def _checks(store: Store, scene: Scene) -> Lines:
    """Return what is missing, damaged and set aside: one quiet line where nothing is."""
    look = scene.look
    if not (store.missing or store.damaged or store.quarantined):
        if scene.detail < Detail.FULL:
            return []
        return row("checks", [Text("nothing missing, damaged or set aside")], look)
    lines = row("missing", _listed([f"file {n:,}" for n in store.missing]), look)
    lines += row("damaged", _listed(store.damaged), look)
    aside = files(store.quarantined) if store.quarantined else ""
    lines += row("set aside", _listed([aside] if aside else []), look)
    if scene.detail is Detail.FULL:
        for name, reason in store.quarantine[:REASONS_SHOWN_MAX]:
            lines += paragraph(f"{name}: {reason}", "dim", look, " " * 10, " " * 10)
    return lines


def _listed(names: Sequence[str]) -> list[Text]:
    if not names:
        return [Text("none")]
    shown = [Text(safe(name), style="yellow") for name in names[:NAMES_SHOWN_MAX]]
    more = len(names) - NAMES_SHOWN_MAX
    return [*shown, Text(f"and {more:,} more", style="yellow")] if more > 0 else shown
