"""Put text into lines of a given width: rows that wrap between words, bars, sparklines.

Everything is pure: the same arguments give the same lines. No line is ever wider than asked
for, and nothing that came from outside reaches the terminal as a control sequence.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

from rich.cells import cell_len
from rich.text import Text

from aimfuse.units import SECOND_NS, format_bytes

TEXT_CHARS_MAX = 2000
_SPARKS = " ▁▂▃▄▅▆▇█"
_GAP = "  "
_ASCII = str.maketrans({
    "█": "#", "░": ".", "·": "-", "…": "~", "●": "*", "○": "o", "▲": "!", "✖": "X", "─": "-",
    "→": ">",
    "▁": "_", "▂": "_", "▃": "-", "▄": "-", "▅": "=", "▆": "=", "▇": "#",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """What the terminal can show; `zone` None is the local time zone."""

    width: int = 80
    unicode: bool = True
    zone: tzinfo | None = None

    def narrowed(self, by: int) -> "Look":
        """Return the look of a part that is indented by so many columns."""
        return Look(max(1, self.width - by), self.unicode, self.zone)

    def clock(self, time_ns: int, now_ns: int) -> str:
        """Return the time of day, with the date where that is not today."""
        try:
            then = datetime.fromtimestamp(time_ns / SECOND_NS, self.zone)
            today = datetime.fromtimestamp(now_ns / SECOND_NS, self.zone).date()
        except (OverflowError, ValueError, OSError):
            return "at no possible time"
        return then.strftime("%H:%M:%S" if then.date() == today else "%Y-%m-%d %H:%M:%S")


def safe(text: str) -> str:
    r"""Return *text* with everything that could steer a terminal shown as ``\x1b``.

    Controls, direction marks, line separators, unpaired surrogates and unassigned or private
    characters; very long text is cut.
    """
    shown = text[:TEXT_CHARS_MAX]
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(char if _harmless(char) else _escaped(char) for char in shown)


def _harmless(char: str) -> bool:
    return unicodedata.category(char)[0] not in {"C", "Z"} or char == " "


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def finished(lines: Iterable[Text], look: Look) -> list[Text]:
    """Return the lines in characters that the output can encode, none wider than it is."""
    done = []
    for line in lines:
        if line.cell_len > look.width:  # A terminal too narrow for any layout.
            line = line.copy()  # noqa: PLW2901
            line.truncate(look.width)
        done.append(line if look.unicode else _to_ascii(line))
    return done


def _to_ascii(line: Text) -> Text:
    text = line.plain.translate(_ASCII)
    if not text.isascii():
        text = text.encode("ascii", "replace").decode()
    if len(text) != len(line.plain):  # pragma: no cover - one for one by construction
        return Text(text)
    return Text(text, spans=list(line.spans))


def middle(text: str, width: int) -> str:
    """Return *text* in at most *width* columns: of what is too long the middle goes."""
    if cell_len(text) <= width:
        return text
    head, tail = (width - 1) // 2, width - 1 - (width - 1) // 2
    return f"{_fit(text, head)}…{_fit(text[::-1], tail)[::-1]}"


def _fit(text: str, width: int) -> str:
    used = 0
    for index, char in enumerate(text):
        used += cell_len(char)
        if used > width:
            return text[:index]
    return text


def row(label: str, chunks: Sequence[Text], look: Look, label_width: int = 10) -> list[Text]:
    """Return a label and what belongs to it; a line breaks only between chunks.

    A chunk that is wider than a line loses its middle.
    """
    room = max(1, look.width - label_width)
    lines: list[Text] = []
    line = Text(label.ljust(label_width), style="dim")
    used = 0
    for chunk in chunks:
        if not chunk.plain:
            continue
        if chunk.cell_len > room:
            chunk = Text(middle(chunk.plain, room), style=_style(chunk))  # noqa: PLW2901
        need = chunk.cell_len + (len(_GAP) if used else 0)
        if used and used + need > room:
            lines.append(line)
            line, used, need = Text(" " * label_width), 0, chunk.cell_len
        line.append_text(Text(_GAP) + chunk if used else chunk)
        used += need
    return [*lines, line]


def _style(text: Text) -> str:
    return str(text.style or (text.spans[0].style if text.spans else ""))


def paragraph(text: str, style: str, look: Look, first: str = "", rest: str = "") -> list[Text]:
    """Return *text* wrapped at words, behind *first* and then *rest*."""
    lines: list[Text] = []
    prefix, line = first, ""
    for word in safe(text).split(" "):
        while word:
            room = max(1, look.width - cell_len(prefix))
            sep = " " if line else ""
            if cell_len(line + sep + word) <= room:
                line, word = line + sep + word, ""  # noqa: PLW2901
            elif line:
                lines.append(Text(prefix + line, style=style))
                prefix, line = rest, ""
            else:  # A word wider than a line, such as a path: fold it.
                part = _fit(word, room) or word[0]
                lines.append(Text(prefix + part, style=style))
                prefix, word = rest, word[len(part) :]  # noqa: PLW2901
    if line or not lines:
        lines.append(Text(prefix + line, style=style))
    return lines


def between(left: Text, right: Text, look: Look) -> list[Text]:
    """Return one line with *left* and *right* at its ends, or two where they do not fit."""
    if not right.plain and left.cell_len <= look.width:
        return [left]
    free = look.width - left.cell_len - right.cell_len
    if free >= len(_GAP):
        return [left + Text(" " * free) + right]
    if left.cell_len > look.width:
        left = Text(middle(left.plain, look.width), style=_style(left))
    lines = [left]
    if right.plain and right.cell_len <= look.width:
        lines.append(Text(" " * (look.width - right.cell_len)) + right)
    return lines


def indent(lines: Iterable[Text], by: str) -> list[Text]:
    """Return the lines behind a margin."""
    return [Text(by) + line for line in lines]


def beside(left: Sequence[Text], right: Sequence[Text], width: int, gap: int) -> list[Text]:
    """Return two columns of lines, the left one *width* wide."""
    lines = []
    for index in range(max(len(left), len(right))):
        line = left[index].copy() if index < len(left) else Text()
        if index < len(right):
            line.append(" " * (width - line.cell_len + gap))
            line.append_text(right[index])
        lines.append(line)
    return lines


def bar(part: float, whole: float, width: int, style: str) -> Text:
    """Return a bar that is filled as far as *part* is of *whole*."""
    ratio = min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
    full = round(ratio * width)
    return Text.assemble(("█" * full, style), ("░" * (width - full), "dim"))


def spark(values: Sequence[float], width: int, style: str) -> Text:
    """Return the newest *width* values as a line of little bars, the highest one full."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return Text("▁" * len(shown), style="dim")
    steps = len(_SPARKS) - 2
    marks = (_SPARKS[1 + round(max(0.0, value) / top * steps)] for value in shown)
    return Text("".join(marks), style=style)


def files(count: int) -> str:
    """Return a number of files for people."""
    return "1 file" if count == 1 else f"{count:,} files"


def amount(count: int, size: int) -> str:
    """Return files and bytes for people."""
    return f"{files(count)} · {format_bytes(size)}" if count else "none"
