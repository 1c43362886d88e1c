"""The interface that every file transfer implements, and the settings they share.

A destination's URL names a store directory. Beneath it ``inbox/`` receives files from us;
everything else, ``ack.json`` above all, is written by the far side and only read here.
"""

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aimfuse.disk import Disk
from aimfuse.errors import Refused, Unavailable, UsageError
from aimfuse.units import KIB

INBOX = "inbox"
BLOCK_BYTES_FLOOR = 4 * KIB
"""Below this a block is not worth its request, whatever the pace."""

PART_SUFFIX = ".part"
NEW_PART_SUFFIX = ".new.part"
"""Of a part file in the moment that it is made anew: it takes the old one's name, not its inode.
A session that died here may live on over there, and write into the part that it had open."""

FILE_MODE = 0o640
"""Of delivered files: a replayer that is another user gets in by group, nobody else does."""

DIRECTORY_MODE = 0o750

_NAME_BYTES_MAX = 200

Progress = Callable[[int], None]
"""Told how many more bytes the destination has taken; runs on trio's thread."""

Pace = Callable[[int], Awaitable[None]]
"""Awaited before bytes go, with how many, every byte once: the place for a rate limit."""


def ignore_progress(_count_bytes: int) -> None:
    """Be the `Progress` of a caller who does not want to know."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """What the operator may set about reaching a destination.

    ``None`` for a path means OpenSSH's own place: ``~/.ssh/known_hosts``, ``~/.ssh/config``.
    Without identity files those of the SSH configuration, else OpenSSH's usual ones, are used.
    Host keys are always checked; there is no setting for that.
    """

    known_hosts: Path | None = None
    identity_files: tuple[Path, ...] = ()
    ssh_config: Path | None = None
    use_agent: bool = True
    connect_s_max: float = 30.0
    keepalive_interval_s: float = 5.0
    keepalive_count_max: int = 3
    stall_s_max: float = 60.0
    """A connection on which a request waits and nothing is answered for this long is dead."""
    parallel_blocks: int = 16
    """Blocks in flight on one connection once it has proved fast."""
    block_bytes_max: int | None = None
    """The largest block to send at once, as far as the transport can: for even pacing."""
    makes_store: bool = True
    """Without it a store that is not there is `Refused`, and nothing is made in its place."""


class Transport(Protocol):
    """One connection to one store. It does not reconnect; make a new one for that.

    Every method but `aclose` raises `Unavailable` (try again later, over a new connection)
    or `Refused` (stop until somebody acted). Cancelling any of them is safe at any time.
    """

    async def open(self) -> None:
        """Connect; make the store and its inbox if they are missing, unless told otherwise.

        The store's parent directory has to exist: a mistyped path should not grow a tree.
        """

    async def put(
        self,
        source: Path,
        name: str,
        *,
        progress: Progress = ignore_progress,
        pace: Pace | None = None,
        fresh: bool = False,
    ) -> None:
        """Deliver the file *source* as ``STORE/inbox/NAME``, replacing it, whole or not at all.

        Durable when it returns, as far as the far side has ways to promise that. May run
        several times at once on one connection, with different names. What a failed or
        cancelled call leaves behind is ``NAME.part``, from whose end the next call goes on;
        with *fresh* the next call starts from nothing, for when the far side found damage.

        Raises:
            OSError: *source* itself cannot be read.
        """

    async def put_bytes(self, data: bytes, name: str) -> None:
        """Deliver a small file as ``STORE/inbox/NAME``, whole or not at all, durable."""

    async def get(self, name: str, limit_bytes: int) -> bytes | None:
        """Return the content of ``STORE/NAME``, or None if there is none.

        Larger than *limit_bytes* is `Unavailable`: what should be small is damaged or hostile.
        So is one that may not be read: its hint says whose permissions to look at.
        """

    async def free_bytes(self) -> int | None:
        """Return the bytes free on the store's file system, None where that cannot be asked."""

    async def aclose(self) -> None:
        """Let the connection go, whatever state it is in. May be called twice."""


def no_store(where: str) -> Refused:
    """Return the error for a place that has no store, where none is to be made."""
    return Refused(
        f"{where}: there is no store", hint="Look at the URL: it has to lead to one that is there."
    )


def unreadable(where: str, name: str) -> Unavailable:
    """Return the error for a file of the store that we may not read."""
    return Unavailable(
        f"{where}: {name} may not be read",
        hint=f"The account that ships must be able to read {name}: look at the modes of the file "
        "and of the store's directory, and at the umask of `aimfuse replay`.",
    )


def read_source(disk: Disk, source: Path, fd: int, at: int, length: int) -> bytes:
    """Read from *source*, open as *fd*, while that is its name; blocks.

    A file that a full spool gives up is renamed, durably, before it is written anew: what was
    read while it had its name is what it was sealed with.

    Raises:
        FileNotFoundError: it has gone, and what *fd* holds now may be another file's.
        OSError: as reading gave it.
    """
    data = disk.pread(fd, length, at)
    if source.stat().st_ino != disk.inode(fd):
        raise FileNotFoundError(errno.ENOENT, "it was replaced while it was sent", str(source))
    return data


def check_name(name: str) -> str:
    """Return *name* if it is one plain path component of modest length.

    Raises:
        UsageError: it is not; nothing was sent.
    """
    plain = name.isascii() and name.isprintable() and 0 < len(name) <= _NAME_BYTES_MAX
    if not plain or "/" in name or name.startswith("."):
        raise UsageError(f"{name!r} cannot be the name of a file in a store")
    return name
