"""Put a disk that dies, fails or takes notes into any aimfuse process that this environment starts.

Python imports a module of this name at its start, so it also reaches children that a
supervisor starts. The environment variable AIMFUSE_CRUELTY holds a JSON object: `role` (the
command it is meant for: mount, ship, replay, serve), `trace` (a file that gets labels and
counts), `at` and `nth` (the label, or several with commas, and its how-manyeth step), `do`
(kill, eio, enospc, short, relay), `times` (for how many such steps) and `armed` (a file that
the first process to get there removes, so that the one that takes its place lives).

`relay` makes many lives of one process: each dies at the first label at which none before it
has died, and the next begins at once; see relay.py. `role` may be several, with commas, and
`relay` is the directory that gets a file for each, with the labels that were met. `only` are
beginnings of labels: no process dies at others.
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
    if not role or role[0] not in plan["role"].split(","):
        return None
    if plan["do"] == "relay":
        plan["met"] = f"{plan['relay']}/met-{role[0]}"
    return plan


if (_found := _plan()) is not None:  # Imported only there: other Pythons have no aimfuse.
    if _found["do"] == "relay":
        importlib.import_module("relay").live_again_and_again()
    _disk = importlib.import_module("cruel_disk").CruelDisk(_found)
    importlib.import_module("aimfuse.disk").install(_disk)
