"""Draw a source: its journal, its spool, and each destination with every stage of the way."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.text import Text

from aimfuse.manager.destination_facts import Destination, Upload
from aimfuse.manager.layout import amount, bar, beside, files, indent, middle, row, safe
from aimfuse.manager.model import Lag
from aimfuse.manager.scene import (
    BAR_WIDTH,
    MARGIN,
    Detail,
    Lines,
    Scene,
    behind,
    heading,
    held_lines,
    problem_lines,
    records_lines,
    sparkline,
    sync_lines,
)
from aimfuse.manager.source_facts import Source
from aimfuse.manager.verified import Scrub
from aimfuse.units import counted, format_bytes, format_seconds

SPOOL_SOON_S = 4 * 3600.0
TWO_COLUMNS_WIDTH = 120
UPLOADS_SHOWN_MAX = 8
_GUTTER = 4
_SPOOL_STYLES = {"warn": "yellow", "full": "red"}
"""By the driver's marks. What is fine needs no word."""

_Block = Callable[[Scene], Lines]


def draw_source(source: Source, scene: Scene) -> Lines:
    """Return the lines of a source and of all its destinations."""
    inner = scene.narrowed()
    body: Lines = []
    if scene.detail is Detail.FULL:
        body += _volumes(source, inner)
    body += problem_lines(source.problems, inner)
    if scene.detail is Detail.FULL:
        body += _promoted(source, inner)
        body += _journal(source, inner)
    if scene.detail > Detail.LINE:
        values = scene.rates.get((source.image,), ())
        body += records_lines("writes", values, inner.look, "cyan")
    body += _spool(source, inner)
    if scene.detail is Detail.FULL and source.scrub is not None:
        body += _scrub(source.scrub, inner)
    lines = heading(source.image, source.state, source.level, Text(), scene.look)
    lines += indent(body, MARGIN)
    if not source.destinations:
        return [*lines, Text(f"{MARGIN}no destinations", style="dim")]
    return lines + _columns([_block(one, source) for one in source.destinations], scene)


def _volumes(source: Source, scene: Scene) -> Lines:
    where = f"on {safe(source.mountpoint)}" if source.mountpoint else ""
    size = format_bytes(sum(volume.size for volume in source.volumes))
    chunks = [Text(where), Text(counted(len(source.volumes), "volume")), Text(size)]
    return row("mounted" if source.mounted else "volumes", chunks, scene.look)


def _promoted(source: Source, scene: Scene) -> Lines:
    """Return since when what was a mirror is the source; nothing for any other source."""
    if not source.promoted_ns:
        return []
    chunks = [Text(f"at {scene.clock(source.promoted_ns)}"), Text("a mirror before", style="dim")]
    return row("promoted", chunks, scene.look)


def _journal(source: Source, scene: Scene) -> Lines:
    waiting = source.accepted_seq - source.durable_seq
    chunks = [
        Text(counted(source.accepted_seq, "record")),
        Text("all durable" if waiting <= 0 else f"{waiting:,} not durable"),
        Text(f"epoch {source.epoch}", style="dim"),
    ]
    return row("journal", chunks, scene.look)


def _spool(source: Source, scene: Scene) -> Lines:
    used, most = source.spool.bytes, source.spool_bytes_max
    ratio = used / most if most else 0.0
    style = _SPOOL_STYLES.get(source.spool_level, "green")
    chunks = []
    if most:
        chunks = [bar(used, most, BAR_WIDTH, style), Text(f"{ratio:.0%}", style=style)]
    of = f" of {format_bytes(most)}" if most else ""
    chunks += [Text(format_bytes(used) + of), Text(files(source.spool.files))]
    if source.spool_level in _SPOOL_STYLES:
        chunks.append(Text(source.spool_level, style=style))
    if source.spool_free_bytes is not None and scene.detail is Detail.FULL:
        chunks.append(Text(f"{format_bytes(source.spool_free_bytes)} free on disk", style="dim"))
    full_in = [s for one in source.destinations if (s := one.forecast.full_in_s) is not None]
    if full_in and source.spool_level != "full":
        soon = min(full_in)
        text = f"full in {format_seconds(soon)} at this rate" if soon >= 1 else "full at any moment"
        chunks.append(Text(text, style="yellow" if soon < SPOOL_SOON_S else ""))
    return row("spool", chunks, scene.look)


def _scrub(scrub: Scrub, scene: Scene) -> Lines:
    chunks = [Text(f"{scrub.done_ratio:.0%} of its round")]
    if scrub.finished_ns:
        chunks.append(Text(f"the last one ended at {scene.clock(scrub.finished_ns)}", style="dim"))
    return row("scrub", chunks, scene.look)


def _columns(blocks: Sequence[_Block], scene: Scene) -> Lines:
    """Return the blocks below each other, or in two columns where there is room for two."""
    lines: Lines = []
    apart = [] if scene.detail is Detail.LINE else [Text()]
    if scene.look.width < TWO_COLUMNS_WIDTH or len(blocks) == 1:
        for draw in blocks:
            lines += [*apart, *indent(draw(scene.narrowed()), MARGIN)]
        return lines
    half = (scene.look.width - len(MARGIN) - _GUTTER) // 2
    part = replace(scene, look=replace(scene.look, width=half))
    for index in range(0, len(blocks), 2):
        pair = [draw(part) for draw in blocks[index : index + 2]]
        right = pair[1] if len(pair) > 1 else []
        lines += [*apart, *indent(beside(pair[0], right, half, _GUTTER), MARGIN)]
    return lines


