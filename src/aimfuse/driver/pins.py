"""What the destinations still need from the spool.

A destination's cursor names the newest file that its store has confirmed; one that is being
synced pins everything behind the position where its sync began. One without a cursor needs
nothing: it will start with a sync. An account counts whether or not the settings name it: they
are edited by hand, and a table that is missing must not give files away. The retention lock
keeps a coordinator from choosing such a position while files are being released.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aimfuse.disk import Disk, try_lock
from aimfuse.driver.folding import folded_through
from aimfuse.driver.ladder import Account
from aimfuse.errors import BusyError, StateLost
from aimfuse.journal.locks import RETENTION_LOCK
from aimfuse.journal.slots import Slots
from aimfuse.units import FileNumber

log = logging.getLogger(__name__)

ACCOUNTS = "destinations"


class Pins:
    """The cursors below a state directory, read anew each time."""

    def __init__(self, disk: Disk, state_dir: Path) -> None:
        """Read the cursors in the directories of *state_dir*."""
        self.state_dir = state_dir
        self._disk = disk
        self._lock = state_dir / RETENTION_LOCK
        self._accounts = state_dir / ACCOUNTS
        self._unreadable: set[Path] = set()

    @contextmanager
    def held(self) -> Iterator[tuple[Account, ...]]:
        """Hold the retention lock and give what each destination with a cursor needs.

        Raises:
            BusyError: another process holds the lock. Try again later: one that hangs with it
                must not stop the volume.
        """
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not try_lock(fd):
                raise BusyError(f"{self._lock} is held")
            yield self.accounts()
        finally:
            os.close(fd)

    def accounts(self) -> tuple[Account, ...]:
        """Return what each destination with a cursor needs, without holding the lock."""
        try:
            names = self._disk.listdir(self._accounts)
        except FileNotFoundError:
            return ()
        except OSError as exc:
            return (self._keep_all(self._accounts, exc),)
        places = (self._accounts / name for name in names if not name.startswith("."))
        return tuple(one for path in places if (one := self._account(path)) is not None)

    def _account(self, directory: Path) -> Account | None:
        try:
            state = Slots(self._disk, directory / "cursor", "cursor").read()
        except (StateLost, OSError) as exc:
            return self._keep_all(directory, exc)
        self._unreadable.discard(directory)
        if state is None or state.get("state") == "new":
            return None
        pin = state.get("pin")
        number = FileNumber(int(state.get("number", 0) if pin is None else pin))
        folded = FileNumber(folded_through(self._disk, directory))
        return Account(directory, number, folded, str(state.get("state")))

    def _keep_all(self, directory: Path, exc: Exception) -> Account:
        """Pin everything: what is needed is unknown. The volume goes on."""
        if directory not in self._unreadable:
            log.warning("%s: keeping every file for it: %s", directory.name, exc)
        self._unreadable.add(directory)
        folded = FileNumber(folded_through(self._disk, directory))
        return Account(directory, FileNumber(0), folded, "unreadable")


def lowest(accounts: Sequence[Account]) -> FileNumber | None:
    """Return the file through which nobody needs anything, None if nobody needs any."""
    return min((one.needs_behind for one in accounts), default=None)
