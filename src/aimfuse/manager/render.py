"""Draw a snapshot: lines of text for a terminal of a given width. Pure; the clock stays outside."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from aimfuse.manager.layout import (
    Look,
    amount,
    bar,
    beside,
    between,
    files,
    finished,
    indent,
    middle,
    paragraph,
    row,
    safe,
    spark,
)
from aimfuse.manager.model import (
    Destination,
    Lag,
    Level,
    Problem,
    Snapshot,
    Source,
    Store,
    Sync,
    Upload,
)
from aimfuse.units import format_bytes, format_seconds

Rates = Mapping[tuple[str, ...], Sequence[float]]
"""Per thing shown, how fast it went at each look: bytes or records per second, newest last."""

NO_RATES: Rates = {}
SPOOL_WARN_RATIO = 0.7
SPOOL_ALARM_RATIO = 0.9
TWO_COLUMNS_WIDTH = 120
UPLOADS_SHOWN_MAX = 8
_GUTTER = 4
_BAR_WIDTH = 16
_SPARK_WIDTH = 30
_MARKS = {
    Level.IDLE: ("○", "dim"), Level.FINE: ("●", "green"), Level.BUSY: ("●", "cyan"),
    Level.WARN: ("▲", "yellow"), Level.BAD: ("✖", "bold red"),
}  # fmt: skip

Lines = list[Text]


def status(snap: Snapshot, look: Look) -> RenderableType:
    """Return what `aimfuse status` prints."""
    return Group(*finished(_body(snap, NO_RATES, look, _source, _store), look))


def dashboard(snap: Snapshot, rates: Rates, look: Look, height: int | None = None) -> Lines:
    """Return the lines of the dashboard, not more than *height* of them.

    Where everything does not fit, each destination and store gets one line instead, and what
    is in trouble keeps the words that say so.
    """
    head = [*_title(snap, look), Text("─" * look.width, style="dim")]
    lines = head + _body(snap, rates, look, _source, _store)
    if height is not None and len(lines) > height:
        lines = head + _body(snap, rates, look, _source_brief, _store_brief)
    if height is not None and len(lines) > height:
        lines = head + _body(_worst_first(snap), rates, look, _source_brief, _store_brief)
        hidden = len(lines) - height + 1
        lines = [*lines[: max(0, height - 1)], Text(f"… {hidden} more lines", style="dim")]
    return finished(lines, look)


def _worst_first(snap: Snapshot) -> Snapshot:
    """Return the same with trouble in front: what is cut off should be what is fine."""
    sources = [
        replace(one, destinations=tuple(sorted(one.destinations, key=lambda d: -d.level)))
        for one in snap.sources
    ]
    worst = [max([s.level, *(d.level for d in s.destinations)]) for s in sources]
    order = sorted(range(len(sources)), key=lambda index: -worst[index])
    stores = sorted(snap.stores, key=lambda store: -store.level)
    return replace(snap, sources=tuple(sources[i] for i in order), stores=tuple(stores))


def _title(snap: Snapshot, look: Look) -> Lines:
    mark, style = _MARKS[snap.level]
    left = Text.assemble((f"{mark} ", style), ("aimfuse", "bold"))
    return between(left, Text(look.clock(snap.taken_ns, snap.taken_ns), style="dim"), look)


_Draw = Callable[..., Lines]


def _body(snap: Snapshot, rates: Rates, look: Look, source: _Draw, store: _Draw) -> Lines:
    lines: Lines = []
    for one in snap.sources:
        lines += [*source(one, snap, rates, look), Text()]
    for other in snap.stores:
        lines += [*store(other, snap, rates, look), Text()]
    return lines[:-1]


# The source.


def _source(source: Source, snap: Snapshot, rates: Rates, look: Look) -> Lines:
    inner = look.narrowed(2)
    lines = [*_heading(source.image, source.state, source.level, Text(), look)]
    where = f"on {safe(source.mountpoint)}" if source.mountpoint else ""
    size = format_bytes(sum(volume.size for volume in source.volumes))
    chunks = [Text(where), Text(_count(len(source.volumes), "volume")), Text(size)]
    lines += indent(row("mounted" if source.mounted else "volumes", chunks, inner), "  ")
    lines += indent(_problems(source.problems, inner), "  ")
    lines += indent(_journal(source, rates, inner), "  ")
    blocks = [_destination(one, source, snap, rates) for one in source.destinations]
    if not blocks:
        lines.append(Text("  no destinations", style="dim"))
    return lines + _columns(blocks, look)


def _journal(source: Source, rates: Rates, look: Look) -> Lines:
    behind = source.accepted_seq - source.durable_seq
    lines = row(
        "journal",
        [
            Text(_count(source.accepted_seq, "record")),
            Text("all durable" if behind <= 0 else f"{behind:,} not durable"),
            Text(f"epoch {source.epoch}", style="dim"),
        ],
        look,
    )
    values = rates.get((source.image,), ())
    if values:
        chunks = [Text(f"{values[-1]:,.0f} records/s"), _spark(values, look, "cyan")]
        lines += row("writes", chunks, look)
    return lines + _spool(source, look)


def _spool(source: Source, look: Look) -> Lines:
    used, most = source.spool.bytes, source.spool_bytes_max
    ratio = used / most if most else 0.0
    style = (
        "red" if ratio > SPOOL_ALARM_RATIO else "yellow" if ratio > SPOOL_WARN_RATIO else "green"
    )
    chunks = []
    if most:
        chunks = [bar(used, most, _BAR_WIDTH, style), Text(f"{ratio:.0%}", style=style)]
    of = f" of {format_bytes(most)}" if most else ""
    chunks += [Text(format_bytes(used) + of), Text(files(source.spool.files))]
    if source.spool_free_bytes is not None:
        chunks.append(Text(f"{format_bytes(source.spool_free_bytes)} free on disk", style="dim"))
    return row("spool", chunks, look)


def _columns(blocks: Sequence[Callable[[Look], Lines]], look: Look) -> Lines:
    """Return the blocks below each other, or in two columns where there is room for two."""
    lines: Lines = []
    if look.width < TWO_COLUMNS_WIDTH or len(blocks) == 1:
        for draw in blocks:
            lines += [Text(), *indent(draw(look.narrowed(2)), "  ")]
        return lines
    half = (look.width - 2 - _GUTTER) // 2
    part = Look(half, look.unicode, look.zone)
    for index in range(0, len(blocks), 2):
        pair = [draw(part) for draw in blocks[index : index + 2]]
        right = pair[1] if len(pair) > 1 else []
        lines += [Text(), *indent(beside(pair[0], right, half, _GUTTER), "  ")]
    return lines


def _destination(
    one: Destination, source: Source, snap: Snapshot, rates: Rates
) -> Callable[[Look], Lines]:
    def draw(look: Look) -> Lines:
        inner = look.narrowed(2)
        lines = _heading(one.name, one.state, one.level, _behind(one), look)
        body = row("", [Text(safe(one.url), style="dim")], inner, 0) if one.url else []
        body += _problems(one.problems, inner)
        if one.sync is not None:
            body += _sync(one.sync, inner)
        body += row("queued", [Text(amount(one.queued.files, one.queued.bytes))], inner)
        body += _in_flight(one.in_flight, inner)
        body += row("received", [Text(amount(one.received.files, one.received.bytes))], inner)
        body += _applied(one, snap, inner)
        if one.lag.seconds is not None:
            body += _lag(one.lag, inner)
        values = rates.get((source.image, one.name), ())
        if one.rate_bytes_s or values:
            speed = Text(f"{format_bytes(one.rate_bytes_s)}/s")
            body += row("rate", [speed, _spark(values, inner, "green")], inner)
        return lines + indent(body, "  ")

    return draw


def _in_flight(uploads: Sequence[Upload], look: Look) -> Lines:
    total = sum(upload.bytes for upload in uploads)
    lines = row("in flight", [Text(amount(len(uploads), total))], look)
    for upload in uploads[:UPLOADS_SHOWN_MAX]:
        ratio = upload.sent / upload.bytes if upload.bytes else 0.0
        progress = bar(upload.sent, upload.bytes, _BAR_WIDTH // 2, "cyan")
        progress.append(f" {min(ratio, 1):4.0%}")
        name = middle(safe(upload.name).removesuffix(".aim"), max(8, look.width - 10))
        lines += row("", [Text(name, style="dim"), progress], look)
    if len(uploads) > UPLOADS_SHOWN_MAX:
        lines += row("", [Text(f"and {len(uploads) - UPLOADS_SHOWN_MAX} more", style="dim")], look)
    return lines


def _applied(one: Destination, snap: Snapshot, look: Look) -> Lines:
    if not one.applied_number:
        return row("applied", [Text("nothing yet")], look)
    chunks = [Text(f"through file {one.applied_number:,}")]
    if one.applied_seq:
        chunks.append(Text(f"record {one.applied_seq:,}"))
    if one.mirror_time_ns:
        chunks.append(Text(f"mirror as of {look.clock(one.mirror_time_ns, snap.taken_ns)}"))
    return row("applied", chunks, look)


def _lag(lag: Lag, look: Look) -> Lines:
    chunks = [Text(format_seconds(lag.seconds or 0.0))]
    if lag.bytes is not None:
        chunks.append(Text(format_bytes(lag.bytes)))
    if lag.files is not None:
        chunks.append(Text(files(lag.files)))
    return row("lag", chunks, look)


def _sync(sync: Sync, look: Look) -> Lines:
    if sync.total_bytes is None:
        return row("sync", [Text(f"{files(sync.files)} of the first copy")], look)
    ratio = sync.done_bytes / sync.total_bytes if sync.total_bytes else 1.0
    chunks = [
        bar(sync.done_bytes, sync.total_bytes, _BAR_WIDTH, "cyan"),
        Text(f"{min(ratio, 1):.0%}", style="cyan"),
        Text(f"{format_bytes(sync.done_bytes)} of {format_bytes(sync.total_bytes)}"),
    ]
    if sync.eta_s is not None:
        chunks.append(Text(f"{format_seconds(sync.eta_s)} left"))
    return row("sync", chunks, look)


def _source_brief(source: Source, snap: Snapshot, rates: Rates, look: Look) -> Lines:
    lines = _heading(source.image, source.state, source.level, Text(), look)
    lines += indent(_problems(source.problems[:1], look.narrowed(2)), "  ")
    lines += indent(_spool(source, look.narrowed(2)), "  ")
    for one in source.destinations:
        right = _behind(one)
        if one.rate_bytes_s:
            right.append(f"  {format_bytes(one.rate_bytes_s)}/s")
        inner = look.narrowed(2)
        lines += indent(_heading(one.name, one.state, one.level, right, inner), "  ")
        lines += indent(_problems(one.problems[:1], inner.narrowed(2)), "    ")
    del snap, rates
    return lines


# The store.


def _store(store: Store, snap: Snapshot, rates: Rates, look: Look) -> Lines:
    inner = look.narrowed(2)
    right = _behind(store)
    body = _problems(store.problems, inner)
    if store.sync is not None and store.state == "syncing":
        body += _sync(store.sync, inner)
    body += row("mirror", _mirror(store, snap, inner), inner)
    body += row("inbox", [Text(amount(store.arrived.files, store.arrived.bytes))], inner)
    if store.received_number is not None:
        chunks = [Text(f"through file {store.received_number:,}")]
        if store.waiting.files:
            chunks.append(Text(f"{amount(store.waiting.files, store.waiting.bytes)} to apply"))
        body += row("received", chunks, inner)
    body += row("applied", _applied_chunks(store), inner)
    values = rates.get((store.path,), ())
    if values:
        speed = [Text(f"{values[-1]:,.0f} records/s"), _spark(values, inner, "green")]
        body += row("rate", speed, inner)
    body += _refused(store, inner)
    free = format_bytes(store.free_bytes) if store.free_bytes is not None else "unknown"
    body += row("disk", [Text(f"{free} free")], inner)
    if store.source_time_ns:
        heard = f"last heard at {look.clock(store.source_time_ns, snap.taken_ns)}"
        body += row("source", [Text(heard, style="dim")], inner)
    return _heading(store.path, store.state, store.level, right, look) + indent(body, "  ")


def _mirror(store: Store, snap: Snapshot, look: Look) -> list[Text]:
    if not store.volumes:
        return [Text("nothing yet")]
    size = format_bytes(sum(volume.size for volume in store.volumes))
    chunks = [Text(f"{_count(len(store.volumes), 'volume')} · {size}")]
    if store.mirror_time_ns:
        chunks.append(Text(f"as of {look.clock(store.mirror_time_ns, snap.taken_ns)}"))
    return chunks


def _applied_chunks(store: Store) -> list[Text]:
    if not store.applied_number:
        return [Text("nothing yet")]
    return [
        Text(f"through file {store.applied_number:,}"),
        Text(f"record {store.applied_seq:,}"),
        Text(f"epoch {store.epoch}", style="dim"),
    ]


def _refused(store: Store, look: Look) -> Lines:
    """Return what is missing, damaged and set aside: one quiet line where nothing is."""
    if not (store.missing or store.damaged or store.quarantined):
        return row("checks", [Text("nothing missing, damaged or set aside")], look)
    lines: Lines = []
    lines += row("missing", _listed([f"file {n:,}" for n in store.missing], "yellow"), look)
    lines += row("damaged", _listed(store.damaged, "yellow"), look)
    aside = f"{files(store.quarantined)} in quarantine" if store.quarantined else ""
    lines += row("set aside", [Text(aside, style="yellow")] if aside else [Text("none")], look)
    for name, reason in store.quarantine[:3]:
        lines += paragraph(f"{name}: {reason}", "dim", look, " " * 10, " " * 10)
    return lines


def _listed(names: Sequence[str], style: str) -> list[Text]:
    if not names:
        return [Text("none")]
    shown = [Text(safe(name), style=style) for name in names[:6]]
    return [*shown, Text(f"and {len(names) - 6:,} more", style=style)] if len(names) > 6 else shown  # noqa: PLR2004


def _store_brief(store: Store, snap: Snapshot, rates: Rates, look: Look) -> Lines:
    lines = _heading(store.path, store.state, store.level, _behind(store), look)
    del snap, rates
    return lines + indent(_problems(store.problems[:1], look.narrowed(2)), "  ")


# Both.


def _heading(name: str, state: str, level: Level, right: Text, look: Look) -> Lines:
    mark, style = _MARKS[level]
    tail = f"  {safe(state)}"
    shown = middle(safe(name), max(8, look.width - len(tail) - 2))
    left = Text.assemble((f"{mark} ", style), (shown, "bold"), (tail, style))
    return between(left, right, look)


def _problems(problems: Sequence[Problem], look: Look) -> Lines:
    lines: Lines = []
    for problem in problems:
        mark, style = _MARKS[problem.level]
        lines += paragraph(problem.text, style, look, f"{mark} ", "  ")
        if problem.hint:
            lines += paragraph(problem.hint, "", look, "→ ", "  ")
    return lines


def _behind(one: Destination | Store) -> Text:
    lag = one.lag
    if one.sync is not None and one.sync.total_bytes:
        return Text(f"{min(1, one.sync.done_bytes / one.sync.total_bytes):.0%} copied")
    if lag.seconds is None or (one.sync is not None and not lag.files):
        return Text()
    if not lag.seconds and not lag.files:
        return Text("up to date", style="green" if one.level < Level.WARN else "")
    return Text(f"{format_seconds(lag.seconds)} behind")


def _spark(values: Sequence[float], look: Look, style: str) -> Text:
    return spark(values, min(_SPARK_WIDTH, look.width - 10), style)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
