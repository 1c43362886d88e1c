"""The root command; families of commands are added here, each from its own file."""

from typing import Annotated

import typer

from aimfuse import __version__
from aimfuse.cli import far, inspect, source, source_ship, watch

app = typer.Typer(
    name="aimfuse",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # A bug's traceback goes into a report as it is.
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


for family in (source, source_ship, watch, far, inspect):
    family.register(app)


def main() -> None:
    """Run the command line; the exit code is the process's."""
    app()
