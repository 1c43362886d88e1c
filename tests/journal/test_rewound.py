"""The note of what was gone back over: read as it was written, or not at all."""

import pytest

from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.journal import Head
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.rewound import Rewound
from aimfuse.units import Epoch, FileNumber, Seq, VolumeId

FORK = Head(Epoch(1), FileNumber(7), Seq(70), b"\1" * 32, 5)
NEWEST = Head(Epoch(2), FileNumber(9), Seq(3), b"\2" * 32, 6)


def noted() -> Rewound:
    touched = DirtyMap()
    touched.add(1, 8192, 4096)
    touched.add(3, 0, 1 << 30)
    volumes = (VolumeEntry(VolumeId(1), "a", 20000), VolumeEntry(VolumeId(3), "ä", 1 << 31))
    return Rewound(FORK, NEWEST, volumes, touched)


def test_it_comes_back_as_it_was_written() -> None:
    one = noted()
    found = Rewound.decode(one.encode())
    assert (found.fork, found.newest, found.volumes) == (one.fork, one.newest, one.volumes)
    assert list(found.touched.extents()) == list(one.touched.extents())


def test_of_a_volume_less_group_too() -> None:
    found = Rewound.decode(Rewound(FORK, NEWEST, (), DirtyMap()).encode())
    assert (found.volumes, bool(found.touched)) == ((), False)


def test_every_proper_prefix_is_refused() -> None:
    data = noted().encode()
    for end in range(0, len(data), 7):
        with pytest.raises(ValueError, match="checksum"):
            Rewound.decode(data[:end])


def test_a_flipped_bit_anywhere_is_refused() -> None:
    data = noted().encode()
    for at in (*range(400), *range(400, len(data), 97), len(data) - 1):
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match="checksum"):
            Rewound.decode(bytes(spoilt))
