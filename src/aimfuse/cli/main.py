"""The root command. Each family of commands is a module, loaded when one of them is wanted."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from aimfuse import __version__
from aimfuse.cli.plain import App

FAMILIES = {
    "source": ("init", "mount"),
    "ship": ("ship",),
    "destination": ("destination", "reload"),
    "sync": ("sync",),
    "verify": ("verify",),
    "sides": ("switchover", "rejoin", "branch"),
    "watch": ("status", "dashboard", "flush", "umount"),
    "mark": ("bookmark",),
    "far": ("replay", "serve"),
    "pausing": ("pause", "resume"),
    "past": ("history", "restore"),
    "view": ("view", "bisect"),
    "promote": ("promote",),
    "seed": ("seed",),
    "inspect": ("inspect",),
}
"""The modules beside this one and their commands, in the order of the help text."""

app = App(name="aimfuse")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aimfuse {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Mirror disk images to other places, asynchronously and in write order."""
    del version  # Its callback has done the work.


def main() -> None:
    """Run the command line; the exit code is the process's."""
    for module in _modules_for(sys.argv[1:]):
        import_module(f"aimfuse.cli.{module}").register(app)
    app()


def _modules_for(words: Sequence[str]) -> list[str]:
    """Return the family of the command in *words*, or all where help or a guess may be wanted.

    No command waits for the imports of another: a coordinator that starts again after a crash
    has no use for the library that draws.
    """
    first = words[0] if words else ""
    return [name for name, commands in FAMILIES.items() if first in commands] or list(FAMILIES)
