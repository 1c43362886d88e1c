"""Where a group may not be mounted, and what the refusal says to do."""

from pathlib import Path

import pytest

from aimfuse.errors import AimfuseError, BusyError, UsageError
from aimfuse.mountpoint import check_mountpoint


def refusal(mountpoint: Path, image: Path) -> AimfuseError:
    with pytest.raises(AimfuseError) as caught:
        check_mountpoint(mountpoint, image, [image.with_name("v.img.aim")])
    return caught.value


def test_every_refusal_of_a_mountpoint_says_what_to_do(tmp_path: Path) -> None:
    image, full = tmp_path / "v.img", tmp_path / "full"
    image.touch()
    (full / "x").mkdir(parents=True)
    for mountpoint, kind, hint in (
        (tmp_path / "none", UsageError, f"mkdir {tmp_path / 'none'}"),
        (image, UsageError, "Choose an empty directory"),
        (full, UsageError, "Choose an empty directory"),
        (tmp_path, UsageError, "elsewhere"),
        (Path("/proc"), BusyError, "umount /proc"),
    ):
        refused = refusal(mountpoint, image)
        assert isinstance(refused, kind)
        assert hint in refused.hint


def test_an_empty_directory_is_a_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    check_mountpoint(tmp_path / "mnt", tmp_path / "v.img", [])
