"""The end of this source's history: noted durably once, then nothing is sent to anybody."""

import logging
from pathlib import Path

import trio

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.decide import Halt, Promoted
from aimfuse.disk import Disk
from aimfuse.errors import StateLost, SupersededError
from aimfuse.journal.slots import Slots
from aimfuse.journal.superseded import Step, Superseded, read_superseded, write_superseded

STORE_SOURCE = "source"
"""In a promoted store: the state directory of the source that it is."""

log = logging.getLogger(__name__)


class Ending:
    """What is known of it. `came` is set when a store has said so during this life."""

    def __init__(self, disk: Disk, state_dir: Path, image: Path) -> None:
        """Read what an earlier coordinator, or a command, has noted of the *image*'s history.

        Raises:
            StateLost: there is a note, and it cannot be read.
        """
        self._disk = disk
        self._state_dir = state_dir
        self._image = image
        self.note = read_superseded(disk, state_dir)
        self._own_epoch = _own_epoch(disk, state_dir)
        self.came = trio.Event()

    def take(self, config: DestinationConfig, promoted: Promoted) -> None:
        """Note durably what the store of a destination said; blocks for a moment.

        Raises:
            OSError: it could not be written; the store will say it again.
        """
        note = Superseded(config.name, config.url, promoted.promotion)
        if self.note is None or self.note.step is Step.SWITCHING:
            write_superseded(self._disk, self._state_dir, note)
            self.note = note
            log.warning("%s: %s; nothing is shipped any more", config.name, promoted)
        self.came.set()

    def is_older(self, promoted: Promoted) -> bool:
        """Tell whether that store was promoted before this source itself was, as a store.

        Then it lies behind us, and has to become a mirror before it can be one.
        """
        return promoted.promotion.epoch <= self._own_epoch

    def error(self) -> SupersededError | None:
        """Return why nothing is sent any more, None while it is."""
        if self.note is None or self.note.step is Step.SWITCHING:  # That needs what is left.
            return None
        return self.note.error(str(self._image))


def older(config: DestinationConfig) -> Halt:
    """Return what is to be said of a store that was promoted before this source was."""
    return Halt(
        f"{config.name} was promoted itself, earlier, and is no mirror yet",
        hint="On its host: aimfuse rejoin STORE URL, with the URL of this source's store.",
    )


def _own_epoch(disk: Disk, state_dir: Path) -> int:
    """Return with which epoch this source was promoted, 0 if it never was a store."""
    if state_dir.name != STORE_SOURCE:
        return 0
    try:
        state = Slots(disk, state_dir.parent / "state", "store-state").read() or {}
        return int((state.get("promoted") or {}).get("epoch", 0))
    except (StateLost, OSError, AttributeError, TypeError, ValueError):
        return 0