def _block(one: Destination, source: Source) -> _Block:
    def draw(scene: Scene) -> Lines:
        right = behind(one)
        if scene.detail is Detail.LINE and one.sync is not None and one.sync.eta_s is not None:
            right.append(f", {format_seconds(one.sync.eta_s)} left")
        if scene.detail is Detail.LINE and one.rate_bytes_s:
            right.append(f"  {format_bytes(one.rate_bytes_s)}/s")
        lines = heading(one.name, one.state, one.level, right, scene.look)
        inner = scene.narrowed()
        body: Lines = []
        if scene.detail is Detail.FULL and one.url:
            body += row("", [Text(safe(one.url), style="dim")], inner.look, 0)
        body += problem_lines(one.problems, inner)
        if scene.detail > Detail.LINE:
            body += _stages(one, source, inner)
        return lines + indent(body, MARGIN)

    return draw


def _stages(one: Destination, source: Source, scene: Scene) -> Lines:
    look, full = scene.look, scene.detail is Detail.FULL
    lines = sync_lines(one.sync, look) if one.sync is not None else []
    lines += _kept(one, scene)
    if full:
        lines += row("queued", [Text(amount(one.queued.files, one.queued.bytes))], look)
        lines += _in_flight(one.in_flight, scene)
        lines += _received(one, scene)
    else:
        lines += _on_the_way(one, scene)
    lines += held_lines(one.held, scene)
    lines += _applied(one, scene)
    if one.lag.seconds is not None and full:
        lines += _lag(one.lag, scene)
    values = scene.rates.get((source.image, one.name), ())
    if one.rate_bytes_s or values:
        speed = Text(f"{format_bytes(one.rate_bytes_s)}/s")
        lines += row("rate", [speed, sparkline(values, look, "green")], look)
    return lines


def _kept(one: Destination, scene: Scene) -> Lines:
    """Return what stays in the spool for it, and what becomes of that."""
    chunks = []
    if one.state == "waiting" and one.opens:
        chunks.append(Text(f"sends again {safe(one.opens)}"))
    if one.pinned.files:
        chunks.append(Text(f"{amount(one.pinned.files, one.pinned.bytes)} in the spool"))
    if one.folded_bytes:
        chunks.append(Text(f"{format_bytes(one.folded_bytes)} to be copied", style="yellow"))
    if one.forecast.drained_in_s is not None:
        chunks.append(Text(f"drained in {format_seconds(one.forecast.drained_in_s)}"))
    return row("kept", chunks, scene.look) if chunks else []


def _received(one: Destination, scene: Scene) -> Lines:
    chunks = [Text(amount(one.received.files, one.received.bytes))]
    if one.received_number:
        chunks.append(Text(f"through file {one.received_number:,}"))
    if one.store_free_bytes is not None:
        chunks.append(Text(f"{format_bytes(one.store_free_bytes)} free there", style="dim"))
    return row("received", chunks, scene.look)


def _on_the_way(one: Destination, scene: Scene) -> Lines:
    """Return the stages before the last in one row."""
    total = sum(upload.bytes for upload in one.in_flight)
    stages = (
        (one.queued.files, one.queued.bytes, "queued"),
        (len(one.in_flight), total, "in flight"),
        (one.received.files, one.received.bytes, "received"),
    )
    chunks = [Text(f"{what} {amount(count, size)}") for count, size, what in stages if count]
    return row("under way", chunks or [Text("nothing")], scene.look)


def _in_flight(uploads: Sequence[Upload], scene: Scene) -> Lines:
    look = scene.look
    total = sum(upload.bytes for upload in uploads)
    lines = row("in flight", [Text(amount(len(uploads), total))], look)
    for upload in uploads[:UPLOADS_SHOWN_MAX]:
        ratio = upload.sent / upload.bytes if upload.bytes else 0.0
        progress = bar(upload.sent, upload.bytes, BAR_WIDTH // 2, "cyan")
        progress.append(f" {min(ratio, 1):4.0%}")
        name = middle(safe(upload.name).removesuffix(".aim"), max(8, look.width - 10))
        lines += row("", [Text(name, style="dim"), progress], look)
    if len(uploads) > UPLOADS_SHOWN_MAX:
        lines += row("", [Text(f"and {len(uploads) - UPLOADS_SHOWN_MAX} more", style="dim")], look)
    return lines


def _applied(one: Destination, scene: Scene) -> Lines:
    if not one.applied_number:
        return row("applied", [Text("nothing yet")], scene.look)
    chunks = [Text(f"through file {one.applied_number:,}")]
    if one.applied_seq:
        chunks.append(Text(f"record {one.applied_seq:,}"))
    if one.mirror_time_ns:
        chunks.append(Text(f"mirror as of {scene.clock(one.mirror_time_ns)}"))
    return row("applied", chunks, scene.look)


def _lag(lag: Lag, scene: Scene) -> Lines:
    chunks = [Text(format_seconds(lag.seconds or 0.0))]
    if lag.bytes is not None:
        chunks.append(Text(format_bytes(lag.bytes)))
    if lag.files is not None:
        chunks.append(Text(files(lag.files)))
    return row("lag", chunks, scene.look)
