"""`history`: what of a store's past can be had."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from aimfuse.cli.boundary import exit_on_error
from aimfuse.units import SECOND_NS, format_bytes, format_seconds

StoreArgument = Annotated[
    Path, typer.Argument(metavar="STORE", help="A store: the directory with inbox/ in it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command("history")(history)


def history(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Show how far back a store's past reaches, and why no further."""
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.disk import Disk  # noqa: PLC0415
        from aimfuse.replay.past import describe  # noqa: PLC0415

        said = describe(Disk(), store)
        typer.echo(json.dumps(said, indent=2) if as_json else "\n".join(_lines(said)))


def _lines(said: dict[str, Any]) -> list[str]:
    lines = [f"{said['store']}: {said['phase']}"]
    oldest, newest = said["oldest"], said["newest"]
    if oldest and newest:
        lines += [f"from   {_point(oldest)}", f"to     {_point(newest)}{_span(oldest, newest)}"]
    settings = said["settings"]
    limit = f"{format_bytes(settings['keep_size'])}, {format_seconds(settings['keep_s'])}"
    lines.append(
        f"holds  {said['files']} files, {format_bytes(said['bytes'])}; at most {limit}"
        if settings["keep_s"]
        else "holds  nothing: history is switched off (keep = 0)"
    )
    lines += [f"       no further back: {gap['why']}" for gap in said["gaps"]]
    if said["problem"]:
        lines.append(f"       {said['problem']}")
    lines += [
        f"bookmark {one['label']!r} at {one['position']}, {format_time(one['time_ns'])}"
        for one in said["bookmarks"]
    ]
    return lines


def _point(point: dict[str, Any]) -> str:
    return f"{point['position']} in file {point['file']}, {format_time(point['time_ns'])}"


def _span(oldest: dict[str, Any], newest: dict[str, Any]) -> str:
    if not oldest["time_ns"] or not newest["time_ns"]:
        return ""
    seconds = (newest["time_ns"] - oldest["time_ns"]) / SECOND_NS
    return f", {format_seconds(max(0.0, seconds))} later"


def format_time(time_ns: int | None) -> str:
    """Return a time of the source's clock, as the clock on this wall shows it."""
    if not time_ns:
        return "time unknown"
    seconds = time_ns // SECOND_NS
    shown = datetime.fromtimestamp(seconds).astimezone()
    return f"{shown:%Y-%m-%d %H:%M:%S}.{time_ns % SECOND_NS // 1_000_000:03d}"
