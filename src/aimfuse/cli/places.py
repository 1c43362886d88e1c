"""Where a store is that a command reads: on this host, or behind a URL."""

import contextlib
import errno
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer

from aimfuse.errors import AimfuseError, Refused, TransportError, UsageError

if TYPE_CHECKING:
    from aimfuse.config import DestinationConfig
    from aimfuse.replay.access import Access
    from aimfuse.transport import TransportSettings
    from aimfuse.transport.reading import SftpFiles

PlaceArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="A store: its directory, or sftp://[user@]host[:port]/path."
    ),
]
DestinationOption = Annotated[
    str | None,
    typer.Option("--dest", metavar="NAME", help="STORE is an image: reach this destination of it."),
]
IdentityOption = Annotated[
    list[Path] | None,
    typer.Option("--identity", metavar="FILE", help="Key to log in with; may be repeated."),
]
KnownHostsOption = Annotated[
    Path | None,
    typer.Option("--known-hosts", metavar="FILE", help="Default: ~/.ssh/known_hosts."),
]
SshConfigOption = Annotated[
    Path | None,
    typer.Option("--ssh-config", metavar="FILE", help="Default: ~/.ssh/config."),
]

_SCHEME = re.compile(r"[a-z]+:/")


@dataclass(frozen=True, slots=True)
class Place:
    """What the operator named, and how to get in there; None for OpenSSH's own files."""

    text: str
    destination: str | None = None
    identity_files: tuple[Path, ...] = ()
    known_hosts: Path | None = None
    ssh_config: Path | None = None


@contextmanager
def reached(place: Place) -> Iterator["Access"]:
    """Give access to the store at *place* while the block runs.

    Raises:
        UsageError: it is no store and no URL of one.
        TransportError: it cannot be reached.
    """
    # Imported when needed: the other commands do without.
    from aimfuse.replay.access import Access  # noqa: PLC0415

    one = _destination(place)
    url = one.url
    if url.startswith("dir:"):
        url = unquote(urlsplit(url).path)
    if not _SCHEME.match(url):
        _check_no_source(Path(url))
        yield Access.here(Path(url))
        return
    if not url.startswith("sftp:"):
        hint = "Give its directory, or sftp://[user@]host[:port]/path."
        raise UsageError(f"{url!r} is no place of a store", hint=hint)
    from aimfuse.transport.reading import SftpFiles  # noqa: PLC0415 - loads asyncssh

    files = SftpFiles(url, _settings(one))
    try:
        files.connect()
        with shown(url, files):
            yield Access.afar(files, url)
    finally:
        files.close()


def _check_no_source(path: Path) -> None:
    """Say it where an image is named in place of a store of it."""
    from aimfuse.config import STATE_SUFFIX  # noqa: PLC0415 - as above

    if not path.is_dir() and path.with_name(path.name + STATE_SUFFIX).is_dir():
        hint = "Name one of them with --dest NAME, or give its store. aimfuse destination list"
        raise UsageError(
            f"{path} is a source: its past is with its mirrors", hint=f"{hint} {path} shows them."
        )


def _destination(place: Place) -> "DestinationConfig":
    """Return what is known of the place: from the settings of an image, or as it was given."""
    from aimfuse.config import DestinationConfig, load  # noqa: PLC0415 - as above

    if place.destination is None:
        one = DestinationConfig("", place.text)
    else:
        from aimfuse.manager.target import find_source  # noqa: PLC0415 - seldom

        one = load(find_source(Path(place.text), None)).destination(place.destination)
    return replace(
        one,
        identity_files=place.identity_files or one.identity_files,
        known_hosts=place.known_hosts or one.known_hosts,
        ssh_config=place.ssh_config or one.ssh_config,
    )


def _settings(one: "DestinationConfig") -> "TransportSettings":
    from aimfuse.transport import TransportSettings  # noqa: PLC0415 - as above

    return TransportSettings(
        known_hosts=one.known_hosts,
        identity_files=one.identity_files,
        ssh_config=one.ssh_config,
        use_agent=one.use_agent,
        stall_s_max=one.stall_s_max,
    )


@contextmanager
def shown(url: str, files: "SftpFiles") -> Iterator[None]:
    """Have errors name the store as the operator did: a path has no double slash.

    What the account may not read is explained by what *files* can tell of it.
    """
    store = Path(url)
    try:
        yield
    except AimfuseError as exc:
        exc.args = tuple(str(one).replace(str(store), url) for one in exc.args)
        raise
    except OSError as exc:
        if exc.errno == errno.EACCES and Path(str(exc.filename)).is_relative_to(store):
            inside = Path(str(exc.filename)).relative_to(store)
            raise _not_readable(url, files, "" if inside == Path() else str(inside)) from exc
        if exc.filename:
            exc.filename = str(exc.filename).replace(str(store), url)
        raise


def _not_readable(url: str, files: "SftpFiles", inside: str) -> Refused:
    """Return what to say of a path of the store that is not for the account that we came as."""
    shown = f"{url.rstrip('/')}/{inside}".rstrip("/")
    held = f"{shown}: this account may not read it"
    for path in (inside, *map(str, Path(inside).parents)):
        with contextlib.suppress(OSError, TransportError):
            about = files.about("" if path == "." else path)
            if about is not None:
                what = "it" if path == inside else "the store" if path == "." else path
                mode = stat.S_IMODE(about.mode)
                held += f"; {what} belongs to user id {about.owner} over there, mode {mode:04o}"
                break
    return Refused(
        held,
        hint="What is mirrored is for the replayer's account alone. Come as that one: "
        "sftp://ACCOUNT@HOST/PATH, with a key in its authorized_keys (`ForceCommand internal-sftp "
        "-R` lets it read and nothing else). At `aimfuse serve`: with a key without deliver-only.",
    )
