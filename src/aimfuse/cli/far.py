"""`replay` and `serve`: the commands of a far host."""

import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import trio
import typer

from aimfuse.cli.boundary import exit_on_error
from aimfuse.disk import weakness
from aimfuse.replay.replayer import Replayer
from aimfuse.replay.serve import serve as serve_directory
from aimfuse.replay.serve import split_address

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
        bool, typer.Option("--once", help="Apply what has arrived, then exit.")
    ] = False,
) -> None:
    """Apply what arrives in DIR to its mirrors, until stopped."""
    _log_to_stderr()
    if problem := weakness(directory):
        logging.getLogger(__name__).warning("%s is %s", directory, problem)

    async def work() -> None:
        replayer = Replayer(directory)
        await (replayer.run_once() if once else replayer.run())

    with exit_on_error():
        trio.run(_until_signal, work)


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
