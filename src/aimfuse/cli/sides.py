"""`rejoin`, `switchover` and `branch`: who is the source, and what only an old one has."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aimfuse.cli.arguments import GroupArgument, JsonOption, StateOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.cli.plain import App
from aimfuse.errors import UsageError
from aimfuse.units import format_bytes

if TYPE_CHECKING:
    from aimfuse.takeover.branches import Branch

LIST_VERSION = 1

BranchName = Annotated[
    str | None, typer.Argument(metavar="BRANCH", help="Its name, if there are several.")
]

family = App(help="See, copy out or give up what an old source wrote behind the fork.")


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command("switchover")(switchover)
    app.command("rejoin")(rejoin)
    app.add_typer(family, name="branch")


def switchover(
    image: GroupArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The destination that takes over.")],
    then_rejoin: Annotated[
        bool, typer.Option("--rejoin", help="Then make this side a mirror of it.")
    ] = False,
    as_json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Hand a group to one of its mirrors, without loss: that one is the source then.

    The mount is ended, and everything shipped. Nothing is handed over while anything is
    missing there. Interrupted, it goes on when it is run again.
    """
    with exit_on_error():
        from aimfuse.config import load  # noqa: PLC0415 - as below
        from aimfuse.disk import process_disk  # noqa: PLC0415
        from aimfuse.manager.target import find_source  # noqa: PLC0415
        from aimfuse.takeover import rejoin as joining  # noqa: PLC0415
        from aimfuse.takeover import switchover as takeover  # noqa: PLC0415

        _log_quietly()
        config = load(find_source(image, state))
        done = takeover.switchover(process_disk(), config, name, _say)
        if not as_json:
            _tell(takeover.describe(done)[: 2 if then_rejoin else 3])
        if then_rejoin:
            joined = joining.rejoin(process_disk(), config, joining.Request(done["url"]), _say)
            done["rejoined"] = joined
            if not as_json:
                _tell([*joining.describe(joined), *joining.next_commands(joined)])
        if as_json:
            typer.echo(json.dumps(done, indent=2))


def rejoin(
    image: GroupArgument,
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="Where the promoted store lies, as it was shipped to."),
    ],
    discard: Annotated[
        bool, typer.Option("--discard", help="Give up what only this side has written.")
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", metavar="DIR", help="Where the mirror is to be. Default: IMAGE.aim/store."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    as_json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Make an old source a mirror of the new one, where the image lies.

    What only this side has written is kept as a branch. Of the rest only what either side
    touched is copied. Interrupted, it goes on when it is run again.
    """
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.config import load  # noqa: PLC0415
        from aimfuse.disk import process_disk  # noqa: PLC0415
        from aimfuse.manager.target import find_source  # noqa: PLC0415
        from aimfuse.takeover import rejoin as takeover  # noqa: PLC0415

        _log_quietly()
        config = load(find_source(image, state))
        request = takeover.Request(url, store, discard, dry_run)
        done = takeover.rejoin(process_disk(), config, request, _say)
        if as_json:
            typer.echo(json.dumps(done, indent=2))
            return
        _tell([*takeover.describe(done), *([] if dry_run else takeover.next_commands(done))])


@family.command("list")
def list_all(image: GroupArgument, as_json: JsonOption = False, state: StateOption = None) -> None:
    """List the branches: those that are kept, and the one that the image still is."""
    with exit_on_error():
        from aimfuse.takeover.listing import describe, listing, place_of  # noqa: PLC0415 - as above

        found = listing(*place_of(image, state))
    if as_json:
        typer.echo(json.dumps({"version": LIST_VERSION, "branches": found}, indent=2))
        return
    for one in found:
        typer.echo(describe(one))
    if not found:
        typer.echo("No branches: nothing was written here that the source does not have.")


@family.command("view")
def view(
    image: GroupArgument,
    branch: BranchName = None,
    as_json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Say where the images of a branch lie. Nothing is mounted: they are files, to be read.

    To look into one: mount -o loop,ro FILE DIR. A file system that was in use then wants
    noload (ext4) or norecovery (XFS) as well; what is to be written to is exported first.
    """
    with exit_on_error():
        from aimfuse.takeover.listing import images_of, place_of  # noqa: PLC0415 - as above

        paths = images_of(*place_of(image, state), branch)
    if as_json:
        typer.echo(json.dumps({"version": LIST_VERSION, "images": [str(p) for p in paths]}))
        return
    for path in paths:
        typer.echo(str(path))
    typer.echo("To look into one: mount -o loop,ro,noload FILE DIR (XFS: norecovery)", err=True)


@family.command("export")
def export(
    image: GroupArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="The file, or directory, to make."),
    ],
    branch: BranchName = None,
    state: StateOption = None,
) -> None:
    """Copy the images of a branch out; sparse, and sharing blocks where that can be."""
    with exit_on_error():
        from aimfuse.disk import process_disk  # noqa: PLC0415 - as above
        from aimfuse.takeover import branches  # noqa: PLC0415

        disk = process_disk()
        for path in branches.export(disk, _found(image, state, branch), output):
            typer.echo(f"{path}: {format_bytes(path.stat().st_size)}")


@family.command("discard")
def discard(
    image: GroupArgument,
    branch: BranchName = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; needed where nobody can be asked.")
    ] = False,
    state: StateOption = None,
) -> None:
    """Remove a branch: what only it has is gone then."""
    with exit_on_error():
        from aimfuse.disk import process_disk  # noqa: PLC0415 - as above
        from aimfuse.takeover import branches  # noqa: PLC0415

        one = _found(image, state, branch)
        what = f"{one.name} ({branches.written(one.about)})"
        if not yes and not (
            sys.stdin.isatty() and typer.confirm(f"Remove branch {what}?", err=True)
        ):
            raise UsageError(f"branch {what} is still kept", hint="Add --yes to remove it.")
        branches.discard(process_disk(), one)
        typer.echo(f"Removed branch {one.name}.")


def _found(image: Path, state: Path | None, name: str | None) -> "Branch":
    from aimfuse.takeover.listing import find, place_of  # noqa: PLC0415 - as above

    return find(*place_of(image, state), name)


def _log_quietly() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)


def _tell(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)


def _say(line: str) -> None:
    typer.echo(line, err=True)
