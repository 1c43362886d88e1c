"""``paused.json``: what an operator has told a store not to do for now. It may be missing.

Written by whoever runs `aimfuse pause`, read by the replayer: they may be different users.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimfuse.disk import Disk, NoPlainFile, publish, read_file
from aimfuse.errors import explain
from aimfuse.units import KIB

PAUSES_NAME = "paused.json"
KINDS = ("receive", "apply")
REASON_CHARACTERS_MAX = 200
_BYTES_MAX = 64 * KIB
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when, in Unix ns, and why."""

    since_ns: int
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the form of the file and of reports."""
        return {"since_ns": self.since_ns, "reason": self.reason}


Pauses = dict[str, Pause]
"""By what is paused, of `KINDS`."""


def load_pauses(store: Path, disk: Disk) -> Pauses:
    """Return what is paused in the store; what cannot be read counts as a pause of everything.

    Raises:
        OSError: the disk failed.
    """
    try:
        data = json.loads(read_file(disk, store / PAUSES_NAME, _BYTES_MAX))
        return {kind: _pause(data[kind]) for kind in KINDS if kind in data}
    except FileNotFoundError:
        return {}
    except (PermissionError, NoPlainFile, ValueError, TypeError, KeyError, RecursionError) as exc:
        unread = Pause(0, f"{PAUSES_NAME} cannot be read: {explain(exc)}"[:REASON_CHARACTERS_MAX])
        return dict.fromkeys(KINDS, unread)


def save_pauses(store: Path, pauses: Pauses, disk: Disk) -> None:
    """Replace the file, durably.

    Raises:
        OSError: as the disk gave it; what was paused before still is.
    """
    data = json.dumps({kind: one.to_json() for kind, one in pauses.items()}).encode()
    publish(disk, "pauses", store / PAUSES_NAME, data + b"\n", _MODE)


def _pause(data: dict[str, Any]) -> Pause:
    return Pause(int(data["since_ns"]), str(data["reason"])[:REASON_CHARACTERS_MAX])
