"""Notice that an image was changed, replaced or restored while nobody served it."""

from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from aimfuse.disk import Disk
from aimfuse.units import BLOCK_BYTES, align_down

SAMPLES = 32

Fingerprint = dict[str, Any]


def take(disk: Disk, images: Mapping[str, int]) -> Fingerprint:
    """Return what a clean end leaves behind: per volume its stat and sampled blocks.

    *images* are open descriptors by the volumes' names.
    """
    return {
        name: {"size": disk.size(fd), **disk.change_marks(fd), "blocks": _sample(disk, fd)}
        for name, fd in images.items()
    }


def differences(left: Fingerprint, right: Fingerprint) -> list[str]:
    """Return what differs, one line for people each; empty when nothing does."""
    found = [f"{name} is missing" for name in sorted(left.keys() - right.keys())]
    found += [f"{name} is new" for name in sorted(right.keys() - left.keys())]
    for name in sorted(left.keys() & right.keys()):
        changed = [key for key in left[name] if left[name][key] != right[name].get(key)]
        if changed:
            found.append(f"{name}: {', '.join(changed)} changed")
    return found


def _sample(disk: Disk, fd: int) -> str:
    size = disk.size(fd)
    digest = blake3()
    step = max(BLOCK_BYTES, align_down(size // SAMPLES, BLOCK_BYTES))
    for offset in range(0, size, step):
        digest.update(disk.pread(fd, BLOCK_BYTES, offset))
    return digest.hexdigest()
