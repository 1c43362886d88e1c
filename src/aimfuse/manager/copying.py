"""Follow the copy to a destination, asked for or under way, until the mirror has it."""

import time
from collections.abc import Callable
from pathlib import Path

from aimfuse.errors import Refused
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import read_json, read_slots
from aimfuse.manager.scene import STEPS
from aimfuse.manager.wait import HOPELESS, is_paused

POLL_S = 0.2

_REQUEST = "request.json"


def follow(state_dir: Path, name: str, report: Callable[[str, int, int], None]) -> bool:
    """Wait until no copy to *name* is asked for or under way; tell whether there was one.

    Args:
        state_dir: the group's state directory.
        name: the destination.
        report: is called with the step, the bytes done and those in all, several times a second.

    Raises:
        Refused: it will not end before somebody acts; what has arrived stays there.
    """
    place = state_dir / "destinations" / name
    was_there = False
    while _is_wanted(place):
        was_there = True
        status = Fields(read_json(place / "status.json"))
        state = status.text("state")
        if state in HOPELESS and not (state == "paused" and not is_paused(state_dir, name)):
            error = status.text("error")
            message = f"the copy to {name} does not go on: {state}"
            raise Refused(
                f"{message}: {error}" if error else message,
                hint="See aimfuse status for what to do; it goes on from where it is.",
            )
        sync = status.part("sync")
        step = sync.text("step")
        step = STEPS.get(step, step) or state or "nobody ships"
        what = sync.part("journal") or sync
        done = what.count("done_bytes") + sync.count("sent_bytes")
        report(step, min(done, what.count("total_bytes")), what.count("total_bytes"))
        time.sleep(POLL_S)
    return was_there


def _is_wanted(place: Path) -> bool:
    if (place / _REQUEST).exists():
        return True
    cursor, _problem = read_slots(place / "cursor")
    return bool(cursor and cursor.get("sync"))
