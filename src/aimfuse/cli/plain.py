"""Help as plain text: the same on a terminal, in a pipe and in a bug report.

An argument is shown by its name alone: a Python type in angle brackets helps nobody.
"""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

SENTENCE_MAX = 1_000


class PlainCommand(TyperCommand):
    """A command whose usage line and list of arguments show nothing but names."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer's own click
        """Return ``IMAGE`` where typer says ``{IMAGE}``."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence for a list of commands, whole: the list wraps it."""
        return super().get_short_help_str(max(limit, SENTENCE_MAX))

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - as above
        """Write the arguments and then the options, each with its help."""
        for title, kind in (("Arguments", TyperArgument), ("Options", TyperOption)):
            shown = [one for one in self.get_params(ctx) if isinstance(one, kind)]
            rows = [row for one in shown if (row := one.get_help_record(ctx)) is not None]
            if kind is TyperArgument:
                rows = [(name.partition(" <")[0], text) for name, text in rows]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class PlainGroup(TyperGroup):
    """A family of commands."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return what is said of it in the list above it, whole."""
        return super().get_short_help_str(max(limit, SENTENCE_MAX))


class App(typer.Typer):
    """A command line, or a family of commands in it, with plain help."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        """Take typer's settings."""
        super().__init__(
            cls=PlainGroup,
            **settings,
            rich_markup_mode=None,
            add_completion=False,
            no_args_is_help=True,
            pretty_exceptions_enable=False,  # A bug's traceback goes into a report as it is.
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[..., Any]:  # noqa: ANN401 - typer's own
        """Add a command, as typer does."""
        return super().command(name, **{"cls": PlainCommand, **settings})
