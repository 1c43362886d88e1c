"""The lock between who releases journal files and who says which ones must stay."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from aimfuse.disk import Disk, try_lock
from aimfuse.errors import Unavailable
from aimfuse.journal.locks import RETENTION_LOCK

LOCK_S_MAX = 30.0
LOCK_POLL_S = 0.05


@asynccontextmanager
async def retention_lock(disk: Disk, state_dir: Path) -> AsyncIterator[None]:
    """Hold the lock: nobody releases a file, nobody reads a cursor meanwhile.

    Raises:
        Unavailable: it stayed taken, though its holders are quick.
    """
    fd = disk.open("retention:open", state_dir / RETENTION_LOCK, os.O_RDWR | os.O_CREAT)
    try:
        deadline = trio.current_time() + LOCK_S_MAX
        while not try_lock(fd):
            if trio.current_time() > deadline:
                raise Unavailable(f"{RETENTION_LOCK} stayed taken for {LOCK_S_MAX:.0f} s")
            await trio.sleep(LOCK_POLL_S)
        yield
    finally:
        disk.close(fd)
