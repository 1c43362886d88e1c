"""Arguments and options that several commands have, said once."""

from pathlib import Path
from typing import Annotated

import typer

ImageArgument = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="Image file, block device or directory.")
]
GroupArgument = Annotated[
    Path,
    typer.Argument(metavar="IMAGE", help="The image, its mountpoint or its state directory."),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", help="State directory, if not IMAGE.aim beside the image."
    ),
]
StoreArgument = Annotated[
    Path, typer.Argument(metavar="STORE", help="A store: the directory with inbox/ in it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
