"""What the coordinator says about itself: which settings it follows, ``coordinator.json``."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.errors import ConfigError

REPORT_NAME = "coordinator.json"


@dataclass(frozen=True, slots=True)
class ShipReport:
    """The digest of the settings in force, what the last change was, and what was refused."""

    pid: int
    settings: str
    changed: tuple[str, ...] = ()
    error: ConfigError | None = None


def write_report(disk: Disk, state_dir: Path, report: ShipReport) -> None:
    """Replace the report; atomic, not durable, for it is only for reading now."""
    content = {
        "pid": report.pid,
        "settings": report.settings,
        "changed": report.changed,
        "error": str(report.error) if report.error else None,
        "hint": report.error.hint if report.error else None,
    }
    part = state_dir / f"{REPORT_NAME}.part"
    fd = disk.open("report:create", part, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        disk.pwrite("report:write", fd, [json.dumps(content).encode()], 0)
    finally:
        disk.close(fd)
    disk.rename("report:rename", part, state_dir / REPORT_NAME)
