"""A directory tree that a distant client may use: confined, and writable only in inboxes.

Paths are the client's: absolute means from the tree's root, ``..`` ends there. No symbolic link
is followed anywhere, so none can lead out, whoever made it and whenever. Each directory on the
way is opened without following links, and the last step is taken from that descriptor (by
``/proc/self/fd``), so nothing can be exchanged in between.

A view that is limited to some stores shows nothing else right beneath the root.

Only files directly inside a directory called ``inbox`` can be written and renamed; directories
can be made where no store is yet, nothing can be removed: a stolen source key adds files and
takes no name that a store will need.
What is there can be read, so that the owner of a store has its past. A view may be for reading
only, or for deliveries only: it then reads nothing but inboxes and acknowledgements.
"""

import copy
import errno
import os
import posixpath
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.journal.rewound import REWOUND
from aimfuse.replay.doubt import DIFFERS
from aimfuse.units import KIB

PRIVATE = b".aimfuse"
"""The server's own directory of keys: never reachable."""

INBOX = b"inbox"
ACK = b"ack.json"
REPORTS = {ACK, DIFFERS.encode(), REWOUND.encode()}
"""What a store says to who ships to it: where it stands, and which extents differ there."""

READ_BYTES_MAX = 255 * KIB

_FILE_MODE = 0o640
_DIRECTORY_MODE = 0o750
_DEPTH_MAX = 64


@dataclass(frozen=True, slots=True)
class Handle:
    """An open file, or a directory open for being synced."""

    fd: int
    is_directory: bool


@dataclass(frozen=True, slots=True)
class _Spot:
    """A name in a directory that is held open; the root itself is ``.`` in the root."""

    parent_fd: int
    name: bytes
    in_inbox: bool

    @property
    def path(self) -> Path:
        """A path that stays right even if the directory is moved meanwhile."""
        return Path(f"/proc/self/fd/{self.parent_fd}") / os.fsdecode(self.name)

    @property
    def no_links(self) -> int:
        """The flag for opening `path`; the root's is a link of the kernel's, to be followed."""
        return 0 if self.name == b"." else os.O_NOFOLLOW


