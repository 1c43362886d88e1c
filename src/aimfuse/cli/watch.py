"""The commands that look at a running mirror, wait for it and stop it."""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from aimfuse.cli.arguments import GroupArgument, JsonOption, StateOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.manager import dashboard, render
from aimfuse.manager.layout import safe
from aimfuse.manager.model import Level
from aimfuse.manager.snapshot import snapshot
from aimfuse.manager.target import Kind, find_mounted, find_source, find_targets
from aimfuse.manager.wait import Stage, flush, unmount, unmount_view
from aimfuse.mountpoint import VIEW_FSTYPE, mounted_source
from aimfuse.units import parse_duration_s

STATUS_VERSION = 1
EXIT_TROUBLE = 1

Targets = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="TARGET",
        help="Images, mountpoints, state directories, stores, or directories of such.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command("status")(show_status)
    app.command("dashboard")(show_dashboard)
    app.command("flush")(flush_group)
    app.command("umount")(unmount_group)


def show_status(
    targets: Targets = None,
    as_json: JsonOption = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if anything is in trouble.")
    ] = False,
) -> None:
    """Show how sources and stores fare.

    Without TARGET: all that is mounted here.
    """
    with exit_on_error():
        found = find_targets(targets or [])
        states = [(target.kind, target.status()) for target in found]
    sources = [state for kind, state in states if kind is Kind.SOURCE]
    stores = [state for kind, state in states if kind is Kind.STORE]
    snap = snapshot(sources, stores, time.time_ns())
    if as_json:
        _print_json({"version": STATUS_VERSION, "sources": sources, "stores": stores})
    else:
        console = _console()
        console.print(render.status(snap, dashboard.look_of(console)))
    if check and snap.level >= Level.BAD:
        raise typer.Exit(EXIT_TROUBLE)


def show_dashboard(
    targets: Targets = None,
    interval: Annotated[
        str,
        typer.Option("--interval", metavar="TIME", help="Time between two looks, such as 500ms."),
    ] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Look once, print, and end.")] = False,
) -> None:
    """Watch sources and stores live. Ctrl-C ends it.

    Without TARGET: all that is mounted here.
    """
    with exit_on_error():
        interval_s = parse_duration_s(interval)
        watch = dashboard.Watch(targets or [])
        dashboard.run(_console(), watch, interval_s, once=once)


def flush_group(
    image: GroupArgument,
    wait: Annotated[
        Stage,
        typer.Option(
            "--wait", help="In the journal here, received at the far side, or applied there."
        ),
    ] = Stage.DURABLE,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="How long to wait, such as 90s.")
    ] = "5m",
    destination: Annotated[
        list[str] | None,
        typer.Option(
            "--destination", metavar="NAME", help="Wait for this one only; may be repeated."
        ),
    ] = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until all that was written is durable, or at the mirrors."""
    with exit_on_error():
        state_dir = find_source(image, state)
        done = flush(state_dir, wait, parse_duration_s(timeout), destination or [], _say)
    if as_json:
        _print_json({"ok": True, **done})
        return
    where = f" at {', '.join(map(safe, done['destinations']))}" if done["destinations"] else ""
    typer.echo(f"Everything through file {done['number']} is {done['stage']}{where}.")


def unmount_group(
    target: GroupArgument,
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout", metavar="TIME", help="How long programs and loop devices get to let go."
        ),
    ] = "10s",
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unmount cleanly, once nobody uses the mount any more; views, too.

    Never forced, never lazy. What is not with the destinations yet stays in the journal.
    """
    with exit_on_error():
        gone: Path | None = Path(os.path.realpath(target))
        if gone and mounted_source(gone, VIEW_FSTYPE) is not None:
            unmount_view(gone, parse_duration_s(timeout))
        else:
            state_dir = find_mounted(target, state)
            gone = unmount(state_dir, parse_duration_s(timeout))
    if as_json:
        _print_json({"ok": True, "mountpoint": None if gone is None else str(gone)})
        return
    typer.echo(f"Unmounted {safe(str(gone or target))}.")


def _say(line: str) -> None:
    typer.echo(safe(line), err=True)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2))


def _console() -> Console:
    return Console(highlight=False, soft_wrap=False)
