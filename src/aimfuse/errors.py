"""Every error that aimfuse raises on purpose.

AimfuseError                 an expected failure: one line and a hint, never a traceback
├── UsageError               the operator asked for something impossible          exit 2
│   ├── ConfigError          a setting is wrong: file, key and remedy             exit 2
│   └── LabelTaken           a bookmark of that name exists already               exit 2
├── BusyError                somebody else holds it, or it is not mounted         exit 3
├── HookFailed               a hook of the operator's failed or took too long     exit 4
├── NotCaughtUp              a store could not apply all that has arrived         exit 5
├── JournalError             local history cannot be trusted or extended          exit 10
│   ├── TornRecord           the last write was cut short: drop it, go on
│   ├── CorruptRecord        bytes changed after they were written: stop
│   └── ForeignFile          an AIM file of another group, epoch or number
├── ImageMismatch            the image is not the one that was left behind        exit 11
├── StateLost                a small state, or the spool, cannot be read          exit 12
├── HaltedError              the volume refuses writes after a disk error         exit 13
├── VolumeError              one request is refused with the errno it carries     exit 1
├── StoreError               a store cannot go on without its operator            exit 14
├── OutOfReach               the past does not go back there, or not yet          exit 15
├── SupersededError          a mirror was promoted: this history has ended        exit 16
├── MirrorDiffers            a mirror does not hold what its image holds          exit 17
└── TransportError           a destination could not be reached or said no
    ├── Unavailable          try again later, with backoff                        exit 20
    └── Refused              do not try again before somebody acted               exit 21
"""

import errno
import os
from pathlib import Path
from typing import ClassVar

OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What an `OSError` of a full disk carries: freeing space helps, and waiting for it may."""


class AimfuseError(Exception):
    """An expected failure: shown as one line and a hint, never as a traceback."""

    exit_code: ClassVar[int] = 1
    hint: str = ""
    kernel_errno: int = errno.EIO

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep *message* for the operator and *hint*, the command to run next."""
        super().__init__(message)
        if hint:
            self.hint = hint


class UsageError(AimfuseError):
    """The operator asked for something that cannot be; nothing was changed."""

    exit_code = 2
    kernel_errno = errno.EINVAL


class ConfigError(UsageError):
    """A setting in *path* is wrong; nothing was changed."""

    def __init__(self, path: Path, key: str, problem: str, *, hint: str) -> None:
        """Name the file, the key in it, what is wrong and what would be right."""
        super().__init__(f"{path}: {key}: {problem}", hint=hint)
        self.path = path
        self.key = key


class LabelTaken(UsageError):
    """A bookmark of that name exists already: labels are given once in a group's life."""

    kernel_errno = errno.EEXIST

    def __init__(self, label: str, epoch: int, seq: int) -> None:
        """Say where the other one is."""
        super().__init__(
            f"there is a bookmark {label!r} already, at {epoch}:{seq}",
            hint="A label is given once. Choose another, such as one with the time in it.",
        )


class BusyError(AimfuseError):
    """Somebody else holds the thing, or nobody serves it; nothing was changed."""

    exit_code = 3
    kernel_errno = errno.EBUSY


class HookFailed(AimfuseError):
    """A hook failed or took too long; the message says what became of the rest."""

    exit_code = 4


class NotCaughtUp(AimfuseError):
    """What has arrived at a store cannot all be applied yet; what could be was."""

    exit_code = 5


class JournalError(AimfuseError):
    """The AIM file at *path* is unusable from *offset_bytes* on."""

    exit_code = 10

    def __init__(self, path: Path, offset_bytes: int, reason: str, *, hint: str = "") -> None:
        """Name the file, the first bad byte in it and what is wrong there."""
        super().__init__(f"{path} at byte {offset_bytes}: {reason}", hint=hint)
        self.path = path
        self.offset_bytes = offset_bytes
        self.reason = reason


class TornRecord(JournalError):
    """The file ends before the record does: the write was cut short."""


class CorruptRecord(JournalError):
    """A complete record or header fails its check. Nothing after it may be used."""

    hint = (
        "The disk changed bytes that were durable. Keep a copy of the state directory, "
        "then run `aimfuse mount --resync` to make the image the truth again."
    )


class ForeignFile(JournalError):
    """A sound AIM file that does not belong here: other group, epoch, number or parent."""


class ImageMismatch(AimfuseError):
    """The image was changed, replaced or restored while aimfuse was not serving it."""

    exit_code = 11


class StateLost(AimfuseError):
    """What was kept at *path* cannot be read: mostly, neither slot of a small state."""

    exit_code = 12

    def __init__(
        self, path: Path, problem: str = "neither slot is readable", *, hint: str = ""
    ) -> None:
        """Name the state and what is wrong with it."""
        super().__init__(f"{path}: {problem}", hint=hint)
        self.path = path


class HaltedError(AimfuseError):
    """The volume takes no more writes; what was accepted can still be read."""

    exit_code = 13
    hint = "Unmount, look at the disk and the log, then mount again: recovery redoes the journal."


class VolumeError(AimfuseError):
    """One request is refused with *kernel_errno*; the volume goes on."""

    def __init__(self, kernel_errno: int, message: str) -> None:
        """Carry the errno that the caller of the system call gets."""
        super().__init__(message)
        self.kernel_errno = kernel_errno


class StoreError(AimfuseError):
    """A store cannot go on without its operator; its mirror was not touched."""

    exit_code = 14


class OutOfReach(AimfuseError):
    """A point that the history of a store does not hold; nothing was changed."""

    exit_code = 15


class SupersededError(AimfuseError):
    """A mirror of this source was promoted and goes on instead; here nothing more is accepted."""

    exit_code = 16
    kernel_errno = errno.EROFS


class MirrorDiffers(AimfuseError):
    """A mirror and its image were compared and differ; which one is right nobody here can tell."""

    exit_code = 17


class TransportError(AimfuseError):
    """A destination could not be reached, or said no."""

    exit_code = 20


class Unavailable(TransportError):
    """The destination does not answer or is full: try again later, with backoff."""


class Refused(TransportError):
    """The destination's identity or ours is wrong: stop until somebody acted."""

    exit_code = 21


def explain(exc: BaseException) -> str:
    """Return what *exc* says; of the system's errors its words, and of which file, no number."""
    if not isinstance(exc, OSError):
        return str(exc)
    said = exc.strerror or str(exc)
    return f"{os.fsdecode(exc.filename)}: {said}" if exc.filename else said
