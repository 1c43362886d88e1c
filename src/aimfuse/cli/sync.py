"""`sync`: have a mirror copied anew, whole or in parts, without a new store."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aimfuse.cli.boundary import exit_on_error
from aimfuse.errors import UsageError
from aimfuse.units import parse_size

if TYPE_CHECKING:
    from aimfuse.coordinator.request import Range

_RANGE = re.compile(r"(?:(.+):)?([^:+]+)\+([^:+]+)")
_RANGE_HINT = "Write VOLUME:OFFSET+LENGTH, such as disk.img:1GiB+64MiB."


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("sync")(sync)


def sync(
    image: Annotated[
        Path,
        typer.Argument(metavar="IMAGE", help="The image, its mountpoint or its state directory."),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The destination's name.")],
    full: Annotated[bool, typer.Option("--full", help="Copy everything.")] = False,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="VOLUME:OFFSET+LENGTH", help="Copy this; may be repeated."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="DIR", help="State directory, if not IMAGE.aim beside the image."
        ),
    ] = None,
) -> None:
    """Copy a mirror anew; what is there stays readable until all of it has arrived.

    A mirror that lacks what has left the spool is copied by itself, without this.
    """
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.config import load  # noqa: PLC0415
        from aimfuse.coordinator.request import Request, write_request  # noqa: PLC0415
        from aimfuse.disk import Disk  # noqa: PLC0415
        from aimfuse.manager.target import find_source  # noqa: PLC0415

        if full == bool(ranges):
            raise UsageError(
                "nothing to copy" if not full else "--full and --range together",
                hint="Give --full for everything, or --range for what to copy.",
            )
        state_dir = find_source(image, state)
        config = load(state_dir)
        config.destination(name)
        found = tuple(_parsed(one, config.image) for one in ranges or ())
        directory = config.destination_dir(name)
        if not directory.exists():
            hint = "It begins with a first copy, by itself."
            raise UsageError(f"nothing was sent to {name} yet", hint=hint)
        write_request(Disk(), directory, Request(full, found, "asked for by command"))
        typer.echo(
            f"Asked for. It begins within moments while somebody ships; follow it with "
            f"`aimfuse status {image}`."
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
