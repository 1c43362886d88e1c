"""`destination` and `reload`: where a group is mirrored to, changed while it is in use."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from aimfuse.cli.arguments import GroupArgument, JsonOption, StateOption
from aimfuse.cli.boundary import exit_on_error
from aimfuse.cli.places import IdentityOption, KnownHostsOption, SshConfigOption
from aimfuse.cli.plain import App
from aimfuse.config import GroupConfig, add_destination
from aimfuse.config.edit import change_destination, drop_destination, edit, parse_destination
from aimfuse.config.keys import check_url
from aimfuse.errors import UsageError

LIST_VERSION = 1

_LOGIN = ("identity_files", "known_hosts", "ssh_config")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The destination's name.")]

family = App(help="Add, remove, list, pause and resume a group's destinations.")


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.add_typer(family, name="destination")
    app.command("reload")(reload_settings)


@family.command("add")
def add(
    image: GroupArgument,
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Such as sftp://host/srv/mirror, dir:///backup/v.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Default: the host.")
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option("--bandwidth", metavar="RATE", help="Cap, such as 20MiB/s.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            "--window", metavar="TIMES", help='Such as "Mon-Fri 22:00-06:00"; may be repeated.'
        ),
    ] = None,
    spool_share: Annotated[
        str | None,
        typer.Option("--spool-share", metavar="SIZE", help="Most of the spool to keep for it."),
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Send nothing before resume.")] = False,
    identity: IdentityOption = None,
    known_hosts: KnownHostsOption = None,
    ssh_config: SshConfigOption = None,
    state: StateOption = None,
) -> None:
    """Mirror to one more place; it begins with a first copy."""
    given = {
        "bandwidth": bandwidth, "windows": window, "spool_share": spool_share,
        "paused": paused or None, "identity_files": [_from_here(path) for path in identity or ()],
        "known_hosts": _from_here(known_hosts), "ssh_config": _from_here(ssh_config),
    }  # fmt: skip
    with exit_on_error():
        state_dir = _state_dir(image, state)
        values = parse_destination(
            state_dir, {key: value for key, value in given.items() if value not in (None, [])}
        )
        _check_login(url, values)
        before = edit(state_dir, lambda config: config)

        def change(config: GroupConfig) -> GroupConfig:
            return add_destination(config, url, name=name, **values)

        after = edit(state_dir, change)
        if after == before and values:
            hint = "Change its table in group.toml, then run `aimfuse reload IMAGE`."
            raise UsageError(f"{url} is a destination already; nothing was changed", hint=hint)
        _obeyed(state_dir)
        new = {one.name for one in after.destinations} - {one.name for one in before.destinations}
        typer.echo(f"Added {', '.join(new)}." if new else f"{url} is a destination already.")


@family.command("remove")
def remove(
    image: GroupArgument,
    name: Name,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also if files wait that it has not got.")
    ] = False,
    state: StateOption = None,
) -> None:
    """Stop mirroring to a place, and let go of what waits for it.

    Its store stays as it is.
    """
    with exit_on_error():
        # Imported when needed: the other commands do without.
        from aimfuse.coordinator.leftovers import remove_account  # noqa: PLC0415
        from aimfuse.disk import Disk  # noqa: PLC0415

        state_dir = _state_dir(image, state)
        one = _told(state_dir, name)
        _confirm(one, name, yes=yes)
        edit(state_dir, lambda config: drop_destination(config, name))
        _obeyed(state_dir)
        remove_account(Disk(), state_dir, name)
        typer.echo(f"Removed {name}. Its store is as it was.")


@family.command("list")
def list_all(
    image: GroupArgument,
    as_json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """List the destinations, and what waits for each."""
    from aimfuse.manager.members import describe, listing  # noqa: PLC0415 - as above

    with exit_on_error():
        found = listing(_state_dir(image, state))
    if as_json:
        typer.echo(json.dumps({"version": LIST_VERSION, "destinations": found}, indent=2))
        return
    for one in found:
        typer.echo(describe(one))
    if not found:
        typer.echo("No destinations.")


@family.command("pause")
def pause(image: GroupArgument, name: Name, state: StateOption = None) -> None:
    """Send nothing to a place until `resume`; its files wait."""
    with exit_on_error():
        _set(_state_dir(image, state), name, paused=True)
        typer.echo(f"{name} is paused. What it lacks stays in the spool.")


@family.command("resume")
def resume(image: GroupArgument, name: Name, state: StateOption = None) -> None:
    """Send again to a place that was paused."""
    with exit_on_error():
        _set(_state_dir(image, state), name, paused=False)
        typer.echo(f"{name} is resumed.")


@family.command("url")
def set_url(
    image: GroupArgument,
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where its store lies from now on.")],
    state: StateOption = None,
) -> None:
    """Say where a place lies: one that has moved, or a mirror that was to join later.

    What it lacks is sent or copied; a store with another history is refused, and not touched.
    """
    with exit_on_error():
        wanted = check_url(url)
        _set(_state_dir(image, state), name, url=wanted)
        typer.echo(f"{name} is at {wanted} now.")


def reload_settings(image: GroupArgument, state: StateOption = None) -> None:
    """Check group.toml and take it over now: all of it or nothing."""
    from aimfuse.manager.reload import reload  # noqa: PLC0415 - as above

    with exit_on_error():
        done = reload(_state_dir(image, state))
    if not done.mounted and not done.shipping:
        typer.echo("The settings are right. Nobody serves the group: they count from the mount.")
        return
    typer.echo(f"In force: {', '.join(done.applied) or 'nothing new'}.")
    if done.at_next_mount:
        typer.echo(f"From the next mount on: {', '.join(done.at_next_mount)}.")


def _state_dir(image: Path, state: Path | None) -> Path:
    from aimfuse.manager.target import find_source  # noqa: PLC0415 - as above

    return find_source(image, state)


def _from_here(path: Path | None) -> str | None:
    """Return a path of the command line as the settings have it: theirs start elsewhere."""
    return None if path is None else str(path.expanduser().absolute())


def _check_login(url: str, values: dict[str, Any]) -> None:
    """Read the files that were named for logging in at *url*, before anything is changed.

    Raises:
        UsageError: one cannot be used, or nobody logs in there.
    """
    named = {key: value for key, value in values.items() if key in _LOGIN}
    if not named:
        return
    if url.startswith(("/", ".", "dir:")):
        hint = "Leave --identity, --known-hosts and --ssh-config out."
        raise UsageError(f"{url} is a directory of this host: nobody logs in there", hint=hint)
    host = urlsplit(check_url(url)).hostname or ""
    from aimfuse.transport import TransportSettings  # noqa: PLC0415 - as above
    from aimfuse.transport.ssh import check_files  # noqa: PLC0415 - loads asyncssh

    check_files(host, TransportSettings(**named))


def _set(state_dir: Path, name: str, **changes: Any) -> None:  # noqa: ANN401 - as given on
    edit(state_dir, lambda config: change_destination(config, name, **changes))
    _obeyed(state_dir)


def _obeyed(state_dir: Path) -> None:
    """Wait until whoever ships follows the settings."""
    from aimfuse.manager.reload import follow  # noqa: PLC0415 - as above

    follow(state_dir)


def _told(state_dir: Path, name: str) -> dict[str, Any]:
    from aimfuse.manager.members import find  # noqa: PLC0415 - as above

    return find(state_dir, name)


def _confirm(one: dict[str, Any], name: str, *, yes: bool) -> None:
    """Have the operator say that what waits for a destination may go.

    Raises:
        UsageError: files wait, and nobody said so.
    """
    from aimfuse.manager.members import waiting  # noqa: PLC0415 - as above

    what = waiting(one)
    if not what or yes:
        return
    question = f"{name} has not got {what}. Remove it, and let them go?"
    if not sys.stdin.isatty() or not typer.confirm(question, err=True):
        raise UsageError(f"{name} has not got {what}", hint="Add --yes to let them go.")
