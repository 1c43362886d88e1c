"""`replay` and `serve`: the commands of a far host."""

import json
import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import trio
import typer

from aimfuse import heap
from aimfuse.cli.boundary import exit_on_error
from aimfuse.disk import weakness
from aimfuse.errors import UsageError
from aimfuse.replay.once import Caught, gravest
from aimfuse.replay.replayer import Replayer

DirectoryArgument = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="A store, or a directory of stores.", file_okay=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(replay)
    app.command()(serve)


def replay(
    directory: DirectoryArgument,
    once: Annotated[
        bool, typer.Option("--once", help="Apply what has arrived, say how far, then exit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print JSON.")] = False,
) -> None:
    """Apply what arrives in DIR to its mirrors, until stopped.

    With --once the exit code is 0 when every store has applied all that had arrived, but for what
    a delay or a pause holds back; 5 when something cannot be applied yet, 3 when a store
    has a replayer already, 14 when one has halted. One line, or one JSON object, for each.
    """
    _log_to_stderr()
    if problem := weakness(directory):
        logging.getLogger(__name__).warning("%s is %s", directory, problem)

    found: list[Caught] = []

    async def work() -> None:
        if as_json and not once:
            raise UsageError("--json says how a run ended: it goes with --once")
        replayer = Replayer(directory)
        if once:
            found.extend(await replayer.run_once())
        else:
            await replayer.run()

    heap.expect_many_records()
    with exit_on_error():
        trio.run(_until_signal, work)
        if once:
            _tell(found, as_json=as_json)


def _tell(found: list[Caught], *, as_json: bool) -> None:
    """Print how each store stands, and end with what is worst."""
    problem = gravest(found)
    if as_json:
        stores = [one.to_json() for one in found]
        said = {"caught_up": problem is None, "stores": stores}
        typer.echo(json.dumps(said, indent=2))
    else:
        for one in found:
            typer.echo(one.describe())
    if problem is not None:
        raise problem


def serve(
    directory: DirectoryArgument,
    listen: Annotated[
        str,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="Address and port; 0 takes a free port."
        ),
    ],
    authorized_keys: Annotated[
        Path | None,
        typer.Option(
            "--authorized-keys",
            metavar="FILE",
            help="Who may log in; default: DIR/.aimfuse/authorized_keys.",
        ),
    ] = None,
) -> None:
    """Receive over an SFTP server of its own, and replay.

    Once it listens it prints three lines: `listening HOST:PORT`, `fingerprint SHA256:...` of
    its host key, and `known_hosts LINE` for the source's known_hosts file.
    """
    # Imported when needed: a replayer has no use for SSH.
    from aimfuse.replay.serve import serve as serve_directory  # noqa: PLC0415
    from aimfuse.replay.serve import split_address  # noqa: PLC0415

    _log_to_stderr()

    def say(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - whoever started us parses it, also from a pipe

    async def work() -> None:
        host, port = split_address(listen)
        await serve_directory(directory, host, port, authorized_keys, say)

    with exit_on_error():
        trio.run(_until_signal, work)


async def _until_signal(work: Callable[[], Awaitable[None]]) -> None:
    """Run *work* to its end, or cancel it on SIGTERM or SIGINT: both are an orderly end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
        await work()
        nursery.cancel_scope.cancel()


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _number in signals:
            scope.cancel()


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
