"""Write to a volume as an application does that wants to find it again."""

import os
from pathlib import Path


def put(volume: Path, at: int, data: bytes) -> None:
    """Write *data* at an offset in bytes, and sync it."""
    with volume.open("r+b", buffering=0) as file:
        file.seek(at)
        file.write(data)
        os.fsync(file.fileno())
