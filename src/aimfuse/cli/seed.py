"""`seed`: a first copy that is carried on a disk."""

import logging
from pathlib import Path
from typing import Annotated

import trio
import typer

from aimfuse.cli.arguments import GroupArgument, StateOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.cli.plain import App

family = App(help="Carry a destination's first copy on a disk.")


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.add_typer(family, name="seed")


@family.command("export")
def export_seed(
    image: GroupArgument,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to put the seed, on the disk to carry.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="URL", help="The destination that the seed is for.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its name. Default: the host.")
    ] = None,
    state: StateOption = None,
) -> None:
    """Copy a group into DIR, also while it is mounted and written to.

    The destination is left paused: carry DIR there, `aimfuse seed import` it, then resume.
    Interrupted, it goes on when it is run again; so does a seed that has grown old.
    """
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.disk import Disk  # noqa: PLC0415
        from aimfuse.manager.seeding import begin, fill  # noqa: PLC0415
        from aimfuse.manager.target import find_source  # noqa: PLC0415
        from aimfuse.replay.once import gravest  # noqa: PLC0415
        from aimfuse.replay.replayer import Replayer  # noqa: PLC0415
        from aimfuse.replay.seed import finish_seed, reopen_seed  # noqa: PLC0415

        logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
        state_dir = find_source(image, state)
        disk = Disk()
        reopen_seed(disk, directory)
        filling = begin(state_dir, directory, to, name)

        async def run() -> None:
            await fill(filling, Replayer(directory).run, typer.echo)
            if problem := gravest(await Replayer(directory).run_once()):
                raise problem

        trio.run(run)
        finish_seed(disk, directory, filling.number(), typer.echo)
        typer.echo(
            f"Done. {filling.name} is paused. On its host: aimfuse seed import {directory} STORE. "
            f"Then here: aimfuse destination resume {image} {filling.name}"
        )


@family.command("import")
def import_store(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The seed on the disk.")],
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="The store to make, as the URL names it.")
    ],
) -> None:
    """Make a store of a seed; interrupted, it goes on when it is run again."""
    with exit_on_error():
        from aimfuse.disk import Disk  # noqa: PLC0415 - as above
        from aimfuse.replay.seed import import_seed  # noqa: PLC0415

        state = import_seed(Disk(), directory, store, typer.echo)
        number = state.head.number if state.head else 0
        typer.echo(f"Done: {store} is consistent up to file {number}. Now resume at the source.")
