"""The volumes of a group as applications see them: names, sizes, and where they may end."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from aimfuse.driver.changes import Overlay
from aimfuse.journal.records import VolumeEntry, encode_table
from aimfuse.units import VolumeId


@dataclass(slots=True, eq=False)
class Volume:
    """One volume; `size_bytes` is what applications were told, ahead of the image's."""

    volume: VolumeId
    name: str
    size_bytes: int
    overlay: Overlay = field(default_factory=Overlay)
    mtime_ns: int = field(default_factory=time.time_ns)
    opens: int = 0
    removed: bool = False
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


class Volumes:
    """The volumes by id and by name. A removed one stays reachable while it is open."""

    def __init__(self, entries: Iterable[VolumeEntry], next_volume: VolumeId) -> None:
        """Start with *entries*; new volumes are numbered from *next_volume*."""
        self.next_volume = next_volume
        self._by_id = {e.volume: Volume(e.volume, e.name, e.size_bytes) for e in entries}
        self._by_name = {volume.name: volume for volume in self._by_id.values()}

    def __iter__(self) -> Iterator[Volume]:
        """Iterate over the volumes that have a name."""
        return iter(self._by_name.values())

    def __len__(self) -> int:
        """Return the count of volumes that have a name."""
        return len(self._by_name)

    def get(self, volume: int) -> Volume | None:
        """Return the volume with this id, also a removed one that is still open."""
        return self._by_id.get(VolumeId(volume))

    def named(self, name: str) -> Volume | None:
        """Return the volume of this name."""
        return self._by_name.get(name)

    def create(self, volume: VolumeId, name: str) -> Volume:
        """Add an empty volume."""
        fresh = Volume(volume, name, 0)
        self._by_id[volume] = fresh
        self._by_name[name] = fresh
        self.next_volume = VolumeId(max(self.next_volume, volume + 1))
        return fresh

    def rename(self, volume: Volume, name: str) -> None:
        """Give *volume* a name, taking it from whoever bears it."""
        replaced = self._by_name.get(name)
        if replaced is not None and replaced is not volume:
            replaced.removed = True
        del self._by_name[volume.name]
        volume.name = name
        self._by_name[name] = volume

    def remove(self, volume: Volume) -> None:
        """Take the name from *volume*."""
        volume.removed = True
        del self._by_name[volume.name]

    def forget(self, volume: Volume) -> None:
        """Drop a removed volume that nobody uses."""
        self._by_id.pop(volume.volume, None)

    def entries(self) -> list[VolumeEntry]:
        """Return id, name and size of every volume that has a name."""
        return [VolumeEntry(v.volume, v.name, v.size_bytes) for v in self]

    def table(self) -> bytes:
        """Return the payload of a TABLE mark for this moment."""
        return encode_table(self.entries())
