"""Draw what sources and stores have in common: headings, problems, speeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from rich.text import Text

from aimfuse.manager.destination_facts import Destination
from aimfuse.manager.held import Held
from aimfuse.manager.layout import Look, bar, between, files, middle, paragraph, row, safe, spark
from aimfuse.manager.model import Level, Problem, Sync
from aimfuse.manager.store_facts import Store
from aimfuse.units import counted, format_bytes, format_seconds

Rates = Mapping[tuple[str, ...], Sequence[float]]
"""Per thing shown, how fast it went at each look: bytes or records per second, newest last."""

Lines = list[Text]

BAR_WIDTH = 16
MARGIN = "  "
_SPARK_WIDTH = 30
_LABEL_WIDTH = 10
MARKS = {
    Level.IDLE: ("○", "dim"), Level.FINE: ("●", "green"), Level.BUSY: ("●", "cyan"),
    Level.WARN: ("▲", "yellow"), Level.BAD: ("✖", "bold red"),
}  # fmt: skip


class Detail(IntEnum):
    """How much of each thing there is room for."""

    LINE = 0
    SHORT = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class Scene:
    """The circumstances of a drawing: the time, the terminal, the room, the last minute."""

    now_ns: int
    look: Look
    detail: Detail = Detail.FULL
    rates: Rates = field(default_factory=dict)

    def narrowed(self, by: int = len(MARGIN)) -> "Scene":
        """Return the scene of a part that is indented by so many columns."""
        return replace(self, look=self.look.narrowed(by))

    def clock(self, time_ns: int) -> str:
        """Return a time for people."""
        return self.look.clock(time_ns, self.now_ns)


def heading(name: str, state: str, level: Level, right: Text, look: Look) -> Lines:
    """Return the line that names a thing, its state, and at the right how it is."""
    mark, style = MARKS[level]
    tail = f"  {safe(state)}"
    shown = middle(safe(name), max(8, look.width - len(tail) - 2))
    left = Text.assemble((f"{mark} ", style), (shown, "bold"), (tail, style))
    return between(left, right, look)


def problem_lines(problems: Sequence[Problem], scene: Scene) -> Lines:
    """Return what is wrong and what to do about it; only the first where room is short."""
    lines: Lines = []
    shown = problems if scene.detail > Detail.LINE else problems[:1]
    for problem in shown:
        mark, style = MARKS[problem.level]
        lines += paragraph(problem.text, style, scene.look, f"{mark} ", MARGIN)
        if problem.hint:
            lines += paragraph(problem.hint, "", scene.look, "→ ", MARGIN)
    return lines


STEPS = {
    "journal": "copied, the journal follows",
    "checking": "copied, being checked",
    "switching": "being switched in",
}
"""What is said of a copy once all of it is there."""


def behind(one: Destination | Store) -> Text:
    """Return in a few words how far a mirror is behind."""
    lag = one.lag
    if one.sync is not None and one.sync.step not in {"", "copying"}:
        return Text(STEPS.get(one.sync.step, one.sync.step))
    if one.sync is not None and one.sync.total_bytes:
        return Text(f"{_ratio(one.sync):.0%} copied")
    if lag.seconds is None or (one.sync is not None and not lag.files):
        return Text()
    if not lag.seconds and not lag.files:
        return Text("up to date", style="green" if one.level < Level.WARN else "")
    on_purpose = ", on purpose" if one.held.files or one.held.is_closed else ""
    return Text(f"{format_seconds(lag.seconds)} behind{on_purpose}")


def sync_lines(sync: Sync, look: Look) -> Lines:
    """Return how far a copy of the volumes is, and how long it will take."""
    lines = paragraph(f"because {sync.why}", "", look, "", MARGIN) if sync.why else []
    if sync.step not in {"", "copying"}:
        chunks = [Text(STEPS.get(sync.step, sync.step))]
        if sync.journal_left_bytes:
            left_s = f", {format_seconds(sync.eta_s)}" if sync.eta_s is not None else ""
            chunks.append(Text(f"{format_bytes(sync.journal_left_bytes)}{left_s} left"))
        return row("sync", chunks, look) + lines
    if sync.total_bytes is None:
        return row("sync", [Text(f"{files(sync.files)} of a copy")], look) + lines
    done = min(sync.done_bytes, sync.total_bytes)
    chunks = [
        bar(done, sync.total_bytes, BAR_WIDTH, "cyan"),
        Text(f"{_ratio(sync):.0%}", style="cyan"),
        Text(f"{format_bytes(done)} of {format_bytes(sync.total_bytes)}"),
    ]
    if sync.eta_s is not None:
        chunks.append(Text(f"{format_seconds(sync.eta_s)} left"))
    return row("sync", chunks, look) + lines


def _ratio(sync: Sync) -> float:
    """Return how much of a copy has left; what is sent is a little more than what it brings."""
    return min(1.0, sync.done_bytes / sync.total_bytes) if sync.total_bytes else 1.0


def held_lines(held: Held, scene: Scene) -> Lines:
    """Return what a store holds back on purpose; nothing where it holds nothing back."""
    chunks = []
    for one in held.paused:
        since = f" since {scene.clock(one.since_ns)}" if one.since_ns else ""
        why = f" ({safe(one.reason)})" if one.reason else ""
        chunks.append(Text(f"{one.kind} paused{since}{why}", style="yellow"))
    if held.delay_s:
        chunks.append(Text(f"by a delay of {format_seconds(held.delay_s)}"))
    if held.files:
        chunks.append(Text(counted(held.files, "file")))
    if held.next_ns:
        chunks.append(Text(f"next at {scene.clock(held.next_ns)}"))
    return row("held back", chunks, scene.look) if chunks else []


def records_lines(label: str, values: Sequence[float], look: Look, style: str) -> Lines:
    """Return records per second now and over the last minute; nothing without a history."""
    if not values:
        return []
    return row(label, [Text(f"{values[-1]:,.0f} records/s"), sparkline(values, look, style)], look)


def sparkline(values: Sequence[float], look: Look, style: str) -> Text:
    """Return the last minute as little bars, as many as there is room for."""
    return spark(values, min(_SPARK_WIDTH, look.width - _LABEL_WIDTH), style)
