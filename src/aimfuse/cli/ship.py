"""`aimfuse ship`: move sealed journal files to their destinations."""

import logging
from typing import Annotated

import trio
import typer

from aimfuse.cli.arguments import ImageArgument, StateOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.config import state_dir_for


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(ship)


def ship(
    image: ImageArgument,
    until_empty: Annotated[
        bool,
        typer.Option("--until-empty", help="End once every destination has confirmed everything."),
    ] = False,
    state: StateOption = None,
) -> None:
    """Send to the destinations what was journalled. A mount does this by itself."""
    with exit_on_error():
        # Imported when needed: the other commands do not wait for it.
        from aimfuse import heap  # noqa: PLC0415
        from aimfuse.coordinator import run as coordinator  # noqa: PLC0415

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
        logging.getLogger("asyncssh").setLevel(logging.WARNING)
        state_dir = state_dir_for(image, state)
        heap.share_among_threads()
        coordinator.yield_to_applications()

        async def run() -> None:
            await coordinator.run_ship(state_dir, until_empty=until_empty)

        trio.run(run)
