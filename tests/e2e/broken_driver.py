"""`aimfuse` with a driver that has a bug: for test_mount_errors.py.

The first argument names the fault; the rest is aimfuse's own command line. From the moment
the file ARMED appears beside the log (its path is in the second argument) the fault is there.
"""

import errno
import sys
from pathlib import Path
from typing import Any

from aimfuse.cli.main import main
from aimfuse.driver.engine import Engine
from aimfuse.driver.images import Images
from aimfuse.journal.journal import Journal

FAULTS = {
    "read": (Engine, "read", KeyError("made up")),
    "memory": (Engine, "write", MemoryError()),
    "write-eio": (Engine, "write", OSError(errno.EIO, "made up")),
    "flush": (Engine, "flush", ValueError("made up")),
    "sync": (Journal, "sync", OSError(errno.EIO, "made up")),
    "apply": (Images, "apply", OSError(errno.EIO, "made up")),
    "commit-bug": (Engine, "finish_commit", IndexError("made up")),
}


def break_it(owner: type, name: str, fault: Exception, armed: Path) -> None:
    """Make a method raise once *armed* exists."""
    whole = getattr(owner, name)

    def broken(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever it takes
        if armed.exists():
            raise fault
        return whole(*args, **kwargs)

    setattr(owner, name, broken)


break_it(*FAULTS[sys.argv[1]], Path(sys.argv[2]))
del sys.argv[1:3]
main()
