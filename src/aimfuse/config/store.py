"""``store.toml``: the settings of one store at the far side. It may be missing; so may any key.

What is wrong is refused with the file, the key and the remedy, as in ``group.toml``.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from aimfuse.config import setting_values
from aimfuse.config.keys import STORE
from aimfuse.disk import Disk, NoPlainFile, read_file
from aimfuse.errors import ConfigError
from aimfuse.units import GIB, MIB

STORE_CONFIG_NAME = "store.toml"
ON_BOOKMARK = "on_bookmark"
COMMANDS_MAX = 64
CONFIG_BYTES_MAX = MIB


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How long the history of a store is kept, in seconds, and how large it gets, in bytes.

    0 seconds switch it off. `keep_free_bytes` of the disk are left alone, whatever else is said.
    For the sake of who reads it from afar it is kept `reader_s_max` longer, at most.
    With `delay_s` a journal file is applied once it is so old, in seconds. `on_bookmark` has
    patterns of labels, and the command for each; it may take `on_bookmark_s_max` seconds.
    Without `switchover` whoever may write into the inbox cannot have the store promoted.
    """

    keep_s: float = 7 * 86400.0
    keep_bytes_max: int = 50 * GIB
    keep_free_bytes: int = 256 * MIB
    reader_s_max: float = 86400.0
    delay_s: float = 0.0
    on_bookmark_s_max: float = 600.0
    on_bookmark: tuple[tuple[str, tuple[str, ...]], ...] = ()
    switchover: bool = True


def load_store(store: Path, disk: Disk) -> StoreConfig:
    """Return the settings of the store at *store*; the defaults where it has none.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or a key or value in it is wrong.
    """
    path = store / STORE_CONFIG_NAME
    try:
        return parse_store(path, read_file(disk, path, CONFIG_BYTES_MAX))
    except FileNotFoundError:
        return StoreConfig()
    except NoPlainFile as exc:
        raise ConfigError(path, "file", "is no plain file", hint="Remove it.") from exc
    except OSError as exc:
        raise ConfigError(path, "file", exc.strerror or str(exc), hint="Make it readable.") from exc


def parse_store(path: Path, text: bytes) -> StoreConfig:
    """Return the settings that *text*, the content of *path*, says; errors as for `load_store`."""
    try:
        data = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(path, "file", f"is no TOML: {exc}", hint="Correct that line.") from exc
    commands = data.pop(ON_BOOKMARK, {})
    values = setting_values(path, "", STORE, data)
    return StoreConfig(**values, on_bookmark=_commands(path, commands))


def _commands(path: Path, table: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the patterns of ``[on_bookmark]`` and their commands."""
    hint = f'Write [{ON_BOOKMARK}] and below it lines such as "nightly-*" = ["/usr/bin/backup"].'
    if not isinstance(table, dict):
        raise ConfigError(path, ON_BOOKMARK, "is no table", hint=hint)
    if len(table) > COMMANDS_MAX:
        raise ConfigError(path, ON_BOOKMARK, f"has more than {COMMANDS_MAX} lines", hint=hint)
    for pattern, command in table.items():
        is_command = isinstance(command, list) and all(isinstance(one, str) for one in command)
        if not is_command or not command or not command[0].startswith("/"):
            key, problem = f"{ON_BOOKMARK}.{pattern}", f"{command!r} is no command"
            hint = 'Write a list: the full path of a program, and its arguments: ["/usr/bin/x"].'
            raise ConfigError(path, key, problem, hint=hint)
    return tuple((pattern, tuple(command)) for pattern, command in table.items())
