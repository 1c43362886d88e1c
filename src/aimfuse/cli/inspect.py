"""The command that shows what an AIM file holds, also a damaged one."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from aimfuse.cli.arguments import JsonOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.disk import Disk, read_file
from aimfuse.errors import UsageError
from aimfuse.journal.inspect import describe
from aimfuse.journal.reader import FILE_BYTES_MAX
from aimfuse.manager.aim_text import render_file
from aimfuse.manager.dashboard import look_of

EXIT_DAMAGED = 10


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("inspect")(inspect)


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An AIM file: sealed, open, or damaged.")
    ],
    as_json: JsonOption = False,
    records: Annotated[bool, typer.Option("--records", help="List records and marks.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=0, help="List no more than so many.")
    ] = None,
) -> None:
    """Show what an AIM file holds, and whether it is sound.

    Exit code 10 if it is damaged.
    """
    with exit_on_error():
        if file.exists() and not file.is_file():  # A FIFO would be waited for.
            raise UsageError(f"{file} is not a regular file", hint="Name an AIM file.")
        try:
            data = read_file(Disk(), file, FILE_BYTES_MAX + 1)
        except OSError as exc:
            raise UsageError(f"{file}: {exc.strerror}", hint="Name an AIM file.") from exc
        listed = limit if records or limit is not None else 0
        found = describe(file, data, listed)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        console = Console(highlight=False, soft_wrap=False)
        console.print(render_file(found, look_of(console)))
    if found["verdict"] == "damaged":
        raise typer.Exit(EXIT_DAMAGED)
