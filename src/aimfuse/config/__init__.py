"""``group.toml``: the settings of one group, and where its state directory lies.

Every key is optional but `image` and a destination's `url`. Sizes are numbers of bytes or
text such as ``"16MiB"``, durations are seconds or text such as ``"200ms"``, relative paths
start at the state directory. What is wrong is refused with the file, the key and the remedy;
so are unknown keys: a misspelt limit that is silently ignored is no limit.
"""

import difflib
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import tomli_w

from aimfuse.config.keys import (
    DESTINATION,
    JOURNAL,
    MOUNT,
    RESERVED,
    Keys,
    check_name,
    check_url,
    path_key,
    render_path,
)
from aimfuse.config.windows import Window
from aimfuse.disk import Disk, publish, read_file
from aimfuse.errors import ConfigError, UsageError
from aimfuse.units import GIB, MIB, format_bytes

CONFIG_NAME = "group.toml"
STATE_SUFFIX = ".aim"
STORE_SOURCE = "source"
"""Where in a store that was promoted its state as a source lies."""

DESTINATIONS_MAX = 256

_CONFIG_BYTES_MAX = 4 * MIB
SPOOL_FILES_MIN = 16
"""With less, what comes in a burst folds a destination that is only a moment behind."""

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_SCP_LIKE = re.compile(r"(?:[^/@:]+@)?([^/:]+):(.*)")


@dataclass(frozen=True, slots=True)
class MountConfig:
    """Defaults of the mount's options."""

    mountpoint: Path | None = None
    writeback: bool = False
    allow_other: bool = False


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """How the journal is cut and kept; sizes in bytes, times in seconds.

    `size_bytes_max` is how large a volume may grow; None leaves each at its size. `scrub_s` is
    the time in which the mirrors are compared once, 0 for never; with `scrub_repair` what
    differs there is copied to them unasked.
    """

    file_bytes: int = 16 * MIB
    file_age_s: float = 1.0
    commit_interval_s: float = 0.2
    spool: Path = Path("spool")
    spool_bytes_max: int = 64 * GIB
    spool_reserve_bytes: int = 256 * MIB
    when_full: str = "fold"
    size_bytes_max: int | None = None
    memory_bytes_max: int = 256 * MIB
    checkpoint_interval_s: float = 30.0
    scrub_s: float = 30 * 86400.0
    scrub_repair: bool = False


@dataclass(frozen=True, slots=True)
class DestinationConfig:
    """One place that the group is mirrored to, and how to reach it.

    `bandwidth_bytes_s` caps what is sent, None does not; `windows` are the times at which
    files are sent, none are all; `volumes` and `exclude` are patterns of the names that are
    sent and that are not; pauses between tries grow from `retry_s_min` to
    `retry_s_max`; `give_up_s` of failures end a wait for an empty spool; `spool_share_bytes`
    is how much of the spool may be kept for it alone, None as much as there is; `when_full` is
    what happens then, None as the group says.
    `inbox_bytes_max` bounds what is sent ahead of the store's confirmation. A path that is
    None means OpenSSH's own.
    """

    name: str
    url: str
    paused: bool = False
    bandwidth_bytes_s: int | None = None
    windows: tuple[Window, ...] = ()
    volumes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    retry_s_min: float = 0.5
    retry_s_max: float = 60.0
    give_up_s: float = 120.0
    spool_share_bytes: int | None = None
    when_full: str | None = None
    max_in_flight: int = 4
    inbox_bytes_max: int = 4 * GIB
    stall_s_max: float = 60.0
    known_hosts: Path | None = None
    identity_files: tuple[Path, ...] = ()
    ssh_config: Path | None = None
    use_agent: bool = True

    @property
    def is_reserved(self) -> bool:
        """Tell whether it is kept for a mirror that joins later: its URL is still to come."""
        return self.url.startswith(RESERVED)


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """All settings of the group whose state is in `state_dir`; every path is absolute."""

    state_dir: Path
    image: Path
    mount: MountConfig = field(default_factory=MountConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    destinations: tuple[DestinationConfig, ...] = ()
    digest: str = field(default="", compare=False)
    """Of the file that they were read from: tells whether two processes follow the same."""

    @property
    def spool(self) -> Path:
        """Return the directory of the group's AIM files."""
        return self.state_dir / self.journal.spool

    def destination_dir(self, name: str) -> Path:
        """Return where the destination's cursor and status are kept."""
        return self.state_dir / "destinations" / name

    def destination(self, name: str) -> DestinationConfig:
        """Return the destination *name*.

        Raises:
            UsageError: there is none of that name.
        """
        for one in self.destinations:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.destinations) or "none"
        raise UsageError(f"no destination is called {name!r}", hint=f"Known: {known}.")


