"""The source's own account of itself: where its records are, and what its destinations say."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aimfuse.driver.engine import Engine
from aimfuse.driver.pump import Pump

STATUS_BYTES_MAX = 1 << 20

_REMOVED = {
    "state": "removed",
    "error": "not in group.toml any more; what it has not got stays in the spool",
    "hint": "Run `aimfuse destination remove IMAGE NAME`, or put its table back.",
}


class SourceStatus:
    """Assembles the status object that the control socket and ``.aimfuse/status`` show."""

    def __init__(
        self,
        engine: Engine,
        pump: Pump,
        image: Path,
        state_dir: Path,
        mountpoint: Path,
        destinations: Callable[[], Mapping[Path, str]],
        coordinator: Callable[[], dict[str, Any]],
    ) -> None:
        """Describe *engine*; *destinations* gives the URL by the directory of its account.

        *coordinator* tells how that process fares.
        """
        self._engine = engine
        self._pump = pump
        self._image = image
        self._state_dir = state_dir
        self._mountpoint = mountpoint
        self._destinations = destinations
        self._coordinator = coordinator
        self.scrub: Callable[[], dict[str, Any]] = dict
        """Tells how far the scrub is."""

    def __call__(self) -> dict[str, Any]:
        """Return the status now; sizes in bytes, times in Unix ns."""
        engine, pump = self._engine, self._pump
        journal = engine.journal
        active = journal.active
        state, reason = self._state()
        return {
            "group": engine.checkpoint.group.hex(),
            "image": str(self._image),
            "state_dir": str(self._state_dir),
            "mounted": True,
            "mountpoint": str(self._mountpoint),
            "state": state,
            "reason": reason,
            "epoch": journal.epoch,
            "accepted_seq": journal.last_seq,
            "durable_seq": journal.durable_seq,
            "applied_seq": engine.applied_seq,
            "checkpoint": {
                "number": engine.checkpoint.head.number,
                "seq": engine.checkpoint.head.seq,
            },
            "active": {
                "number": active.name.number if active else 0,
                "bytes": active.end_at if active else 0,
            },
            "spool": {
                "files": pump.keeper.files,
                "bytes": pump.keeper.bytes,
                "bytes_max": pump.keeper.limits.bytes_max,
                "free_bytes": pump.keeper.free_bytes,
                "level": pump.keeper.level,
            },
            "volumes": [
                {"id": v.volume, "name": v.name, "size": v.size_bytes} for v in engine.volumes
            ],
            "memory_bytes": engine.unapplied_bytes,
            "coordinator": self._coordinator(),
            "scrub": self.scrub(),
            "destinations": [_told(path, url) for path, url in self._destinations().items()],
            "time_ns": time.time_ns(),
        }

    def _state(self) -> tuple[str, str | None]:
        if self._engine.halted is not None:
            return "halted", self._engine.halted
        if (superseded := self._engine.superseded) is not None:
            return "diverging" if self._engine.is_diverging else "superseded", str(superseded)
        if self._pump.admission.full is not None:
            return "spool-full", self._pump.admission.full
        return "active", None


def _told(directory: Path, url: str) -> dict[str, Any]:
    """Return what the coordinator last wrote about a destination; it replaces files whole."""
    unheard: dict[str, Any] = {
        "name": directory.name, "url": url, "state": "new", "error": None
    }  # fmt: skip
    if not url:
        unheard |= _REMOVED
    try:
        with (directory / "status.json").open("rb") as file:
            told = json.loads(file.read(STATUS_BYTES_MAX))
    except (OSError, ValueError):
        return unheard
    told = told if isinstance(told, dict) else unheard
    return told if url else {**told, **_REMOVED, "name": directory.name}
