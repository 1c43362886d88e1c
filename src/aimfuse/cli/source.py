"""`init` and `mount`: the commands of the source host that open a group."""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from aimfuse import config as configuration
from aimfuse.cli.arguments import ImageArgument, StateOption
from aimfuse.cli.background import announce, start_in_background
from aimfuse.cli.boundary import exit_on_error
from aimfuse.config import STORE_SOURCE, GroupConfig, JournalConfig, add_destination, state_dir_for
from aimfuse.config.edit import edit
from aimfuse.disk import Disk
from aimfuse.errors import UsageError
from aimfuse.units import format_bytes, parse_size

ToOption = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar="URL",
        help="Destination, such as sftp://host/srv/mirror or dir:///backup/v; may be repeated.",
    ),
]

LOG_NAME = "mount.log"
CHECKPOINT_SLOT = "checkpoint.0"
"""Whoever has it is initialised."""


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(init)
    app.command()(mount)


def init(
    image: ImageArgument,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="SIZE", help="Make a new, empty image of this size, such as 10GiB."
        ),
    ] = None,
    to: ToOption = None,
    state: StateOption = None,
    size_max: Annotated[
        str | None,
        typer.Option(
            "--size-max",
            metavar="SIZE",
            help="How large a volume may grow, such as 1TiB; default: the image's size.",
        ),
    ] = None,
) -> None:
    """Prepare an image, a device or a directory for mirroring.

    Nothing is written to the image. Settings, journal and state go to IMAGE.aim beside it.
    """
    with exit_on_error():
        config = _initialise(image, state, to or [], size, size_max)
        typer.echo(f"{config.image}: ready; its state is in {config.state_dir}")
        typer.echo(f"Mount it: aimfuse mount {image} MOUNTPOINT")


def mount(
    image: ImageArgument,
    mountpoint: Annotated[
        Path, typer.Argument(metavar="MOUNTPOINT", help="Existing, empty directory.")
    ],
    to: ToOption = None,
    state: StateOption = None,
    background: Annotated[
        bool,
        typer.Option("--background", help="Return once it is mounted; log: IMAGE.aim/mount.log."),
    ] = False,
    allow_other: Annotated[
        bool, typer.Option("--allow-other", help="Let other users use the mount, too.")
    ] = False,
    writeback: Annotated[
        bool,
        typer.Option(
            "--writeback",
            help="Let the kernel hold and reorder writes: faster, but order holds at fsync only.",
        ),
    ] = False,
    resync: Annotated[
        bool,
        typer.Option(
            "--resync",
            help="Take the image as it is, where it was changed while not mounted or its spool is "
            "lost: a way out of a refused mount. Mirrors come back by staged copies.",
        ),
    ] = False,
    diverge: Annotated[
        bool,
        typer.Option(
            "--diverge",
            help="Serve it although a mirror of it was promoted: what is written goes nowhere, "
            "and stays on this side as a branch.",
        ),
    ] = False,
    ready_fd: Annotated[int | None, typer.Option("--ready-fd", hidden=True)] = None,
) -> None:
    """Mount an image at MOUNTPOINT and mirror every write.

    In the mount the image bears its own name: MOUNTPOINT/v.img. End it with `aimfuse umount`.
    """
    with exit_on_error():
        config = _configured(image, state, to or [])
        if background:
            typer.echo(start_in_background(sys.argv[1:], config.state_dir / LOG_NAME))
            return
        # Imported when needed: the other commands do without pyfuse3.
        from aimfuse.app import MountRequest, run_mount  # noqa: PLC0415

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
        where = mountpoint.absolute()
        request = MountRequest(
            config.state_dir,
            where,
            allow_other=allow_other or config.mount.allow_other,
            writeback=writeback or config.mount.writeback,
            resync=resync,
            diverge=diverge,
        )
        run_mount(request, lambda: announce(f"{config.image} is mounted at {where}", ready_fd))


def _configured(image: Path, state: Path | None, to: list[str]) -> GroupConfig:
    """Return the group's settings, with the destinations *to* added; initialise a new one."""
    state_dir = state_dir_for(image, state)
    if not (state_dir / configuration.CONFIG_NAME).exists():
        return _initialise(image, state, to, None, None)
    config = configuration.load(state_dir)
    is_store = state is None and state_dir == image.absolute() / STORE_SOURCE
    if not is_store and image.resolve() != config.image.resolve():
        raise UsageError(
            f"{state_dir} belongs to {config.image}, not to {image}",
            hint="Name another state directory with --state, or correct `image` in its group.toml.",
        )
    return edit(state_dir, lambda config: _with(config, to)) if to else config


def _with(config: GroupConfig, to: list[str]) -> GroupConfig:
    for url in to:
        config = add_destination(config, url)
    return config


def _initialise(
    image: Path, state: Path | None, to: list[str], size: str | None, size_max: str | None
) -> GroupConfig:
    if size is not None:
        _make_image(image, state_dir_for(image, state), parse_size(size))
    if not image.exists():
        raise UsageError(
            f"{image} does not exist", hint=f"Run `aimfuse init {image} --size 10GiB`."
        )
    largest = parse_size(size_max) if size_max else None
    if largest is not None and image.is_block_device():
        raise UsageError(f"{image} is a device and keeps its size", hint="Leave --size-max out.")
    if largest is None and image.is_file():
        largest = image.stat().st_size
        if not largest:
            hint = f"Remove it, and give its size: aimfuse init {image} --size 10GiB."
            raise UsageError(f"{image} is empty, and would stay so", hint=hint)
    journal = replace(JournalConfig(), size_bytes_max=largest)
    # A device's name may be the one that stays (/dev/disk/by-id): what it leads to does not.
    path = image.absolute() if image.is_block_device() else image.resolve()
    config = _with(GroupConfig(state_dir_for(image, state), path, journal=journal), to)
    from aimfuse.app import initialise  # noqa: PLC0415 - as above

    initialise(config)
    return config


def _make_image(image: Path, state_dir: Path, size: int) -> None:
    if (state_dir / CHECKPOINT_SLOT).exists():
        hint = f"Mount it: aimfuse mount {image} MOUNTPOINT"
        raise UsageError(f"{image} is initialised already (state in {state_dir})", hint=hint)
    if image.exists():
        raise UsageError(f"{image} is there", hint="Leave --size out to use it as it is.")
    disk = Disk()
    fd = disk.open("init:image", image, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        disk.truncate("init:image", fd, size)
    except OSError as exc:
        disk.unlink("init:image", image)
        hint = "A file of that size cannot be there: see the limits of its file system."
        raise UsageError(f"{image}: {exc.strerror}", hint=hint) from exc
    finally:
        disk.close(fd)
    disk.sync_dir("init:image", image.absolute().parent)
    typer.echo(f"{image}: made, {format_bytes(size)}, empty")
