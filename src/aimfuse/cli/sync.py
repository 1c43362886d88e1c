"""`sync`: have a mirror copied anew, whole or in parts, or follow the copy under way."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aimfuse.cli.arguments import GroupArgument, StateOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.cli.progress import shown_progress
from aimfuse.errors import UsageError
from aimfuse.units import format_bytes, parse_size

if TYPE_CHECKING:
    from aimfuse.config import GroupConfig
    from aimfuse.coordinator.request import Range

_RANGE = re.compile(r"(?:(.+):)?([^:+]+)\+([^:+]+)")
NAMES_SHOWN_MAX = 10
_RANGE_HINT = "Write VOLUME:OFFSET+LENGTH, such as disk.img:1GiB+64MiB."


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("sync")(sync)


def sync(
    image: GroupArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The destination's name.")],
    full: Annotated[bool, typer.Option("--full", help="Copy everything.")] = False,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="VOLUME:OFFSET+LENGTH", help="Copy this; may be repeated."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow what was asked for until it is there.")
    ] = False,
    state: StateOption = None,
) -> None:
    """Copy a mirror anew, or, without an option, follow the copy that is under way.

    A mirror that lacks what has left the spool is copied by itself. What is there stays
    readable until all of a copy has arrived.
    """
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.config import load  # noqa: PLC0415
        from aimfuse.coordinator.request import Request, write_request  # noqa: PLC0415
        from aimfuse.disk import Disk  # noqa: PLC0415
        from aimfuse.manager.target import find_source  # noqa: PLC0415

        if full and ranges:
            raise UsageError(
                "--full and --range together",
                hint="Give --full for everything, or --range for what to copy.",
            )
        state_dir = find_source(image, state)
        config = load(state_dir)
        config.destination(name)
        found = tuple(_parsed(one, config.image) for one in ranges or ())
        _check_known(found, config, name)
        directory = config.destination_dir(name)
        if not directory.exists():
            hint = "It begins with a first copy, by itself."
            raise UsageError(f"nothing was sent to {name} yet", hint=hint)
        if full or found:
            write_request(Disk(), directory, Request(full, found, "asked for by command"))
        if wait or not (full or found):
            _follow(state_dir, name)
        else:
            typer.echo(
                "Asked for. It begins within moments while somebody ships; follow it with "
                f"`aimfuse sync {image} {name}`."
            )


def _follow(state_dir: Path, name: str) -> None:
    from aimfuse.manager.copying import follow  # noqa: PLC0415 - as above

    with shown_progress() as report:
        was_there = follow(state_dir, name, report)
    typer.echo(
        f"The copy to {name} is there."
        if was_there
        else f"No copy to {name} is under way or needed: what it lacks comes as journal files."
    )


def _check_known(ranges: "tuple[Range, ...]", config: "GroupConfig", name: str) -> None:
    """Refuse what no volume has, or *name* does not get: nothing would be copied, unsaid."""
    from aimfuse.coordinator.cursor import CursorFile  # noqa: PLC0415 - as above
    from aimfuse.coordinator.route import rule_of  # noqa: PLC0415 - as above
    from aimfuse.coordinator.todo import Membership  # noqa: PLC0415 - as above
    from aimfuse.disk import Disk  # noqa: PLC0415 - as above
    from aimfuse.journal.records import VolumeEntry  # noqa: PLC0415 - as above
    from aimfuse.manager.source import source_status  # noqa: PLC0415 - as above

    told = source_status(config.state_dir).get("volumes") or ()
    entries = (VolumeEntry(one.get("id", 0), one["name"], one["size"]) for one in told)
    known = {one.name: one for one in entries}
    cursor = CursorFile(Disk(), config.destination_dir(name), "").read()
    sent = Membership(rule_of(config.destination(name)), cursor.members)
    for one in ranges if known else ():
        volume = known.get(one.volume)
        if volume is None:
            hint = f"Known: {', '.join(sorted(known)[:NAMES_SHOWN_MAX])}."
            raise UsageError(f"the group has no volume {one.volume!r}", hint=hint)
        if one.offset >= volume.size_bytes:
            hint = f"It has {format_bytes(volume.size_bytes)}."
            raise UsageError(f"a range begins beyond the end of {one.volume}", hint=hint)
        if not sent.takes(volume):
            raise UsageError(
                f"{name} does not get {one.volume!r}: its `volumes` or `exclude` leave it out",
                hint="Name a volume that is sent there, or another destination.",
            )


def _parsed(given: str, image: Path) -> "Range":
    from aimfuse.coordinator.request import Range  # noqa: PLC0415 - as above

    match = _RANGE.fullmatch(given)
    if match is None:
        raise UsageError(f"{given!r} is no range", hint=_RANGE_HINT)
    volume = match[1] or ("" if image.is_dir() else image.name)
    if not volume:
        raise UsageError(f"{given!r} names no volume", hint=_RANGE_HINT)
    offset, length = parse_size(match[2]), parse_size(match[3])
    if length <= 0:
        raise UsageError(f"{given!r} is empty", hint=_RANGE_HINT)
    return Range(volume, offset, length)
