"""The labels of all bookmarks in a group's life: none is given twice.

``STATE/labels`` has one line for each, ``{"label":…,"epoch":…,"seq":…}`` (see journal/lines.py),
appended before a checkpoint passes its record: what a crash has kept from the file is in the
journal behind the checkpoint, and recovery notes it again.
"""

import logging
import os
import threading
from pathlib import Path
from typing import NamedTuple

from aimfuse.disk import Disk, publish, read_file
from aimfuse.errors import LabelTaken
from aimfuse.journal.lines import LABELS_NAME, Fact, decode_lines, encode_lines
from aimfuse.units import MIB

log = logging.getLogger(__name__)

LABELS_MAX = 100_000
"""Beyond these the oldest are forgotten: one an hour for eleven years."""

_FILE_BYTES_MAX = 64 * MIB


class Label(NamedTuple):
    """A label, and the epoch and number of its record."""

    text: str
    epoch: int
    seq: int

    def to_json(self) -> Fact:
        """Return the form of the file."""
        return {"label": self.text, "epoch": self.epoch, "seq": self.seq}


class Labels:
    """What is known of the labels; without a place it is forgotten with the process.

    `check` and `note` belong to one thread; `save` may run on others.
    """

    def __init__(self, disk: Disk | None = None, state_dir: Path | None = None) -> None:
        """Read the labels of the group with *state_dir*.

        Raises:
            OSError: they could not be read.
        """
        self._disk = disk
        self._path = state_dir / LABELS_NAME if state_dir else None
        self._known: dict[str, Label] = {}
        self._unsaved: list[Label] = []
        self._saving = threading.Lock()
        self._end_at = 0
        self._lines = 0
        if disk is not None and self._path is not None and disk.exists(self._path):
            self._read(read_file(disk, self._path, _FILE_BYTES_MAX))

    def check(self, text: str) -> None:
        """Refuse a label that is taken.

        Raises:
            LabelTaken: by which bookmark it is.
        """
        if (known := self._known.get(text)) is not None:
            raise LabelTaken(text, known.epoch, known.seq)

    def note(self, one: Label) -> None:
        """Take note of a bookmark whose record is in the journal."""
        if self._known.get(one.text) != one:
            self._remember(one)
            self._unsaved.append(one)

    def save(self, epoch: int, seq: int) -> None:
        """Make durable what was noted of bookmarks up to record *seq*, which is durable. Blocks.

        What cannot be written stays for the next time; it is said, and halts nothing.
        """
        with self._saving:
            through = (epoch, seq)
            batch = [one for one in tuple(self._unsaved) if (one.epoch, one.seq) <= through]
            if not batch or self._disk is None or self._path is None:
                return
            try:
                self._append(self._disk, self._path, batch)
            except OSError as exc:
                log.warning("%s: %s; it will be tried again", self._path, exc)
            else:
                del self._unsaved[: len(batch)]

    def _append(self, disk: Disk, path: Path, batch: list[Label]) -> None:
        if self._lines + len(batch) > 2 * LABELS_MAX or not disk.exists(path):
            last = (batch[-1].epoch, batch[-1].seq)
            kept = [one for one in tuple(self._known.values()) if (one.epoch, one.seq) <= last]
            data = encode_lines(one.to_json() for one in kept)
            publish(disk, "labels", path, data)
            self._end_at, self._lines = len(data), len(kept)
            return
        data = encode_lines(one.to_json() for one in batch)
        fd = disk.open("labels:open", path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            disk.pwrite("labels:write", fd, [data], self._end_at)
            disk.fdatasync("labels:sync", fd)
        finally:
            disk.close(fd)
        self._end_at += len(data)
        self._lines += len(batch)

    def _remember(self, one: Label) -> None:
        self._known.pop(one.text, None)
        self._known[one.text] = one
        if len(self._known) > LABELS_MAX:
            del self._known[next(iter(self._known))]

    def _read(self, data: bytes) -> None:
        lines = decode_lines(data)
        for fact in lines.facts:
            self._remember(Label(fact["label"], fact["epoch"], fact["seq"]))
        self._end_at, self._lines = lines.end_at, len(lines.facts) + lines.damaged
        if lines.damaged:
            log.warning("%s: %d lines are damaged, and lost", self._path, lines.damaged)
