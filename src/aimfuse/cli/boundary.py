"""Where errors become lines, hints and exit codes."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeVar

import typer

from aimfuse.errors import AimfuseError, explain


@contextmanager
def exit_on_error() -> Generator[None]:
    """Print expected errors as one line and a hint; let bugs keep their traceback.

    Raises:
        typer.Exit: with the exit code of the first `AimfuseError` that came up.
    """
    failure: AimfuseError | None = None
    try:
        yield
    except* AimfuseError as group:  # A nursery always raises a group.
        failure = _first_leaf(group)
    except* OSError as group:  # The system's own message says which file and why.
        failure = failure or AimfuseError(explain(_first_leaf(group)))
    if failure is not None:
        typer.secho(f"aimfuse: {failure}", fg="red", err=True)
        if failure.hint:
            typer.echo(failure.hint, err=True)
        raise typer.Exit(failure.exit_code)


E = TypeVar("E", bound=BaseException)


def _first_leaf(group: BaseExceptionGroup[E]) -> E:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first
