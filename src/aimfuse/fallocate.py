"""Bring the kernel's fallocate requests, which pyfuse3 does not know, to an async handler.

Discard from a loop device, `fstrim` and `mkfs` arrive this way. The work is done by the
small C extension `_fallocate`; where it could not be built, the kernel answers its callers
EOPNOTSUPP by itself and nothing else changes.
"""

import errno
import importlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable

from aimfuse.errors import AimfuseError

log = logging.getLogger(__name__)

KEEP_SIZE = 1
PUNCH_HOLE = 2
ZERO_RANGE = 16
"""Bits of *mode* as the kernel sends them; preallocation has none of the last two."""

Handler = Callable[[int, int, int, int], Awaitable[int]]
"""Takes inode, mode, offset and length in bytes; returns an errno, 0 for done."""

Spawn = Callable[..., object]
"""Starts a task as `trio.Nursery.start_soon` does."""

_EXTENSION = "aimfuse._fallocate"


def load() -> bool:
    """Put the extension in front of libfuse; to be called before pyfuse3 is imported.

    Returns:
        False where fallocate will not be served: the extension was not built, or pyfuse3
        was imported first. May be called again.
    """
    if _EXTENSION in sys.modules:
        return True
    if "pyfuse3" in sys.modules:  # It has found libfuse's own function already.
        return False
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        importlib.import_module(_EXTENSION)
    except ImportError as exc:
        log.info("fallocate is not served: %s", exc)
        return False
    finally:
        sys.setdlopenflags(flags)
    return True


def install(handler: Handler, spawn: Spawn) -> bool:
    """Have every fallocate answered by *handler*, run in a task that *spawn* starts.

    Each request gets exactly one answer: what the handler returns; the errno of the error
    that it raises, if it has one; EIO for any other, which is logged as a bug and goes no
    further; ENOTCONN when its task is cancelled or can no longer be started.

    Args:
        handler: decides about modes itself; EOPNOTSUPP for those it does not know.
        spawn: usually `start_soon` of a nursery that is closed before `pyfuse3.close()`.

    Returns:
        False, with nothing changed, where the extension is not loaded.
    """
    if _EXTENSION not in sys.modules:
        return False
    extension = importlib.import_module(_EXTENSION)

    def begin(ino: int, mode: int, offset: int, length: int, request: object) -> None:
        async def answer() -> None:
            number = errno.ENOTCONN  # What a cancelled handler leaves: the mount is going.
            try:
                number = await _outcome(handler, ino, mode, offset, length)
            finally:
                extension.reply(request, number)

        try:
            spawn(answer)
        except RuntimeError as exc:  # The nursery is closed.
            log.info("fallocate refused: %s", exc)
            extension.reply(request, errno.ENOTCONN)

    extension.set_callback(begin)
    return True


def uninstall() -> None:
    """Refuse further requests with EOPNOTSUPP; those already begun get their answers."""
    if _EXTENSION in sys.modules:
        importlib.import_module(_EXTENSION).set_callback(None)


def served() -> bool:
    """Tell whether the present mount's fallocate requests arrive here."""
    return _EXTENSION in sys.modules and bool(importlib.import_module(_EXTENSION).wired())


async def _outcome(handler: Handler, ino: int, mode: int, offset: int, length: int) -> int:
    try:
        return int(await handler(ino, mode, offset, length))
    except AimfuseError as exc:
        return exc.kernel_errno
    except Exception as exc:
        # FUSEError carries an errno as OSError does; its class cannot be named here, since
        # this module is imported before pyfuse3 is.
        number = getattr(exc, "errno", None)
        if isinstance(number, int) and number > 0:
            return number
        log.exception("fallocate at %d+%d hit a bug", offset, length)
        return errno.EIO
