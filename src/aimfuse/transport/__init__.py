"""Ways to bring files to a store, one module each, behind one small interface."""

from collections.abc import Callable
from urllib.parse import urlsplit

from aimfuse.errors import UsageError
from aimfuse.transport.base import Transport, TransportSettings

__all__ = ["Transport", "TransportSettings", "open_transport"]


def open_transport(url: str, settings: TransportSettings) -> Transport:
    """Return the transport for *url*, not yet connected: await its `open`.

    Known are ``sftp://[user@]host[:port]/path`` (``/~/path`` beneath the home directory),
    ``dir:///path`` and a plain absolute path.

    Raises:
        UsageError: the scheme is unknown or the URL lacks something.
    """
    scheme = "dir" if url.startswith("/") else urlsplit(url).scheme
    factory = _FACTORIES.get(scheme)
    if factory is None:
        raise UsageError(
            f"{url!r} is not a destination",
            hint="Use sftp://user@host/path, dir:///path or an absolute path.",
        )
    return factory(url, settings)


def _directory(url: str, settings: TransportSettings) -> Transport:
    # Imported when needed: whoever ships to a directory does not wait for asyncssh to load.
    from aimfuse.transport.directory import DirectoryTransport  # noqa: PLC0415

    return DirectoryTransport.from_url(url, settings)


def _sftp(url: str, settings: TransportSettings) -> Transport:
    from aimfuse.transport.sftp import SftpTransport  # noqa: PLC0415

    return SftpTransport.from_url(url, settings)


_FACTORIES: dict[str, Callable[[str, TransportSettings], Transport]] = {
    "dir": _directory,
    "sftp": _sftp,
}
