"""How far a restore had come that was broken off, so that the next one goes on from there.

What was copied of the mirror is good for every point up to the file at which the copying began:
all that changed later is in undo files, which are executed on it whenever it was read. What was
taken back to the end of one file is good for all points up to there. Once records are carried
out on it, it is good for that point alone.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aimfuse.disk import Disk, publish, read_file
from aimfuse.replay.state import Json
from aimfuse.units import MIB, natural

NOTE_EVERY_S = 10.0
_BYTES_MAX = 4 * MIB


@dataclass(slots=True)
class Stage:
    """What is in the files so far, of volumes by id.

    Copying began at file `begun`, of the mirror with sync `sync`; `copied` are the bytes up to
    which each volume was copied, `names` those of the files that they are in. `back_to`: all is
    taken back to the end of that file. `digest` is that of the file `back_to`, or `begun`.
    `forward`: the number and the seq to which records are carried out.
    """

    group: str
    sync: int
    begun: int
    copied: dict[int, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    back_to: int | None = None
    digest: str = ""
    forward: tuple[int, int] | None = None

    def serves(self, wanted: "Stage", base: int, forward: tuple[int, int] | None) -> bool:
        """Tell whether a restore of *wanted* volumes, to behind file *base*, can go on from it."""
        own, theirs = (
            (one.group, one.sync, one.copied.keys(), one.names) for one in (self, wanted)
        )
        if own != theirs:  # Two volumes may have swapped their names.
            return False
        if self.forward is not None and self.forward != forward:
            return False
        return base <= self.end

    @property
    def end(self) -> int:
        """Return the number of the file whose end the volumes are at, or are copied from."""
        return self.begun if self.back_to is None else self.back_to

    def to_json(self) -> Json:
        """Return the form in which it is kept."""
        return {
            "group": self.group, "sync": self.sync, "begun": self.begun,
            "copied": {str(volume): at for volume, at in self.copied.items()},
            "names": {str(volume): name for volume, name in self.names.items()},
            "back_to": self.back_to, "digest": self.digest,
            "forward": list(self.forward) if self.forward else None,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Json) -> "Stage":
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        forward, back_to = data["forward"], data["back_to"]
        return cls(
            str(data["group"]),
            natural(data["sync"]),
            natural(data["begun"]),
            {int(volume): natural(at) for volume, at in data["copied"].items()},
            {int(volume): str(name) for volume, name in data["names"].items()},
            None if back_to is None else natural(back_to),
            str(data["digest"]),
            (natural(forward[0]), natural(forward[1])) if forward else None,
        )


class Resume:
    """Keeps the stage of one restore in a small file."""

    def __init__(self, disk: Disk, path: Path) -> None:
        """Keep it at *path*, and write it at most once in `NOTE_EVERY_S`."""
        self._disk = disk
        self._path = path
        self._noted_s = time.monotonic()

    def load(self) -> Stage | None:
        """Return what the last restore left, None if there is nothing of use."""
        try:
            return Stage.from_json(json.loads(read_file(self._disk, self._path, _BYTES_MAX)))
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
            return None

    def note(self, stage: Stage, targets: Iterable[int], *, now: bool = False) -> None:
        """Make what is in the *targets*, and then the stage, durable; if it is time, or *now*.

        Raises:
            OSError: the disk failed. What was noted before still holds.
        """
        if not now and time.monotonic() - self._noted_s < NOTE_EVERY_S:
            return
        for fd in targets:
            self._disk.fdatasync("resume:sync", fd)
        publish(self._disk, "resume", self._path, json.dumps(stage.to_json()).encode())
        self._noted_s = time.monotonic()

    def drop(self) -> None:
        """Forget it.

        Raises:
            OSError: the disk failed.
        """
        if self._disk.exists(self._path):
            self._disk.unlink("resume:unlink", self._path)
