"""`bookmark`: give a moment a name."""

import json
from typing import Annotated

import typer

from aimfuse.cli.arguments import GroupArgument, JsonOption, StateOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.errors import HookFailed
from aimfuse.manager.hook import Hook
from aimfuse.manager.layout import safe
from aimfuse.manager.mark import Mark, set_mark
from aimfuse.manager.target import find_source
from aimfuse.units import parse_duration_s


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("bookmark")(set_bookmark)


def set_bookmark(
    image: GroupArgument,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="The name of this moment.")],
    hook: Annotated[
        str | None,
        typer.Option(
            "--hook",
            metavar="CMD",
            help="Run `CMD freeze` before, and `CMD thaw` after, whatever happens in between.",
        ),
    ] = None,
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout", metavar="TIME", help="For each of freezing, flushing, marking, thawing."
        ),
    ] = "30s",
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a named mark into the journal, behind all that was written until now.

    The image has to be mounted. A label is given once in the life of an image. Exit code 4: a
    hook failed; with `thaw` the bookmark is set all the same, and printed.
    """
    with exit_on_error():
        timeout_s = parse_duration_s(timeout)
        wanted = Mark(
            find_source(image, state), label, timeout_s, Hook(hook, timeout_s) if hook else None
        )
        answer = set_mark(wanted)
        problem = answer["problem"]
        if as_json:
            typer.echo(json.dumps(answer, indent=2))
        else:
            typer.echo(f'Bookmark "{safe(label)}" set at {answer["epoch"]}:{answer["seq"]}.')
        if not answer["flushed"]:
            typer.echo("Not flushed: only the user of the mount can do that.", err=True)
        if problem:
            raise HookFailed(problem, hint="The bookmark is set. Look after the application.")
