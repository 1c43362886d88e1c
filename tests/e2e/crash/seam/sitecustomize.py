"""Put a disk that dies, fails or takes notes into any aimfuse process that this environment starts.

Python imports a module of this name at its start, so it also reaches children that a
supervisor starts. The environment variable AIMFUSE_CRUELTY holds a JSON object: `role` (the
command it is meant for: mount, ship, replay, serve), `trace` (a file that gets labels and
counts), `at` and `nth` (the label, and its how-manyeth step), `do` (kill, eio, enospc, short),
`times` (for how many such steps) and `armed` (a file that the first process to get there
removes, so that the one that takes its place lives).
"""

import importlib
import json
import os
import sys
from typing import Any


def _plan() -> dict[str, Any] | None:
    words = sys.orig_argv
    text = os.environ.get("AIMFUSE_CRUELTY")
    if not text or "aimfuse" not in words:
        return None
    plan: dict[str, Any] = json.loads(text)
    role = words[words.index("aimfuse") + 1 : words.index("aimfuse") + 2]
    return plan if role == [plan["role"]] else None


if (_found := _plan()) is not None:  # Imported only there: other Pythons have no aimfuse.
    _disk = importlib.import_module("cruel_disk").CruelDisk(_found)
    importlib.import_module("aimfuse.disk").install(_disk)