def state_dir_for(image: Path, state: Path | None = None) -> Path:
    """Return the state directory of *image*: *state* if given, else ``IMAGE.aim`` beside it.

    Of a store that was promoted it is within.

    Raises:
        UsageError: *image* is a device, beside which no directory may be made, has no name, or is
            a store that was not promoted.
    """
    if state is not None:
        return _normal(state)
    if (image / "inbox").is_dir() and (image / "state.0").exists():
        if not (image / STORE_SOURCE / CONFIG_NAME).exists():
            hint = f"Make it a source first: aimfuse promote {image}"
            raise UsageError(f"{image} is a store, and mirrors another source", hint=hint)
        return _normal(image / STORE_SOURCE)
    image = image.resolve()  # Two links to one image must not become two groups.
    if not image.name:
        raise UsageError(f"{image} has no name", hint="Name the state directory with --state DIR.")
    if _is_device(image):
        hint = f"Name one with --state DIR, such as /var/lib/aimfuse/{image.name}{STATE_SUFFIX}."
        raise UsageError(f"{image} is a device: its state needs a directory elsewhere", hint=hint)
    return image.with_name(image.name + STATE_SUFFIX)


def load(state_dir: Path, disk: Disk | None = None) -> GroupConfig:
    """Return the settings in *state_dir*.

    Raises:
        ConfigError: the file is missing, is no TOML, or a key or value in it is wrong.
    """
    path = state_dir / CONFIG_NAME
    try:
        text = read_file(disk or Disk(), path, _CONFIG_BYTES_MAX)
        data = tomllib.loads(text.decode())
    except FileNotFoundError as exc:
        hint = "Run `aimfuse init IMAGE` first, or name the right place with --state DIR."
        raise ConfigError(path, "file", "does not exist", hint=hint) from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(path, "file", f"is no TOML: {exc}", hint="Correct that line.") from exc
    except OSError as exc:
        raise ConfigError(path, "file", exc.strerror or str(exc), hint="Make it readable.") from exc
    return replace(_group(path, data), digest=hashlib.sha256(text).hexdigest())


def save(config: GroupConfig, disk: Disk | None = None) -> None:
    """Write *config* to its state directory, which must exist; whole or not at all, durable.

    Comments that an operator put into the file are lost.
    """
    path = config.state_dir / CONFIG_NAME
    data: dict[str, Any] = {"image": render_path(config.state_dir, config.image)}
    for section, keys, part in (
        ("mount", MOUNT, config.mount),
        ("journal", JOURNAL, config.journal),
    ):
        data[section] = _render(config.state_dir, keys, part)
    data["destination"] = [
        _render(config.state_dir, DESTINATION, one) for one in config.destinations
    ]
    _group(path, data)  # What is written can be read: the same check on both ways.
    publish(disk or Disk(), "config", path, tomli_w.dumps(data).encode())


def changed_keys(before: GroupConfig, after: GroupConfig, section: str) -> list[str]:
    """Return which keys of *section* are not the same: ``journal.spool``, ``destination a``."""
    if section == "destination":
        old = {one.name: one for one in before.destinations}
        new = {one.name: one for one in after.destinations}
        return [f"destination {n}" for n in sorted(old | new) if old.get(n) != new.get(n)]
    keys, one, other = {
        "journal": (JOURNAL, before.journal, after.journal),
        "mount": (MOUNT, before.mount, after.mount),
    }[section]
    return [
        f"{section}.{name}" for name, key in keys.items()
        if getattr(one, key.attribute) != getattr(other, key.attribute)
    ]  # fmt: skip


