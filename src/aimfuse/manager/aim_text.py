"""Draw the description of an AIM file for people. Pure."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from aimfuse.manager.layout import Look, finished, indent, middle, paragraph, row, safe
from aimfuse.units import format_bytes

_STYLES = {"sound": ("●", "green"), "unsealed": ("▲", "yellow"), "damaged": ("✖", "bold red")}

Description = dict[str, Any]


def render_file(found: Description, look: Look) -> RenderableType:
    """Return what `aimfuse inspect` prints of what `journal.inspect.describe` found."""
    mark, style = _STYLES[found["verdict"]]
    lines = paragraph(found["file"], "bold", look)
    lines += paragraph(found["summary"], style, look, f"{mark} ", "  ")
    inner = look.narrowed(2)
    if found["identity"]:
        lines += indent(_identity(found["identity"], inner, look), "  ")
    lines += indent(_contents(found, inner, look), "  ")
    if found["seal"]:
        lines += indent(_seal(found["seal"], inner), "  ")
    if found["iocbs"]:
        lines.append(Text())
        for iocb in found["iocbs"]:
            lines += indent(_iocb(iocb, inner, look), "  ")
        hidden = found["records"] + found["marks"] - len(found["iocbs"])
        if hidden > 0:
            lines.append(Text(f"  … and {hidden:,} more", style="dim"))
    return Group(*finished(lines, look))


def _identity(identity: Description, inner: Look, look: Look) -> list[Text]:
    kind = "journal file" if identity["kind"] == "JOURNAL" else f"sync {identity['sync_id']}, file"
    lines = row("what", [Text(f"{kind} {identity['number']}"), Text(f"epoch {identity['epoch']}")],
                inner)  # fmt: skip
    lines += row("group", [Text(identity["group"])], inner)
    lines += row("made", [Text(look.clock(identity["created_ns"], 0))], inner)
    parent = identity["parent"]
    if parent["epoch"]:
        chunks = [Text(f"{parent['epoch']}:{parent['seq']}"), Text(parent["digest"], style="dim")]
        lines += row("parent", chunks, inner)
    return lines


def _contents(found: Description, inner: Look, look: Look) -> list[Text]:
    kinds = [Text(f"{count:,} {name}") for name, count in found["types"].items()]
    lines = row("holds", kinds or [Text("nothing")], inner)
    size = f"{format_bytes(found['bytes'])} in all"
    chunks = [Text(size), Text(f"{format_bytes(found['payload_bytes'])} of data")]
    lines += row("size", chunks, inner)
    seal = found["seal"]
    if seal and seal["record_count"]:
        span = Text(f"{seal['first_seq']:,} to {seal['last_seq']:,}")
        lines += row("records", [span], inner)
        first, last = seal["first_time_ns"], seal["last_time_ns"]
        when = [Text(f"{look.clock(first, 0)} to"), Text(look.clock(last, 0))]
        lines += row("written", when, inner)
    if found["committed_seq"]:
        lines += row("durable", [Text(f"through record {found['committed_seq']:,}")], inner)
    return lines


def _seal(seal: Description, inner: Look) -> list[Text]:
    lines = row("digest", [Text(seal["digest"])], inner)
    lines += row("previous", [Text(seal["prev_digest"], style="dim")], inner)
    return lines + row("next", [Text(f"epoch {seal['next_epoch']}, file {seal['next_number']}")],
                       inner)  # fmt: skip


def _iocb(iocb: Description, inner: Look, look: Look) -> list[Text]:
    number = "" if iocb["mark"] else f"{iocb['seq']:,}"
    chunks = [Text(f"{iocb['type']:9}", style="dim" if iocb["mark"] else "")]
    if iocb["volume"]:
        chunks.append(Text(f"volume {iocb['volume']}"))
    if iocb["type"] in {"WRITE", "ZERO", "TRUNCATE"}:
        chunks.append(Text(f"at {iocb['offset']:,}"))
        length = iocb["payload_bytes"] if iocb["type"] == "WRITE" else iocb["length"]
        chunks.append(Text(f"+ {length:,}" if iocb["type"] != "TRUNCATE" else f"to {length:,}"))
    if "says" in iocb:
        chunks.append(Text(middle(safe(_says(iocb["says"])), look.width), style="cyan"))
    return row(f"{number:>12}  ", chunks, inner, 14)


def _says(meaning: object) -> str:
    if not isinstance(meaning, dict):
        return str(meaning)
    if isinstance(volumes := meaning.get("volumes"), list):
        shown = (f"{one['id']} {one['name']} {format_bytes(one['size'])}" for one in volumes)
        return ", ".join(shown) or "no volumes"
    if "durable_seq" in meaning:
        return f"all through {meaning['durable_seq']:,} durable before"
    return ", ".join(f"{key} {value}" for key, value in meaning.items())
