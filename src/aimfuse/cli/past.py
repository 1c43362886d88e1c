"""`history` and `restore`: what of a store's past can be had, and having it."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from aimfuse.cli.arguments import JsonOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.cli.places import (
    DestinationOption,
    IdentityOption,
    KnownHostsOption,
    Place,
    PlaceArgument,
    SshConfigOption,
    reached,
)
from aimfuse.cli.progress import shown_progress
from aimfuse.errors import UsageError
from aimfuse.units import SECOND_NS, counted, format_bytes, format_seconds


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command("history")(history)
    app.command("restore")(restore)


def history(
    store: PlaceArgument,
    as_json: JsonOption = False,
    dest: DestinationOption = None,
    identity: IdentityOption = None,
    known_hosts: KnownHostsOption = None,
    ssh_config: SshConfigOption = None,
) -> None:
    """Show how far back a store's past reaches, and why no further."""
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.replay.past import describe  # noqa: PLC0415

        with reached(Place(store, dest, tuple(identity or ()), known_hosts, ssh_config)) as at:
            said = describe(at.disk, at.path, at.look) | {"store": at.name}
        typer.echo(json.dumps(said, indent=2) if as_json else "\n".join(_lines(said)))


def restore(
    store: PlaceArgument,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The file to make; a directory for several volumes, or with a / at its end.",
        ),
    ],
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="POINT",
            help="A time, an age (5 minutes ago), a position (1:4711), a bookmark. Default: now.",
        ),
    ] = None,
    before: Annotated[
        bool, typer.Option("--before/--after", help="Without the record at POINT, or with it.")
    ] = False,
    volume: Annotated[
        str | None, typer.Option("--volume", metavar="NAME", help="Only this volume.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and read how much.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace PATH if it exists.")] = False,
    as_json: JsonOption = False,
    dest: DestinationOption = None,
    identity: IdentityOption = None,
    known_hosts: KnownHostsOption = None,
    ssh_config: SshConfigOption = None,
) -> None:
    """Restore a point of the past to new files, also while the store is replayed.

    PATH appears when it is whole. From another host an interrupted one goes on when it is run
    again; name the point with --at then. Exit code 15: the past does not go back to that point.
    """  # fmt: skip
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.replay.point import parse_at  # noqa: PLC0415
        from aimfuse.replay.restore import Request, restore_from  # noqa: PLC0415

        wanted = parse_at(at, datetime.now().astimezone(), before=before)
        request = Request(Path(output), wanted, volume, output.endswith("/"), force)
        place = Place(store, dest, tuple(identity or ()), known_hosts, ssh_config)
        with reached(place) as at_store, shown_progress() as report:
            said = restore_from(at_store, request, report, dry_run=dry_run) | {
                "store": at_store.name
            }
        typer.echo(json.dumps(said, indent=2) if as_json else "\n".join(_restored(said)))


def check_local(store: Path) -> None:
    """Refuse a URL where only a directory of this host will do."""
    if re.match(r"[a-z]+:/", str(store)):
        hint = "Run it on the store's host, or on a copy of the store."
        raise UsageError(f"{store} is no directory of this host", hint=hint)


_NEWEST = {
    False: ", the newest that is applied here",
    True: ", where it was promoted: what was written since is in its mount",
}
"""What is said of the newest state, by whether the store was promoted."""


def _restored(said: dict[str, Any]) -> list[str]:
    reads = said["reads"]
    done = "would restore" if said["dry_run"] else "restored"
    mirror, undo = format_bytes(reads["mirror_bytes"]), format_bytes(reads["undo_bytes"])
    return [
        f"{done} {said['position']} in file {said['file']}, {format_time(said['time_ns'])}"
        + (_NEWEST[said["promoted"]] if said["newest"] else "")
        + (", received here and not applied yet" if said["ahead"] else ""),
        *(f"  {one['name']}, {format_bytes(one['size'])}" for one in said["volumes"]),
        f"to {said['output']}" + ("/" if said["directory"] else ""),
        f"from {mirror} of the mirror and {counted(reads['undo_files'], 'undo file')}, {undo}",
    ]


def _lines(said: dict[str, Any]) -> list[str]:
    lines = [f"{said['store']}: {said['phase']}"]
    oldest, newest = said["oldest"], said["newest"]
    if oldest and newest:
        lines += [f"from   {_point(oldest)}", f"to     {_point(newest)}{_span(oldest, newest)}"]
    settings = said["settings"]
    limit = f"{format_bytes(settings['keep_size'])}, {format_seconds(settings['keep_s'])}"
    lines.append(
        f"holds  {counted(said['files'], 'file')}, {format_bytes(said['bytes'])}; at most {limit}"
        if settings["keep_s"]
        else "holds  nothing: history is switched off (keep = 0)"
    )
    lines += [
        f"       {'no further back' if oldest else 'no state of it can be had'}: {gap['why']}"
        for gap in said["gaps"]
    ]
    if rewound := said.get("rewound"):
        size = f"{counted(rewound['files'], 'file')}, {format_bytes(rewound['bytes'])}"
        lines.append(
            f"       {size} of it are of what was gone back over, from "
            f"{rewound['newest']['position']} to {rewound['fork']['position']}"
        )
    lines += [f"read   {_reader(one)}" for one in said["readers"]]
    if said["problem"]:
        lines.append(f"       {said['problem']}")
    lines += [
        f"bookmark {one['label']!r} at {one['position']}, {format_time(one['time_ns'])}"
        for one in said["bookmarks"]
    ]
    return lines


def _reader(one: dict[str, Any]) -> str:
    return (
        f"from afar by {one['who'] or 'somebody'} (user id {one['owner']} there), since "
        f"{format_time(one['since_ns'])}, heard of at {format_time(one['heard_ns'])}: "
        f"files {one['first']} to {one['last']} are kept for that, {format_bytes(one['bytes'])}"
    )


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