def add_destination(
    config: GroupConfig,
    url: str,
    *,
    name: str | None = None,
    **settings: Any,  # noqa: ANN401 - checked by the dataclass
) -> GroupConfig:
    """Return *config* with one more destination; *settings* are fields of `DestinationConfig`.

    A place that is there already changes nothing, and is refused under another name.
    A path that begins with a dot starts at the working directory.

    Raises:
        UsageError: the name is taken or no name, the place is taken, or the URL is of no known
            scheme.
    """
    url = check_url(str(_normal(Path(url))) if url.startswith(".") else url)
    for one in config.destinations:
        if _place(one.url) != _place(url) or one.is_reserved:
            continue
        if name in {None, one.name}:
            return config
        hint = "Give each destination a directory of its own."
        raise UsageError(f"{url} is a destination already: {one.name}", hint=hint)
    taken = {one.name for one in config.destinations}
    if name is None:
        name = _free_name(destination_name(url), taken)
    elif name in taken:
        raise UsageError(f"a destination {name!r} exists", hint="Choose another name.")
    new = DestinationConfig(check_name(name), url, **settings)
    return replace(config, destinations=(*config.destinations, new))


def destination_name(url: str) -> str:
    """Return the name for a destination that the operator did not name.

    The host of a URL, else the last part of a path.
    """
    if "://" in url:
        parts = urlsplit(url)
        word = (parts.hostname or "") or Path(parts.path).name
    elif match := _SCP_LIKE.fullmatch(url):
        word = match[1]
    else:
        word = Path(url).name
    word = _NOT_IN_A_NAME.sub("-", word).strip("-._")[:48]
    return word or "destination"


def _group(path: Path, data: dict[str, Any]) -> GroupConfig:
    base = path.parent
    known = ("image", "mount", "journal", "destination")
    _refuse_unknown(path, "", data, known)
    if "image" not in data:
        hint = 'Add the path of the image, such as image = "../v.img".'
        raise ConfigError(path, "image", "is missing", hint=hint)
    top = setting_values(path, "", {"image": path_key("image")}, {"image": data["image"]})
    mount = setting_values(path, "mount.", MOUNT, _table(path, "mount", data))
    journal = setting_values(path, "journal.", JOURNAL, _table(path, "journal", data))
    config = GroupConfig(
        base, top["image"], MountConfig(**mount), _journal(path, journal), _listed(path, data)
    )
    for index, one in enumerate(config.destinations):
        if one.spool_share_bytes is not None:
            where = f"destination[{index}].spool_share"
            _check_room(path, where, one.spool_share_bytes, config.journal)
    if config.image == config.spool:
        raise ConfigError(path, "journal.spool", "is the image", hint="Choose another directory.")
    return config


def _journal(path: Path, values: dict[str, Any]) -> JournalConfig:
    journal = JournalConfig(**values)
    _check_room(path, "journal.spool_bytes_max", journal.spool_bytes_max, journal)
    if journal.memory_bytes_max < 2 * journal.file_bytes:
        raise ConfigError(
            path, "journal.memory_bytes_max", "is less than two journal files",
            hint="Make it larger, or journal.file_bytes smaller.",
        )  # fmt: skip
    return journal


def _check_room(path: Path, key: str, room_bytes: int, journal: JournalConfig) -> None:
    if room_bytes < SPOOL_FILES_MIN * journal.file_bytes:
        raise ConfigError(
            path, key, f"is less than {SPOOL_FILES_MIN} journal files",
            hint=f"Make it {format_bytes(SPOOL_FILES_MIN * journal.file_bytes)} or more, or "
            "journal.file_bytes smaller.",
        )  # fmt: skip


