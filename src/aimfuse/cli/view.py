"""`view` and `bisect`: a store's past as files, without copying it."""

import json
import logging
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from aimfuse.cli.arguments import JsonOption, StoreArgument
from aimfuse.cli.background import announce, start_in_background
from aimfuse.cli.boundary import exit_on_error
from aimfuse.cli.past import check_local, format_time
from aimfuse.disk import Disk
from aimfuse.errors import UsageError
from aimfuse.units import format_bytes

LOG_NAME = "view.log"
SCRATCH_DIR = Path("/var/tmp")  # noqa: S108 - files without a name, on a disk

AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="POINT",
        help="A time, an age (5 minutes ago), a position (1:4711), a bookmark. Default: now.",
    ),
]
BeforeOption = Annotated[
    bool, typer.Option("--before/--after", help="Without the record at POINT, or with it.")
]
VolumeOption = Annotated[
    str | None, typer.Option("--volume", metavar="NAME", help="Only this volume.")
]
ScratchDirOption = Annotated[
    Path | None,
    typer.Option(
        "--scratch-dir",
        metavar="DIR",
        help="Where what is written to the scratch lies meanwhile: $TMPDIR, else /var/tmp.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command("view")(view)
    app.command("bisect")(bisect)


def view(
    store: StoreArgument,
    mountpoint: Annotated[
        Path, typer.Argument(metavar="MOUNTPOINT", help="Existing, empty directory.")
    ],
    at: AtOption = None,
    before: BeforeOption = False,
    volume: VolumeOption = None,
    scratch: Annotated[
        bool,
        typer.Option(
            "--scratch",
            help="Let the files be written to; all of it is thrown away at the unmount.",
        ),
    ] = False,
    scratch_dir: ScratchDirOption = None,
    background: Annotated[
        bool,
        typer.Option("--background", help="Return once it is mounted; log: STORE/view.log."),
    ] = False,
    allow_other: Annotated[
        bool, typer.Option("--allow-other", help="Let other users use the mount, too.")
    ] = False,
    as_json: JsonOption = False,
    ready_fd: Annotated[int | None, typer.Option("--ready-fd", hidden=True)] = None,
    while_open: Annotated[int | None, typer.Option("--while-open", hidden=True)] = None,
) -> None:
    """Mount a point of the past at once, as files, also while the store is replayed.

    Nothing is copied, and nothing of the store changes. End it with `aimfuse umount`.
    Exit code 15: the past does not go back to that point.
    """  # fmt: skip
    with exit_on_error():
        check_local(store)
        if not (store / "inbox").is_dir():
            hint = "Name the directory of one store, the one with inbox/ and mirror/ in it."
            raise UsageError(f"{store} is no store", hint=hint)
        if background:
            typer.echo(start_in_background(sys.argv[1:], store / LOG_NAME))
            return
        # Imported when needed: the other commands do without pyfuse3.
        from aimfuse.replay.exhibit import ViewRequest, show  # noqa: PLC0415
        from aimfuse.replay.point import parse_at  # noqa: PLC0415

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
        wanted = parse_at(at, datetime.now().astimezone(), before=before)
        is_scratch = scratch or scratch_dir is not None
        request = ViewRequest(
            store.absolute(),
            Path(os.path.realpath(mountpoint)),  # As the mount table will have it.
            wanted,
            volume,
            scratch_directory(scratch_dir) if is_scratch else None,
            allow_other=allow_other,
            while_open=while_open,
        )

        def mounted(said: dict[str, Any]) -> None:
            text = json.dumps(said, indent=2) if as_json else "\n".join(_mounted(said))
            announce(text, ready_fd)

        show(Disk(), request, mounted)


def scratch_directory(wanted: Path | None) -> Path:
    """Return where a scratch lies: as wanted, as the environment says, else on a disk."""
    if wanted is not None:
        return wanted
    return Path(tempfile.gettempdir()) if os.environ.get("TMPDIR") else SCRATCH_DIR


def _mounted(said: dict[str, Any]) -> list[str]:
    newest = ", the newest that is applied here" if said["newest"] else ""
    newest = ", received here and not applied yet" if said["ahead"] else newest
    kind = f"scratch, in {said['scratch']}" if said["scratch"] else "read only"
    return [
        f"{said['position']} in file {said['file']}, {format_time(said['time_ns'])}{newest}",
        *(f"  {one['name']}, {format_bytes(one['size'])}" for one in said["volumes"]),
        f"is mounted at {said['mountpoint']} ({kind})",
    ]


def bisect(
    store: StoreArgument,
    check: Annotated[
        str,
        typer.Option(
            "--check",
            metavar="CMD",
            help="A shell command that succeeds on a good state; {} is the path of the volume.",
        ),
    ],
    good: Annotated[
        str | None,
        typer.Option("--good", metavar="POINT", help="Search behind it. Default: the oldest."),
    ] = None,
    bad: Annotated[
        str | None,
        typer.Option("--bad", metavar="POINT", help="Search in front of it. Default: the newest."),
    ] = None,
    volume: VolumeOption = None,
    scratch_dir: ScratchDirOption = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Do not let the check write to what it is given.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the last point of the past at which a check passes, to the record.

    Each state is shown to the check in a scratch view, which it may mount and repair: {} is a
    file, or a directory of them where there are several. Exit code 15: it fails at the oldest.
    """
    with exit_on_error():
        # Imported when needed, as above.
        from aimfuse.replay.bisect import Request, find_last_good  # noqa: PLC0415
        from aimfuse.replay.point import parse_at  # noqa: PLC0415

        check_local(store)
        now = datetime.now().astimezone()
        request = Request(
            store.absolute(),
            check,
            parse_at(good, now) if good is not None else None,
            parse_at(bad, now) if bad is not None else None,
            volume,
            None if read_only else scratch_directory(scratch_dir),
        )
        said = find_last_good(Disk(), request, lambda one: typer.echo(_checked(one), err=True))
        typer.echo(json.dumps(said, indent=2) if as_json else "\n".join(_found(said)))


def _checked(said: dict[str, Any]) -> str:
    return f"{'good' if said['good'] else 'bad ':<4}  {_shown(said)}"


def _found(said: dict[str, Any]) -> list[str]:
    good, bad = said["good"], said["bad"]
    lines = [f"last good   {_shown(good)}"]
    if bad is None:
        return [*lines, "            which is the newest state here: the check passes to the end"]
    lines.append(f"first bad   {_shown(bad)}")
    return [*lines, f"aimfuse restore {said['store']} -o PATH --at {good['position']}"]


def _shown(spot: dict[str, Any]) -> str:
    text = f"{spot['position']} in file {spot['file']}, {format_time(spot['time_ns'])}"
    if spot["type"] is None:
        return f"{text}, the oldest state here"
    label = f" {spot['label']!r}" if "label" in spot else ""
    where = f" of {spot['length']} bytes at {spot['offset']}" if spot.get("length") else ""
    name = f", {spot['name']}" if spot.get("name") else ""
    return f"{text}, {spot['type']}{label}{where}{name}"
