"""`promote`: let a store go on by itself as a source."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from aimfuse.cli.arguments import JsonOption, StoreArgument
from aimfuse.cli.boundary import exit_on_error
from aimfuse.cli.past import format_time
from aimfuse.cli.progress import shown_progress
from aimfuse.units import format_bytes, format_seconds


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("promote")(promote)


def promote(
    store: StoreArgument,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="POINT",
            help="Go back in place first: a time, an age (5 minutes ago), a position (1:4711), a "
            "bookmark. Default: all that has arrived.",
        ),
    ] = None,
    before: Annotated[
        bool, typer.Option("--before/--after", help="Without the record at POINT, or with it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say where it would go on, and change nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also from a mirror that may be no state of its source, and while its past is "
            "being read.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a store a source that can be mounted, when its own is gone or wanted elsewhere.

    Needs no other host. All that has arrived is applied first; a replayer may be running, and goes
    on afterwards. From then on the store takes nothing from its old source. It cannot be undone.
    """
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.disk import process_disk  # noqa: PLC0415
        from aimfuse.replay.point import parse_at  # noqa: PLC0415
        from aimfuse.replay.promote import Request  # noqa: PLC0415
        from aimfuse.replay.promote import promote as promote_store  # noqa: PLC0415

        wanted = parse_at(at, datetime.now().astimezone(), before=before)
        with shown_progress() as report:
            request = Request(wanted, force=force, dry_run=dry_run)
            said = promote_store(process_disk(), store.absolute(), request, report)
        typer.echo(json.dumps(said, indent=2) if as_json else "\n".join(_lines(store, said)))


def _lines(store: Path, said: dict[str, Any]) -> list[str]:
    if said["dry_run"]:
        return _foretold(store, said)
    done = "is promoted already" if said["already"] else "promoted"
    where = f"{said['position']}, {format_time(said['time_ns'])}"
    lines = [
        f"{store}: {done}, goes on as epoch {said['epoch']} behind {where}",
        *(f"  {one}" for one in said["warnings"]),
        *_lacking(said["lacking"]),
        *_rewound(said),
        *(f"  {one['name']}, {format_bytes(one['size'])}" for one in said["volumes"]),
    ]
    return [*lines, f"Mount it: aimfuse mount {store} MOUNTPOINT"]


def _foretold(store: Path, said: dict[str, Any]) -> list[str]:
    if said["already"]:
        return [f"{store}: is promoted already"]
    lines = [
        f"{store}: would go on behind {said['position']}, {format_time(said['time_ns'])}",
        *_lacking(said["lacking"]),
    ]
    if files := said["waiting"]["files"]:
        lines.append(f"  {files} files that have arrived would be applied first")
    if files := said["rewound"]["files"]:
        size = format_bytes(said["rewound"]["bytes"])
        lines.append(f"  {files} files would be taken back, {size} of history")
    return lines


def _lacking(lacking: dict[str, Any]) -> list[str]:
    """Say what is known not to be here, and up to when the source was heard."""
    if lacking["heard_ns"] is None:
        return ["  missing: unknown, the source never said how far it is"]
    heard = f"the source was last heard at {format_time(lacking['heard_ns'])}"
    if lacking["records"] == 0 and not lacking["files"]:
        lines = [f"  missing: nothing that is known; {heard}"]
    else:
        parts = []
        if lacking["records"] is not None:
            parts.append(f"{lacking['records']} records up to {lacking['position']}")
        if lacking["files"]:
            parts.append(f"{lacking['files']} files")
        if lacking["bytes"] is not None:
            parts.append(f"at most {format_bytes(lacking['bytes'])}")
        if lacking["seconds"] is not None:
            parts.append(format_seconds(lacking["seconds"]))
        lines = [f"  missing: {', '.join(parts)}; {heard}"]
    if lacking["missing"]:
        numbers = ", ".join(map(str, lacking["missing"]))
        lines.append(f"  files that did not come, though later ones did: {numbers}")
    if lacking["damaged"]:
        lines.append(f"  files that came damaged: {', '.join(lacking['damaged'])}")
    return lines


def _rewound(said: dict[str, Any]) -> list[str]:
    rewound, lines = said["rewound"], []
    if rewound["kept_files"]:
        lines.append(
            f"  what came behind that, up to {said['newest']['position']}, is kept as "
            f"{rewound['kept_files']} files, {format_bytes(rewound['kept_bytes'])}, in "
            f"{rewound['directory']}, until they are pruned"
        )
    if not said["past"]:
        lines.append(
            "  its past ends here: this file system shares no blocks, so the mirror that is "
            "written to now is all there is"
        )
    return lines
