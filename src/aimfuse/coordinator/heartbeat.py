"""``source.json``: what a store should know of its source, sent every few seconds."""

import json
from typing import Any

from aimfuse.coordinator.parts import Parts


def heartbeat(parts: Parts, driver: dict[str, Any] | None, confirmed: int) -> bytes:
    """Return ``source.json``: what a store should know of its source.

    *confirmed* is the last file that the store is known to have.
    """
    backlog = parts.backlog
    found = backlog.header(backlog.newest)
    checkpoint = parts.source.checkpoint()
    seqs = [found[1].last_seq if found else 0, checkpoint.head.seq if checkpoint else 0]
    status = driver or {}
    active = (status.get("active") or {}).get("bytes") or 0
    content = {
        "group": checkpoint.group.hex() if checkpoint else None,
        "time_ns": parts.wall_ns(),
        "epoch": backlog.head.epoch,
        "accepted_seq": status.get("accepted_seq", max(seqs)),
        "newest": {"epoch": backlog.head.epoch, "number": backlog.newest},
        "spool": status.get("spool") or backlog.summary(),
        "state": status.get("state", "unmounted"),
        "kind": "directory" if parts.config.image.is_dir() else "image",
        "unsent": {
            "after": confirmed,
            "bytes": backlog.bytes_between(confirmed, backlog.newest) + active,
        },
    }
    return json.dumps(content).encode()
