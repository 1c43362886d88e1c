"""The keys of ``group.toml``: what each may be, how it is read, and how it is written.

A value is refused with the remedy of its key; which file and key it was, the reader adds.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aimfuse.config.windows import Window, parse_window
from aimfuse.errors import UsageError
from aimfuse.units import GIB, KIB, MIB, TIB, parse_duration_s, parse_size

VOLUME_BYTES_MAX = 1 << 62
IN_FLIGHT_MAX = 64
WINDOWS_MAX = 64
PATTERNS_MAX = 1000
SCHEMES = ("sftp", "dir")
"""How a destination can be reached; each has a transport."""

RESERVED = "later:"
"""The URL of a mirror that joins later: nothing is sent, what it lacks is kept or noted."""

URL_REMEDY = "Use sftp://user@host/path, dir:///path or an absolute path."

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_WHEN_FULL = ("fold", "block", "fail")


@dataclass(frozen=True, slots=True)
class Key:
    """How one key is read and written; `parse` raises `ValueError` or `UsageError`."""

    attribute: str
    parse: Callable[[object], Any]
    remedy: str
    render: Callable[[Path, Any], Any] = lambda _base, value: value


Keys = Mapping[str, Key]


def _size_key(attribute: str, low: int, high: int) -> Key:
    def parse(given: object) -> int:
        if isinstance(given, bool) or not isinstance(given, int | str):
            raise ValueError("is no size")  # noqa: TRY004 - one error for all values
        size = parse_size(given) if isinstance(given, str) else given
        if not low <= size <= high:
            raise ValueError("is out of range")
        return size

    remedy = f"Give a size from {_render_size(low)} to {_render_size(high)}."
    return Key(attribute, parse, remedy, lambda _base, size: _render_size(size))


def _duration_key(attribute: str, low_s: float, high_s: float) -> Key:
    def parse(given: object) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise ValueError("is no duration")  # noqa: TRY004 - one error for all values
        seconds = parse_duration_s(given) if isinstance(given, str) else float(given)
        if not low_s <= seconds <= high_s:
            raise ValueError("is out of range")
        return seconds

    remedy = f"Give a time from {_render_duration(low_s)} to {_render_duration(high_s)}."
    return Key(attribute, parse, remedy, lambda _base, seconds: _render_duration(seconds))


def _scrub_key(attribute: str) -> Key:
    """Return the key of a time in which everything is compared once, or "off", which is 0."""
    day_s = 86400
    duration = _duration_key(attribute, 60.0, 3660.0 * day_s)

    def parse(given: object) -> Any:  # noqa: ANN401 - as `Key.parse`
        return 0.0 if given == "off" else duration.parse(given)

    def render(base: Path, seconds: float) -> Any:  # noqa: ANN401 - as above
        if not seconds:
            return "off"
        return f"{seconds / day_s:.0f}d" if seconds % day_s == 0 else duration.render(base, seconds)

    return Key(attribute, parse, 'Give a time such as "30d", from a minute on, or "off".', render)


def _rate_key(attribute: str, low: int, high: int) -> Key:
    size = _size_key(attribute, low, high)

    def parse(given: object) -> Any:  # noqa: ANN401 - as `Key.parse`
        return size.parse(given.strip().removesuffix("/s") if isinstance(given, str) else given)

    def render(_base: Path, rate: int) -> str:
        text = str(_render_size(rate))
        return f"{text}/s" if not text.isdecimal() else f"{text}B/s"

    remedy = f"Give bytes per second from {_render_size(low)}/s on, such as 20MiB/s."
    return Key(attribute, parse, remedy, render)


def _count_key(attribute: str, low: int, high: int) -> Key:
    def parse(given: object) -> int:
        if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
            raise ValueError("is no number in range")
        return given

    return Key(attribute, parse, f"Give a whole number from {low} to {high}.")


def _flag_key(attribute: str) -> Key:
    def parse(given: object) -> bool:
        if not isinstance(given, bool):
            raise ValueError("is neither true nor false")  # noqa: TRY004 - one error for all values
        return given

    return Key(attribute, parse, "Write true or false, without quotes.")


def path_key(attribute: str) -> Key:
    """Return the key of a path; a relative one starts at the state directory."""
    return Key(attribute, _path, "Give a path in quotes.", render_path)


def _path(given: object) -> Path:
    if not isinstance(given, str) or not given or "\0" in given:
        raise ValueError("is no path")
    return Path(given)


def _paths(given: object) -> tuple[Path, ...]:
    if not isinstance(given, list):
        raise ValueError("is no list of paths")  # noqa: TRY004 - one error for all values
    return tuple(map(_path, given))


def _windows(given: object) -> tuple[Window, ...]:
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ValueError("is no list of windows")
    if len(given) > WINDOWS_MAX:
        raise ValueError(f"has more than {WINDOWS_MAX} windows")
    return tuple(map(parse_window, given))


def _patterns(given: object) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(one, str) and one for one in given):
        raise ValueError("is no list of names")
    if len(given) > PATTERNS_MAX or any("/" in one for one in given):
        raise ValueError(f"has a name with a slash, or more than {PATTERNS_MAX}")
    return tuple(given)


def check_url(given: object) -> str:
    """Return a destination's URL whose scheme is known.

    Raises:
        UsageError: it is empty, of another scheme, or a relative path.
    """
    if not isinstance(given, str) or not given.strip() or not given.isprintable():
        raise UsageError(f"{given!r} is no destination", hint=URL_REMEDY)
    try:
        known = given == RESERVED or given.startswith("/") or urlsplit(given).scheme in SCHEMES
    except ValueError:  # A bracket without its pair.
        known = False
    if not known:
        raise UsageError(f"{given!r} is no destination", hint=URL_REMEDY)
    return given


def check_name(given: object) -> str:
    """Return a destination's name.

    Raises:
        UsageError: it is none that a directory could bear.
    """
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        raise UsageError(f"{given!r} cannot name a destination", hint=_NAME_REMEDY)
    return given


def _when_full(given: object) -> str:
    if given not in _WHEN_FULL:
        raise ValueError("is no policy")
    return str(given)


def _render_size(size: int) -> str | int:
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return size


def _render_duration(seconds: float) -> str | float:
    thousandths = round(seconds * 1000)
    if thousandths != seconds * 1000:
        return seconds
    return f"{thousandths // 1000}s" if thousandths % 1000 == 0 else f"{thousandths}ms"


def render_path(base: Path, path: Path) -> str:
    """Write what lies in or right beside the state directory so that both can be moved."""
    if path.is_relative_to(base):
        return str(path.relative_to(base))
    if path.parent == base.parent:
        return f"../{path.name}"
    in_mirror = path.parent == base.parent / "mirror"  # The image of a store that is a source.
    return f"../mirror/{path.name}" if in_mirror else str(path)


def _render_paths(base: Path, paths: tuple[Path, ...]) -> list[str]:
    return [render_path(base, path) for path in paths]


_PATTERNS_REMEDY = 'Give a list of names or patterns, such as ["db-*", "home.img"].'
_WHEN_FULL_REMEDY = "Write fold, block or fail."
_NAME_REMEDY = "Use letters, digits, '.', '_' and '-', at most 63, starting with a letter or digit."

MOUNT: Keys = {
    "mountpoint": path_key("mountpoint"),
    "writeback": _flag_key("writeback"),
    "allow_other": _flag_key("allow_other"),
}
JOURNAL: Keys = {
    "file_bytes": _size_key("file_bytes", 64 * KIB, 128 * MIB),
    "file_age": _duration_key("file_age_s", 0.01, 3600.0),
    "commit_interval": _duration_key("commit_interval_s", 0.001, 60.0),
    "spool": path_key("spool"),
    "spool_bytes_max": _size_key("spool_bytes_max", MIB, 1024 * TIB),
    "spool_reserve": _size_key("spool_reserve_bytes", 0, TIB),
    "when_full": Key("when_full", _when_full, _WHEN_FULL_REMEDY),
    "size_max": _size_key("size_bytes_max", 0, VOLUME_BYTES_MAX),
    "memory_bytes_max": _size_key("memory_bytes_max", MIB, TIB),
    "checkpoint_interval": _duration_key("checkpoint_interval_s", 0.05, 86400.0),
    "scrub": _scrub_key("scrub_s"),
    "scrub_repair": _flag_key("scrub_repair"),
}
STORE: Keys = {
    "keep": _duration_key("keep_s", 0.0, 100 * 366 * 86400.0),
    "keep_size": _size_key("keep_bytes_max", 0, 1024 * TIB),
    "keep_free": _size_key("keep_free_bytes", 0, 1024 * TIB),
    "reader_max": _duration_key("reader_s_max", 0.0, 366 * 86400.0),
    "on_bookmark_timeout": _duration_key("on_bookmark_s_max", 1.0, 86400.0),
    "delay": _duration_key("delay_s", 0.0, 366 * 86400.0),
    "switchover": _flag_key("switchover"),
}
DESTINATION: Keys = {
    "name": Key("name", check_name, _NAME_REMEDY),
    "url": Key("url", check_url, URL_REMEDY),
    "paused": _flag_key("paused"),
    "bandwidth": _rate_key("bandwidth_bytes_s", 4 * KIB, TIB),
    "windows": Key(
        "windows",
        _windows,
        'Give local times, such as ["22:00-06:00", "Sat,Sun 00:00-24:00"].',
        lambda _base, windows: [str(one) for one in windows],
    ),
    "volumes": Key("volumes", _patterns, _PATTERNS_REMEDY, lambda _base, names: list(names)),
    "exclude": Key("exclude", _patterns, _PATTERNS_REMEDY, lambda _base, names: list(names)),
    "retry_min": _duration_key("retry_s_min", 0.05, 3600.0),
    "retry_max": _duration_key("retry_s_max", 0.05, 86400.0),
    "give_up_time": _duration_key("give_up_s", 0.0, 7 * 86400.0),
    "spool_share": _size_key("spool_share_bytes", MIB, 1024 * TIB),
    "when_full": Key("when_full", _when_full, _WHEN_FULL_REMEDY),
    "max_in_flight": _count_key("max_in_flight", 1, IN_FLIGHT_MAX),
    "inbox_bytes_max": _size_key("inbox_bytes_max", MIB, 1024 * TIB),
    "stall_time": _duration_key("stall_s_max", 1.0, 3600.0),
    "known_hosts": path_key("known_hosts"),
    "identity_files": Key(
        "identity_files", _paths, 'Give a list, such as ["~/.ssh/mirror"].', _render_paths
    ),
    "ssh_config": path_key("ssh_config"),
    "use_agent": _flag_key("use_agent"),
}
