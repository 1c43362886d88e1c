"""What a coordinator works with, and what its destinations share."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aimfuse.config import DestinationConfig, GroupConfig
from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.ending import Ending
from aimfuse.coordinator.extents import SYNC_FILE_BYTES
from aimfuse.coordinator.source import Source, SourceCheckpoint
from aimfuse.disk import Disk, process_disk
from aimfuse.errors import Unavailable
from aimfuse.transport.base import Transport

Connect = Callable[[DestinationConfig], Transport]


@dataclass(frozen=True, slots=True)
class Tools:
    """The outside world of a coordinator; tests put other clocks, dice and links in place."""

    connect: Connect
    disk: Disk = field(default_factory=process_disk)
    wall_ns: Callable[[], int] = time.time_ns
    dice: random.Random = field(default_factory=random.Random)
    sync_file_bytes: int = SYNC_FILE_BYTES


@dataclass(slots=True)
class Parts:
    """What the destinations of one coordinator share."""

    config: GroupConfig
    tools: Tools
    backlog: Backlog
    source: Source
    ending: Ending

    @property
    def disk(self) -> Disk:
        """Return the labelled disk."""
        return self.tools.disk

    def wall_ns(self) -> int:
        """Return the wall clock, for reports only."""
        return self.tools.wall_ns()

    def checkpoint(self) -> SourceCheckpoint:
        """Return the driver's newest checkpoint.

        Raises:
            Unavailable: the group was never initialised.
            StateLost: the checkpoint is unreadable.
        """
        checkpoint = self.source.checkpoint()
        if checkpoint is None:
            raise Unavailable("the group has no checkpoint yet", hint="Mount the image once.")
        self.backlog.note_head(checkpoint.head.epoch, checkpoint.head.number)
        return checkpoint
