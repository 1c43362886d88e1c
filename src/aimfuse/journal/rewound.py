"""What a promotion went back over: which extents, and the volumes at the fork.

``rewound.map`` in a promoted store. An old source that rejoins knows what it wrote behind the
newest file that the store had applied; what lay between the fork and there has often left its
spool long ago, and this file says it. Together they name all that its image may have otherwise
than the fork.

In the file, little-endian: magic[8]="AIM-RWND" version:u16 reserved:u16 heads_bytes:u32
table_bytes:u32 reserved:u32, a JSON object with `fork` and `newest`, the table of volumes at the
fork as in a TABLE record, a dirty map, and last a CRC-32C:u32 of everything before it.
"""

import json
import struct
from dataclasses import dataclass

from crc32c import crc32c

from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.journal import Head
from aimfuse.journal.records import VolumeEntry, decode_table, encode_table
from aimfuse.journal.superseded import head_of
from aimfuse.units import MIB

REWOUND = "rewound.map"
REWOUND_BYTES_MAX = 96 * MIB
"""A dirty map at its largest, and a table of as many volumes as there can be."""

_MAGIC = b"AIM-RWND"
_VERSION = 1
_HEAD = struct.Struct("<8sHHIII")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Rewound:
    """All that files behind `fork` up to `newest` touched, and the `volumes` at the fork."""

    fork: Head
    newest: Head
    volumes: tuple[VolumeEntry, ...]
    touched: DirtyMap

    def encode(self) -> bytes:
        """Return the file's content; see the module."""
        said = {"fork": self.fork.to_json(), "newest": self.newest.to_json()}
        heads, table = json.dumps(said, separators=(",", ":")).encode(), encode_table(self.volumes)
        head = _HEAD.pack(_MAGIC, _VERSION, 0, len(heads), len(table), 0)
        data = b"".join((head, heads, table, self.touched.encode()))
        return data + _CRC.pack(crc32c(data))

    @classmethod
    def decode(cls, data: bytes) -> "Rewound":
        """Read what `encode` wrote.

        Raises:
            ValueError: it is damaged, cut short, or of another version.
        """
        if len(data) < _HEAD.size + _CRC.size or crc32c(data[:-4]) != _CRC.unpack(data[-4:])[0]:
            raise ValueError("checksum mismatch")
        magic, version, _reserved, heads_bytes, table_bytes, _ = _HEAD.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError("nothing of this version")
        table_at = _HEAD.size + heads_bytes
        map_at = table_at + table_bytes
        try:
            said = json.loads(data[_HEAD.size : table_at])
            fork, newest = head_of(said["fork"]), head_of(said["newest"])
        except (KeyError, TypeError, RecursionError) as exc:
            raise ValueError(f"no positions: {exc!r}") from exc
        volumes = decode_table(data[table_at:map_at])
        return cls(fork, newest, volumes, DirtyMap.decode(data[map_at : -_CRC.size]))
