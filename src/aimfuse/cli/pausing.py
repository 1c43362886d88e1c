"""`pause` and `resume`: what a store does for now."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aimfuse.cli.arguments import JsonOption, StoreArgument
from aimfuse.cli.boundary import exit_on_error
from aimfuse.config.pauses import KINDS
from aimfuse.manager import pausing
from aimfuse.manager.layout import safe
from aimfuse.units import parse_duration_s


class What(StrEnum):
    """What can be paused."""

    RECEIVE = "receive"
    APPLY = "apply"
    ALL = "all"


Timeout = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="How long to wait for the replayer.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command("pause")(pause)
    app.command("resume")(resume)


def pause(
    store: StoreArgument,
    what: Annotated[
        What,
        typer.Argument(
            metavar="WHAT", help="receive: nothing is taken in. apply: the mirror stays. Or all."
        ),
    ],
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Shown in the status of both ends.")
    ] = "",
    timeout: Timeout = "60s",
    as_json: JsonOption = False,
) -> None:
    """Pause a store, also over restarts, until it is resumed.

    Returns once its replayer has obeyed: with apply, the mirror is consistent and stays as it is.
    A mirror that is not consistent is finished first. `destination pause` is the source's own.
    """
    with exit_on_error():
        done = pausing.pause(store, _kinds(what), reason, parse_duration_s(timeout))
        _tell(store, done, as_json=as_json)


def resume(
    store: StoreArgument,
    what: Annotated[What, typer.Argument(metavar="WHAT", help="receive, apply, or all.")],
    timeout: Timeout = "60s",
    as_json: JsonOption = False,
) -> None:
    """Let a store that was paused go on."""
    with exit_on_error():
        done = pausing.resume(store, _kinds(what), parse_duration_s(timeout))
        _tell(store, done, as_json=as_json)


def _kinds(what: What) -> tuple[str, ...]:
    return KINDS if what is What.ALL else (what.value,)


def _tell(store: Path, done: pausing.Outcome, *, as_json: bool) -> None:
    if as_json:
        said = {"store": str(store), "paused": done.paused, "replayer": done.replayer}
        typer.echo(json.dumps(said, indent=2))
        return
    what = " and ".join(done.paused)
    line = f"{safe(str(store))}: paused: {what}" if what else f"{safe(str(store))}: nothing paused"
    typer.echo(line if done.replayer else f"{line}; no replayer is at work")