def _listed(path: Path, data: dict[str, Any]) -> tuple[DestinationConfig, ...]:
    tables = data.get("destination", [])
    if not isinstance(tables, list) or len(tables) > DESTINATIONS_MAX:
        hint = f"Write one [[destination]] table for each, at most {DESTINATIONS_MAX}."
        raise ConfigError(path, "destination", "is not a list of tables", hint=hint)
    found: list[DestinationConfig] = []
    taken: set[str] = set()
    for index, table in enumerate(tables):
        where = f"destination[{index}]."
        if not isinstance(table, dict):
            raise ConfigError(path, where[:-1], "is no table", hint="Write [[destination]].")
        values = setting_values(path, where, DESTINATION, table)
        if "url" not in values:
            hint = 'Add one, such as url = "sftp://host/srv/mirror".'
            raise ConfigError(path, f"{where}url", "is missing", hint=hint)
        name = values.setdefault("name", _free_name(destination_name(values["url"]), taken))
        if name in taken:
            hint = "Give every destination a name of its own."
            raise ConfigError(path, f"{where}name", f"{name!r} is there twice", hint=hint)
        taken.add(name)
        destination = DestinationConfig(**values)
        if destination.retry_s_min > destination.retry_s_max:
            hint = "Make it smaller, or retry_max larger."
            raise ConfigError(path, f"{where}retry_min", "is more than retry_max", hint=hint)
        found.append(destination)
    return tuple(found)


def check_places(
    path: Path,
    destinations: Iterable[DestinationConfig],
    settled: Iterable[DestinationConfig] = (),
) -> None:
    """See that no two destinations are one place: there would be one mirror, and two shown.

    Two that are *settled* stay: a group that had them from before has to go on.

    Raises:
        ConfigError: two are.
    """
    old = {(one.name, one.url) for one in settled}
    taken: dict[str, DestinationConfig] = {}
    for index, one in enumerate(destinations):
        other = taken.setdefault(_place(one.url), one)
        is_settled = old.issuperset({(one.name, one.url), (other.name, other.url)})
        if other is not one and not is_settled and not one.is_reserved:
            hint = f"{other.name} is there: give each a directory of its own."
            where = f"destination[{index}].url"
            raise ConfigError(path, where, f"{one.url} is there twice", hint=hint)


def _place(url: str) -> str:
    """Return where *url* leads; the same for its usual spellings."""
    if url.startswith("/"):
        return os.path.normpath(url)
    parts = urlsplit(url)
    if parts.scheme == "dir":
        return os.path.normpath(unquote(parts.path))
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user}{at}{host.lower()}{parts.path.rstrip('/')}"


def setting_values(path: Path, where: str, keys: Keys, table: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that the *keys* of one *table* set.

    Raises:
        ConfigError: a key or a value is wrong; *where* begins its name.
    """
    _refuse_unknown(path, where, table, tuple(keys))
    values = {}
    for name, given in table.items():
        key = keys[name]
        try:
            value = key.parse(given)
        except (ValueError, UsageError) as exc:
            problem = f"{given!r}: {exc}"
            raise ConfigError(path, where + name, problem, hint=key.remedy) from exc
        values[key.attribute] = _absolute(path.parent, value)
    return values


def _refuse_unknown(path: Path, where: str, table: dict[str, Any], known: Sequence[str]) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
            raise ConfigError(path, where + name, "is no setting", hint=hint)


def _table(path: Path, name: str, data: dict[str, Any]) -> dict[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(path, name, "is no table", hint=f"Write [{name}] and its keys below.")
    return table


def _absolute(base: Path, value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_absolute(base, one) for one in value)
    if isinstance(value, Path):
        return _normal(base / value.expanduser())
    return value


def _normal(path: Path) -> Path:
    """Make *path* absolute without following links: a device's stable name is one."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows links


def _free_name(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(f"{name}-{n}" for n in range(2, len(taken) + 3) if f"{name}-{n}" not in taken)


def _is_device(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)


def _render(base: Path, keys: Keys, part: object) -> dict[str, Any]:
    values = {name: getattr(part, key.attribute) for name, key in keys.items()}
    return {
        name: keys[name].render(base, value)
        for name, value in values.items()
        if value is not None and value != ()
    }
