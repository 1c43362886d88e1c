"""Bring the images to the journal's end by redoing it from the last checkpoint.

The images may hold any part of what lies behind the checkpoint, in any mixture: writing all
of it again, in order, gives the same bytes. Names are found by inode, since a crash may have
come between two renames: volumes that the checkpoint knew and that still exist are found under
whatever name they bear, volumes made since are made again from nothing, and at the end every
volume gets the name it should have.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.driver.changes import Change
from aimfuse.driver.checkpoint import Checkpoint
from aimfuse.driver.images import HIDDEN_PREFIX, Images
from aimfuse.driver.labels import Label
from aimfuse.errors import ImageMismatch
from aimfuse.journal.names import JournalName
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import RecordType, VolumeEntry, check_name
from aimfuse.journal.recovery import read_files
from aimfuse.units import VolumeId

_NOT_OURS = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES, errno.ENOENT})
"""What opening a link, a socket or somebody else's file gives."""

_DATA = frozenset({RecordType.WRITE, RecordType.ZERO, RecordType.TRUNCATE})


@dataclass(slots=True)
class Namespace:
    """The volumes as the journal's records leave them, and the bookmarks in it; sizes in bytes."""

    names: dict[VolumeId, str] = field(default_factory=dict)
    sizes: dict[VolumeId, int] = field(default_factory=dict)
    next_volume: VolumeId = VolumeId(1)
    gone: set[str] = field(default_factory=set)
    """Names that were borne at some time since the start, by anybody."""

    bookmarks: list[Label] = field(default_factory=list)

    def entries(self) -> list[VolumeEntry]:
        """Return the volumes that exist."""
        return [VolumeEntry(v, name, self.sizes[v]) for v, name in self.names.items()]

    def follow(self, file: AimFile) -> None:
        """Take the records of *file* into account."""
        for iocb in file.records():
            volume = iocb.volume
            if iocb.type is RecordType.CREATE:
                self._name(volume, check_name(bytes(file.payload(iocb))))
                self.sizes[volume] = 0
                self.next_volume = VolumeId(max(self.next_volume, volume + 1))
            elif iocb.type is RecordType.RENAME:
                self.names.pop(VolumeId(iocb.offset), None)
                self._name(volume, check_name(bytes(file.payload(iocb))))
            elif iocb.type is RecordType.UNLINK:
                self.names.pop(volume, None)
            elif iocb.type is RecordType.TRUNCATE:
                self.sizes[volume] = iocb.length
            elif iocb.type is RecordType.BOOKMARK:
                label = bytes(file.payload(iocb)).decode(errors="replace")
                self.bookmarks.append(Label(label, file.identity.epoch, iocb.seq))
            elif iocb.type in _DATA:
                end = iocb.offset + iocb.length
                self.sizes[volume] = max(self.sizes.get(volume, 0), end)

    def _name(self, volume: VolumeId, name: str) -> None:
        self.names[volume] = name
        self.gone.add(name)


def redo(
    disk: Disk, spool: Path, files: tuple[JournalName, ...], checkpoint: Checkpoint, images: Images
) -> Namespace:
    """Open the images and bring them from *checkpoint* to the end of *files*, durably.

    Raises:
        ImageMismatch: an image that must be there is not.
        OSError: a disk failed; calling again starts over.
    """
    end = Namespace(next_volume=checkpoint.next_volume)
    for entry in checkpoint.entries():
        end.names[entry.volume] = entry.name
        end.sizes[entry.volume] = entry.size_bytes
        end.gone.add(entry.name)
    for file in read_files(disk, spool, files):
        end.follow(file)
    found = _open_images(disk, checkpoint, images, end)
    if not checkpoint.clean:
        images.drop_caches()
    for file in read_files(disk, spool, files):
        images.begin_epoch()
        _apply(images, [change for change in data_changes(file) if change.volume in end.names])
    if images.is_directory:
        _restore_names(disk, images.root, end, found)
    if not checkpoint.clean:
        images.fit({volume: end.sizes[volume] for volume in end.names})
        images.sync(images.take_all())
    images.begin_epoch()
    return end


def data_changes(file: AimFile) -> Iterator[Change]:
    """Yield the records of *file* that change bytes of a volume."""
    for iocb in file.records():
        if iocb.type is RecordType.TRUNCATE:
            yield Change(iocb.seq, iocb.type, iocb.volume, iocb.length, 0)
        elif iocb.type in _DATA:
            payload = bytes(file.payload(iocb))
            yield Change(iocb.seq, iocb.type, iocb.volume, iocb.offset, iocb.length, payload)


def _apply(images: Images, changes: Sequence[Change]) -> None:
    images.apply(changes)
    images.note_applied(changes)


def _open_images(
    disk: Disk, checkpoint: Checkpoint, images: Images, end: Namespace
) -> dict[VolumeId, str]:
    """Open the image of every volume in *end*; return the name under which each was found."""
    if not images.is_directory:
        (known,) = checkpoint.volumes
        volume = known.entry.volume
        images.open(volume, images.root)
        images.check_size(volume, end.sizes[volume])
        return {}
    by_inode = _inodes(disk, images.root)
    found: dict[VolumeId, str] = {}
    for known in checkpoint.volumes:
        volume = known.entry.volume
        if volume not in end.names:
            continue
        name = by_inode.get(known.inode)
        if name is None:
            raise ImageMismatch(
                f"{images.path(known.entry.name)} is not the file that was there at the last "
                f"checkpoint (inode {known.inode} is gone)",
                hint="Put the file back, or run `aimfuse mount --resync` to take what is there.",
            )
        images.open(volume, images.root / name)
        found[volume] = name
    for volume in end.names.keys() - found.keys():
        name = f"{HIDDEN_PREFIX}{volume}"
        images.open(volume, images.root / name, os.O_CREAT | os.O_TRUNC)
        found[volume] = name
    return found


def _inodes(disk: Disk, root: Path) -> dict[int, str]:
    found = {}
    for name in disk.listdir(root):
        try:
            fd = disk.open("image:look", root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno not in _NOT_OURS:
                raise
            continue
        found[disk.inode(fd)] = name
        disk.close(fd)
    return found


def _restore_names(disk: Disk, root: Path, end: Namespace, found: dict[VolumeId, str]) -> None:
    """Give every volume its name. Names wander over hidden ones, so that two can swap."""
    wrong = {volume: name for volume, name in found.items() if end.names[volume] != name}
    for volume, name in wrong.items():
        hidden = f"{HIDDEN_PREFIX}{volume}"
        if name != hidden:
            disk.rename("recovery:hide", root / name, root / hidden)
    for volume in wrong:
        target = root / end.names[volume]
        disk.rename("recovery:name", root / f"{HIDDEN_PREFIX}{volume}", target)
    hidden_left = {name for name in disk.listdir(root) if name.startswith(HIDDEN_PREFIX)}
    for name in (end.gone - set(end.names.values())) | hidden_left:
        with contextlib.suppress(FileNotFoundError):
            disk.unlink("recovery:unlink", root / name)
