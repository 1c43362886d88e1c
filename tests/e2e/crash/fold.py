"""What the journal says the image holds: a reader of AIM files of its own, from docs/format.md.

It shares no line with the package, so that a fault there cannot hide itself here.
"""

import re
import struct
from pathlib import Path

HEADER_BYTES = 4096
_IOCB = struct.Struct("<4sBBHIIQQQQQII")
_NAME = re.compile(r"[0-9]{8}-([0-9]{12})\.aim")
_WRITE, _ZERO, _TRUNCATE = 1, 2, 3


def sealed_files(spool: Path, after: int) -> dict[int, Path]:
    """Return the sealed journal files above number *after*, by number, which has no holes."""
    found = {}
    for path in spool.iterdir():
        if (match := _NAME.fullmatch(path.name)) and int(match[1]) > after:
            found[int(match[1])] = path
    assert sorted(found) == list(range(after + 1, after + 1 + len(found))), "a file is missing"
    return dict(sorted(found.items()))


class Fold:
    """An image of one volume, and the number of the newest journal file in it."""

    def __init__(self, image: bytes, number: int) -> None:
        self.image = bytearray(image)
        self.number = number

    def follow(self, spool: Path) -> None:
        """Execute every sealed file that came since."""
        for number, path in sealed_files(spool, self.number).items():
            self._execute(path.read_bytes())
            self.number = number

    def _execute(self, data: bytes) -> None:
        at = HEADER_BYTES
        while at + _IOCB.size <= len(data):
            fields = _IOCB.unpack_from(data, at)
            magic, kind, _, _, _, payload_bytes, _, offset, length, data_at = fields[:10]
            if magic != b"IOCB" or data_at != at + _IOCB.size:
                return  # Here the IOCB portion begins.
            if kind == _WRITE:
                self._put(offset, data[data_at : data_at + payload_bytes])
            elif kind == _ZERO:
                self._put(offset, bytes(length))
            elif kind == _TRUNCATE:
                del self.image[length:]
                self.image.extend(bytes(length - len(self.image)))
            at = data_at + payload_bytes + -payload_bytes % 8

    def _put(self, offset: int, data: bytes) -> None:
        self.image.extend(bytes(max(0, offset + len(data) - len(self.image))))
        self.image[offset : offset + len(data)] = data
