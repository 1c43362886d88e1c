"""Loop devices with ext4 on them: the application's own, and that of a host that takes over."""

import contextlib
import os
import shutil
from pathlib import Path

from aimfuse.units import MIB
from demo.running import Failed, Patience

_PROGRAMS = ("losetup", "mkfs.ext4", "e2fsck", "mount", "umount")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class LoopDisk:
    """The file *image* as a disk with ext4, mounted at *mountpoint*."""

    def __init__(self, patience: Patience, image: Path, mountpoint: Path) -> None:
        self.image = image
        self.mountpoint = mountpoint
        self._patience = patience

    def format_and_mount(self) -> None:
        """Make a file system on it, as on a new disk, and mount it with discard."""
        device = self._attach("--direct-io=on")
        self._patience.run("mkfs.ext4", "-q", "-F", device)
        self._mount(device, "discard")

    def mount(self) -> None:
        """Mount what is on it, as after a power cut: the file system replays its own journal."""
        self._mount(self._attach(), "defaults")

    def _attach(self, *options: str) -> str:
        return self._patience.run("losetup", "-f", "--show", *options, self.image)

    def _mount(self, device: str, options: str) -> None:
        self.mountpoint.mkdir(exist_ok=True)
        self._patience.run("mount", "-t", "ext4", "-o", options, device, self.mountpoint)

    def release(self) -> None:
        """Unmount, detach and wait until the device is gone; nothing to do is fine."""
        with self._patience.finishing():
            while os.path.ismount(self.mountpoint):
                self._patience.run("umount", self.mountpoint)
            for device in self._devices():
                self._patience.run("losetup", "-d", device)
            # losetup returns before the kernel has let go.
            self._patience.until(lambda: not self._devices(), "the loop device was gone", 20.0)

    def _devices(self) -> list[str]:
        found = []
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if path.read_text(encoding="utf-8", errors="replace").strip() == str(self.image):
                    found.append(f"/dev/{path.parts[3]}")
        return found


def find_programs_of_root() -> None:
    """Let the programs be found also where a user's path lacks the directories for root."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{_SBIN}"


def may_use_loop_devices(patience: Patience, directory: Path) -> bool:
    """Try: root in a container may have everything but the devices."""
    if os.geteuid() != 0 or not all(map(shutil.which, _PROGRAMS)):
        return False
    image = directory / "probe.img"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    disk = LoopDisk(patience, image, directory / "probe")
    try:
        disk.format_and_mount()
    except Failed:
        return False
    finally:
        disk.release()
        image.unlink()
        with contextlib.suppress(OSError):
            disk.mountpoint.rmdir()
    return True
