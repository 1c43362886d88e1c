"""The end of this source's history: noted durably once, then nothing is sent to anybody."""

import logging
from pathlib import Path

import trio

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.decide import Promoted
from aimfuse.disk import Disk
from aimfuse.errors import SupersededError
from aimfuse.journal.superseded import Step, Superseded, read_superseded, write_superseded

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

    def error(self) -> SupersededError | None:
        """Return why nothing is sent any more, None while it is."""
        if self.note is None or self.note.step is Step.SWITCHING:  # That needs what is left.
            return None
        return self.note.error(str(self._image))