class ConfinedTree:
    """The tree beneath *root*. Every method blocks; errors are `OSError` as the kernel's."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._disk = disk or Disk()
        self._stores: frozenset[bytes] | None = None
        self._reads_only = self._delivers_only = False
        self._root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the root; handles stay valid until they are closed."""
        self._disk.close(self._root_fd)

    def limited(
        self,
        stores: Iterable[str] | None,
        *,
        reads_only: bool = False,
        delivers_only: bool = False,
    ) -> "ConfinedTree":
        """Return a view with only these names beneath the root, or all; it is not to be closed."""
        view = copy.copy(self)
        if stores is not None:
            view._stores = frozenset(map(os.fsencode, stores))  # noqa: SLF001 - one of us
        view._reads_only, view._delivers_only = reads_only, delivers_only  # noqa: SLF001 - as above
        return view

    def open(self, path: bytes, flags: int) -> Handle:
        """Open a regular file, or a directory for syncing it."""
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        with self._spot(path) as spot:
            if writes and not spot.in_inbox:
                raise PermissionError(errno.EACCES, "only files in an inbox can be written")
            self._check_use(spot, writes=bool(writes))
            # A pipe in the tree must not hold the server up: no waiting, no links, and a look.
            flags |= spot.no_links | os.O_NONBLOCK
            fd = self._disk.open("serve:open", spot.path, flags, _FILE_MODE)
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return Handle(fd, stat.S_ISDIR(mode))
        self._disk.close(fd)
        raise PermissionError(errno.EACCES, "neither a file nor a directory")

    def release(self, handle: Handle) -> None:
        """Close the handle."""
        self._disk.close(handle.fd)

    def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """Return up to *length* bytes, at most `READ_BYTES_MAX`; fewer are no end of file."""
        return self._disk.pread(handle.fd, min(length, READ_BYTES_MAX), offset)

    def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Write all of *data*."""
        self._disk.pwrite("serve:write", handle.fd, [data], offset)
        return len(data)

    def sync(self, handle: Handle) -> None:
        """Make the file's content, or the directory's names, durable."""
        if handle.is_directory:
            self._disk.sync_dir("serve:sync-dir", Path(f"/proc/self/fd/{handle.fd}"))
        else:
            self._disk.fdatasync("serve:sync", handle.fd)

    def stat(self, path: bytes) -> os.stat_result:
        """Describe what bears the name; a symbolic link is described, not followed."""
        with self._spot(path) as spot:
            return os.stat(spot.name, dir_fd=spot.parent_fd, follow_symlinks=False)

    def statvfs(self, path: bytes) -> os.statvfs_result:
        """Describe the file system that holds *path*."""
        with self._spot(path) as spot:
            fd = os.open(spot.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=spot.parent_fd)
            try:
                return os.statvfs(fd)
            finally:
                self._disk.close(fd)

    def names(self, path: bytes) -> list[tuple[bytes, os.stat_result]]:
        """List a directory; what vanishes meanwhile is left out."""
        with self._spot(path) as spot:
            self._check_use(spot, writes=False)
            flags = os.O_RDONLY | os.O_DIRECTORY | spot.no_links
            fd = self._disk.open("serve:list", spot.path, flags)
        found = []
        is_limited = self._stores is not None and normalise(path) == b"/"
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if name != PRIVATE and not (is_limited and name not in (self._stores or ())):
                        found.append((name, info))
        finally:
            self._disk.close(fd)
        return found

    def mkdir(self, path: bytes) -> None:
        """Make a directory; that it exists already is an error here."""
        with self._spot(path) as spot:
            if self._disk.exists(spot.path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._check_use(spot, writes=True)
            self._check_outside_stores(path)
            self._disk.mkdir("serve:mkdir", spot.path, _DIRECTORY_MODE)

    def rename(self, old: bytes, new: bytes, *, replace: bool) -> None:
        """Rename a file within inboxes; durable when the directory is synced."""
        with self._spot(old) as source, self._spot(new) as target:
            if not (source.in_inbox and target.in_inbox):
                raise PermissionError(errno.EACCES, "only files in an inbox can be renamed")
            self._check_use(target, writes=True)
            if not replace and self._disk.exists(target.path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._disk.rename("serve:rename", source.path, target.path)

    def _check_use(self, spot: _Spot, *, writes: bool) -> None:
        """Refuse what a view does not allow."""
        if writes and self._reads_only:
            raise PermissionError(errno.EACCES, "this key is for reading only")
        is_reported = spot.in_inbox or spot.name == INBOX or spot.name in REPORTS
        if not writes and self._delivers_only and not is_reported:
            raise PermissionError(errno.EACCES, "this key is for deliveries only")

    def _check_outside_stores(self, path: bytes) -> None:
        """Refuse a place in a store that has its inbox: what else is in it is the replayer's."""
        steps = normalise(path).split(b"/")[1:-1]
        for depth in range(0 if self._stores is None else 1, len(steps) + 1):
            with self._spot(b"/".join([*steps[:depth], INBOX])) as spot:
                if self._disk.exists(spot.path):
                    raise PermissionError(errno.EACCES, "a store makes its own directories")

    @contextmanager
    def _spot(self, path: bytes) -> Generator[_Spot]:
        """Walk to the directory that holds *path*'s last name, following no link."""
        steps = normalise(path).split(b"/")[1:]
        if PRIVATE in steps:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self._stores is not None and steps != [b""] and steps[0] not in self._stores:
            raise PermissionError(errno.EACCES, "this key is for another store")
        if len(steps) > _DEPTH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        fd = os.dup(self._root_fd)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            for step in steps[:-1]:
                below = os.open(step, flags, dir_fd=fd)
                self._disk.close(fd)
                fd = below
            yield _Spot(fd, steps[-1] or b".", steps[-2:-1] == [INBOX])
        finally:
            self._disk.close(fd)


def normalise(path: bytes) -> bytes:
    """Return the client's path absolute, without ``.``, ``..`` and doubled slashes."""
    # Two leading slashes would survive normpath, as POSIX lets them mean something else.
    return b"/" + posixpath.normpath(b"/" + path).lstrip(b"/")
