"""Where a store is that is reached over SFTP, and what its failures mean.

The errors of everything that asyncssh does once it is connected are mapped here.
"""

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import asyncssh

from aimfuse.errors import TransportError, Unavailable, UsageError
from aimfuse.transport.bridge import AsyncioCancelledItselfError

FOREIGN = (asyncssh.Error, OSError, EOFError, AsyncioCancelledItselfError, ExceptionGroup)
"""What comes from the asyncio side and is no bug of ours."""

_URL_HINT = "Write sftp://[user@]host[:port]/path."


class SourceError(Exception):
    """The local file failed; carries that error past the mapping of the remote's."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True, slots=True)
class Place:
    """Where the store is, and what to say when it cannot be reached."""

    url: str
    host: str
    port: int | None
    user: str | None
    store: bytes

    def __str__(self) -> str:
        return self.url

    @classmethod
    def parse(cls, url: str) -> "Place":
        """Take an ``sftp:`` URL apart; ``/~/`` leads to the home directory."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise UsageError(f"{url!r}: {exc}", hint=_URL_HINT) from exc
        path = unquote(parts.path)
        if not parts.hostname or not path or parts.query or parts.fragment:
            raise UsageError(f"{url!r} names no host and path", hint=_URL_HINT)
        if parts.password is not None:
            hint = "Use a key: an entry in ~/.ssh/config, an identity file or an agent."
            raise UsageError(f"sftp://{parts.hostname}: no passwords in URLs", hint=hint)
        store = path.removeprefix("/~/") or "." if path.startswith("/~/") else path
        user = unquote(parts.username) if parts.username else None
        return cls(url, parts.hostname, port, user, os.fsencode(store.rstrip("/") or "/"))

    def explain(self, exc: BaseException) -> Exception:
        """Return what to raise in place of an error that came from the asyncio side."""
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        if isinstance(exc, SourceError):
            return exc.error
        if isinstance(exc, asyncssh.Error):
            return self._explain_remote(exc)
        if isinstance(exc, TransportError) or not isinstance(exc, FOREIGN):
            return exc if isinstance(exc, Exception) else AssertionError(repr(exc))  # Our own bug.
        return Unavailable(f"{self}: {_reason(exc)}")

    def _explain_remote(self, exc: asyncssh.Error) -> Unavailable:
        hint = ""
        if isinstance(exc, asyncssh.SFTPNoSuchFile):
            hint = "Does the parent directory exist there?"
        elif isinstance(exc, asyncssh.SFTPPermissionDenied):
            hint = "Give the account the right to do this in the store's directory."
        return Unavailable(f"{self}: {exc.reason or type(exc).__name__}", hint=hint)


def _reason(exc: Exception) -> str:
    """Return what happened in the system's words: asyncio's name the call and the address."""
    if isinstance(exc, TimeoutError):
        return "no answer"
    if isinstance(exc, OSError) and exc.errno is not None and exc.errno > 0:
        return os.strerror(exc.errno)
    return re.sub(r"\[Errno -?\d+\] ", "", str(exc)) or type(exc).__name__
