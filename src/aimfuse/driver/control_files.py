"""The files in ``.aimfuse/`` of a mount: ``status`` and ``lag`` to read, ``bookmark`` to write."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aimfuse.errors import UsageError
from aimfuse.journal.records import NAME_BYTES_MAX

CONTROL_NAMES = ("status", "lag", "bookmark")

Status = dict[str, Any]


class ControlFiles:
    """What reading and writing them does; a reader gets the state of the moment it opened."""

    def __init__(
        self, status: Callable[[], Status], bookmark: Callable[[str], Awaitable[object]]
    ) -> None:
        """Show what *status* returns; hand labels to *bookmark*."""
        self._status = status
        self._bookmark = bookmark

    def read(self, name: str) -> bytes:
        """Return the contents of a control file."""
        if name == "bookmark":
            return b""
        status = self._status()
        if name == "status":
            return json.dumps(status, indent=2).encode() + b"\n"
        return "".join(map(_lag_line, status["destinations"])).encode()

    async def write(self, data: bytes) -> int:
        """Put a bookmark with the label *data*, without the line's end, into the journal.

        Raises:
            UsageError: the label is empty, too long, or not text.
        """
        await self._bookmark(check_label(data.decode(errors="replace").strip()))
        return len(data)


def check_label(label: str) -> str:
    """Return a bookmark's label.

    Raises:
        UsageError: empty, above 255 bytes, or with control characters.
    """
    if not label or len(label.encode()) > NAME_BYTES_MAX or not label.isprintable():
        raise UsageError(
            f"{label!r} cannot be a bookmark", hint="Give one line of text, at most 255 bytes."
        )
    return label


def _lag_line(destination: Status) -> str:
    """Return one destination's line; what another process wrote may lack or spoil anything."""
    lag = destination.get("lag")
    known = lag if isinstance(lag, dict) else {}
    seconds = known.get("seconds")
    told = f"{seconds:.3f}" if isinstance(seconds, int | float) else "?"
    return (
        f"{destination.get('name', '?')} {told} s "
        f"{known.get('bytes', '?')} bytes {known.get('files', '?')} files\n"
    )
