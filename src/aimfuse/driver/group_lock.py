"""The locks that keep a second mount away from a group."""

import os
import time
from pathlib import Path

from aimfuse.disk import Disk, note_owner, try_lock
from aimfuse.driver.image_place import refuse_device_in_use
from aimfuse.errors import BusyError
from aimfuse.journal.locks import GROUP_LOCK

LOCK_S_MAX = 2.0


class GroupLock:
    """The locks that keep a second mount away: on the state directory and on the image."""

    def __init__(self, image: Path, state_dir: Path) -> None:
        """Take both, or raise `BusyError` with the owner's process id."""
        self._image = image
        self._fds: list[int] = []
        try:
            self._take(state_dir / GROUP_LOCK, os.O_RDWR | os.O_CREAT)
            refuse_device_in_use(image)  # From now on we do not open it but exclusively.
            self._take(image, os.O_RDONLY)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the locks back; the end of the process does the same."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _take(self, path: Path, flags: int) -> None:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise BusyError(f"{path}: {exc.strerror}") from exc
        self._fds.append(fd)
        lock = self._fds[0]
        deadline_s = time.monotonic() + LOCK_S_MAX
        while not (locked := try_lock(fd)) and time.monotonic() < deadline_s:
            time.sleep(LOCK_S_MAX / 20)  # A `ship` without a mount takes it for moments.
        if not locked:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise BusyError(
                f"{self._image} is served already, by process {owner}",
                hint=f"Use that mount, or end it with `aimfuse umount {self._image}`.",
            )
        if fd == lock:
            note_owner(Disk(), "group:lock_pid", fd)
