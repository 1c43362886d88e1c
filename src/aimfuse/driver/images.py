"""The image files: apply durable records to them, read them, make them durable.

Everything here may run twice: applying a record again gives the same bytes. Names belong to a
directory group; the only volume of an image group keeps its path.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.driver.changes import Change
from aimfuse.errors import ImageMismatch
from aimfuse.journal.records import RecordType
from aimfuse.units import Seq, VolumeId

HIDDEN_PREFIX = ".aimfuse-"
"""Names that recovery gives to images between two names; never a volume's."""

_NAME_KINDS = frozenset({RecordType.CREATE, RecordType.RENAME, RecordType.UNLINK})


@dataclass(frozen=True, slots=True)
class Dirty:
    """What a sync has to make durable: descriptors of images, and whether names changed."""

    fds: tuple[int, ...]
    names: bool


class Images:
    """The open images of a group, by volume.

    `apply` and `sync` block and may run in worker threads, one of each at a time; the rest
    belongs to the main thread.
    """

    def __init__(
        self, disk: Disk, root: Path, *, directory: bool = False, device: bool = False
    ) -> None:
        """Serve the file or block device *root*, or the flat directory *root*."""
        self._disk = disk
        self._root = root
        self._directory = directory
        self._device = device
        self._fds: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._dirty: set[int] = set()
        self._names_dirty = False
        self._retired: list[int] = []
        self._applied_seq = Seq(0)

    @property
    def root(self) -> Path:
        """Return the path of the image or of the directory of images."""
        return self._root

    @property
    def is_directory(self) -> bool:
        """Tell whether volumes can be created, renamed and removed."""
        return self._directory

    @property
    def is_device(self) -> bool:
        """Tell whether the one volume lies on a block device, whose size nobody here can change."""
        return self._device

    def path(self, name: str) -> Path:
        """Return where the image of the volume *name* lies."""
        return self._root / name if self._directory else self._root

    def open(self, volume: VolumeId, path: Path, flags: int = 0) -> int:
        """Open the image of a volume and return its size in bytes."""
        if self._device:  # Exclusive: only so discards may drop dirty pages, and nobody mounts it.
            flags |= os.O_EXCL
        fd = self._disk.open("image:open", path, os.O_RDWR | flags)
        self._fds[volume] = fd
        self._sizes[volume] = self._disk.size(fd)
        return self._sizes[volume]

    def forget(self, volume: VolumeId) -> None:
        """Close the image of a volume that is gone and no longer used."""
        fd = self._fds.pop(volume, None)
        self._sizes.pop(volume, None)
        self._dirty.discard(volume)
        if fd is not None:
            self._retired.append(fd)  # A sync under way may still use it.

    def is_open(self, volume: int) -> bool:
        """Tell whether the volume has an image already; a new one gets it when applied."""
        return volume in self._fds

    def fd(self, volume: int) -> int:
        """Return the descriptor of a volume's image."""
        return self._fds[volume]

    def inode(self, volume: int) -> int:
        """Return the inode number of a volume's image, 0 while it has none."""
        fd = self._fds.get(volume)
        return self._disk.inode(fd) if fd is not None else 0

    def blocks(self, volume: int) -> int:
        """Return the space that a volume's image occupies, in units of 512 bytes."""
        fd = self._fds.get(volume)
        return self._disk.allocated(fd) // 512 if fd is not None else 0

    def owner(self, volume: int) -> tuple[int, int, int]:
        """Return permission bits, user and group of a volume's image."""
        return self._disk.owner(self._fds[volume])

    def set_owner(self, volume: int, mode: int, uid: int, gid: int) -> None:
        """Give a volume's image permission bits, user and group."""
        self._disk.set_owner(self._fds[volume], mode, uid, gid)

    def read(self, volume: int, length: int, offset: int) -> bytes:
        """Return *length* bytes of the image; zeros beyond its end or while it has none."""
        fd = self._fds.get(volume)
        data = self._disk.pread(fd, length, offset) if fd is not None else b""
        return data if len(data) == length else data.ljust(length, b"\0")

    def next_data(self, volume: int, start: int, end: int) -> int:
        """Return where the image has something from *start* on, *end* if it is all hole."""
        fd = self._fds.get(volume)
        return end if fd is None else self._disk.next_data(fd, start, end)

    def apply(self, changes: Sequence[Change]) -> None:
        """Put durable records into the images, in order; blocks.

        Raises:
            OSError: some are in, some are not. Called again with the same, it goes on where it
                stopped: writing twice does no harm, renaming twice would.
        """
        index = 0
        while index < len(changes) and changes[index].seq <= self._applied_seq:
            index += 1
        while index < len(changes):
            change = changes[index]
            if change.kind is RecordType.WRITE:
                index += self._write_run(changes, index)
                self._applied_seq = changes[index - 1].seq
                continue
            if change.kind is RecordType.ZERO:
                self._zero(change)
            elif change.kind is RecordType.TRUNCATE:
                self._truncate(change)
            else:
                self._rename(change)
            self._applied_seq = change.seq
            index += 1

    def begin_epoch(self) -> None:
        """Expect numbers from 1 again, or ones that were applied before."""
        self._applied_seq = Seq(0)

    def note_applied(self, changes: Sequence[Change]) -> None:
        """Note that `apply` returned: these images have to be synced before a checkpoint."""
        self._dirty.update(change.volume for change in changes)
        self._names_dirty = self._names_dirty or any(
            change.kind in _NAME_KINDS for change in changes
        )

    def take_dirty(self) -> Dirty:
        """Return what was applied since the last call, for `sync`. No sync may be under way."""
        for fd in self._retired:
            self._disk.close(fd)
        self._retired.clear()
        fds = tuple(self._fds[volume] for volume in sorted(self._dirty) if volume in self._fds)
        names, self._names_dirty = self._names_dirty, False
        self._dirty.clear()
        return Dirty(fds, names)

    def drop_caches(self) -> None:
        """See the images as the disk has them: after a failed sync the cache shows more."""
        for fd in self._fds.values():
            self._disk.drop_cache(fd)

    def take_all(self) -> Dirty:
        """Return all open images and the names, for `sync` after a recovery."""
        self.take_dirty()
        return Dirty(tuple(self._fds.values()), self._directory)

    def sync_all(self) -> None:
        """Make images, names and times durable; blocks. Errors as for `sync`."""
        for fd in self._fds.values():
            self._disk.fsync("image:sync_all", fd)
        if self._directory:
            self._disk.sync_dir("image:sync_dir", self._root)

    def are_allocated(self) -> bool:
        """Tell whether no image has a hole, so that writes inside them need no space."""
        return not self._directory and all(
            self._disk.allocated(fd) >= self._sizes[volume] for volume, fd in self._fds.items()
        )

    def fit(self, sizes: Mapping[VolumeId, int]) -> None:
        """Give images the sizes that their volumes have, where they differ."""
        for volume, size in sizes.items():
            if self._sizes[volume] != size:
                self._disk.truncate("image:fit", self._fds[volume], size)
                self._sizes[volume] = size

    def check_size(self, volume: VolumeId, size: int) -> None:
        """Refuse a device that has another size than its volume: nothing could put that right.

        Raises:
            ImageMismatch: it has. Nothing was changed.
        """
        if self._device and self._sizes[volume] != size:
            raise ImageMismatch(
                f"{self._root} has {self._sizes[volume]} bytes, its volume had {size}",
                hint="Give the device that size again, or the right device its name. Or run "
                "`aimfuse mount --resync` to take it as it is: what the journal holds and it does "
                "not is lost then, and the mirrors come back by staged copies.",
            )

    def sync(self, dirty: Dirty) -> None:
        """Make what was applied durable, names included; blocks.

        Raises:
            OSError: pages may be lost that the kernel will not report again. Only redoing the
                journal from the last checkpoint brings them back.
        """
        for fd in dirty.fds:
            self._disk.fdatasync("image:sync", fd)
        if dirty.names:
            self._disk.sync_dir("image:sync_dir", self._root)

    def close(self) -> None:
        """Close all images."""
        for volume in list(self._fds):
            self.forget(VolumeId(volume))
        self.take_dirty()

    def _write_run(self, changes: Sequence[Change], index: int) -> int:
        """Write *changes[index]* and the writes to the same volume after it; return how many."""
        volume = changes[index].volume
        run = list(
            takewhile(
                lambda change: change.kind is RecordType.WRITE and change.volume == volume,
                islice(changes, index, None),
            )
        )
        fd = self._fds.get(volume)
        if fd is not None:
            offsets = [change.offset for change in run]
            self._disk.pwrite_many("image:write", fd, offsets, [change.payload for change in run])
            end = max(change.offset + change.length for change in run)
            self._sizes[volume] = max(self._sizes[volume], end)
        return len(run)

    def _zero(self, change: Change) -> None:
        fd = self._fds.get(change.volume)
        if fd is None:
            return
        end = change.offset + change.length
        inside = min(end, self._sizes[change.volume]) - change.offset
        if inside > 0:
            self._disk.punch("image:punch", fd, change.offset, inside)
        if end > self._sizes[change.volume]:
            self._disk.truncate("image:extend", fd, end)
            self._sizes[change.volume] = end

    def _truncate(self, change: Change) -> None:
        fd = self._fds.get(change.volume)
        if fd is None:
            return
        size = change.offset
        if size != self._sizes[change.volume]:
            self._disk.truncate("image:truncate", fd, size)
            self._sizes[change.volume] = size

    def _rename(self, change: Change) -> None:
        """Create, rename or remove an image of a directory group."""
        if change.kind is RecordType.CREATE:
            path = self.path(change.name)
            self.open(VolumeId(change.volume), path, os.O_CREAT | os.O_TRUNC)
        elif change.kind is RecordType.RENAME:
            self._disk.rename("image:rename", self.path(change.old_name), self.path(change.name))
        elif change.kind is RecordType.UNLINK:
            try:
                self._disk.unlink("image:unlink", self.path(change.name))
            except OSError as exc:
                if exc.errno != errno.ENOENT:
                    raise


def largest_file(disk: Disk, directory: Path, wanted: int) -> int:
    """Return how many bytes a file in *directory* may have, at most *wanted*.

    Found by trying, with a nameless file; *wanted* where there is no such thing.
    """
    try:
        fd = disk.open("image:probe", directory, os.O_RDWR | os.O_TMPFILE)
    except OSError:
        return wanted
    try:
        fits, beyond = 0, wanted + 1
        size = wanted
        while fits + 1 < beyond:
            try:
                disk.truncate("image:probe", fd, size)
                fits = size
            except OSError as exc:
                if exc.errno not in {errno.EFBIG, errno.EINVAL}:
                    raise
                beyond = size
            size = (fits + beyond) // 2
        return fits
    finally:
        disk.close(fd)
