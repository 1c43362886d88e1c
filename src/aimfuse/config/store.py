"""``store.toml``: the settings of one store at the far side. It may be missing; so may any key.

What is wrong is refused with the file, the key and the remedy, as in ``group.toml``.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from aimfuse.config import setting_values
from aimfuse.config.keys import STORE
from aimfuse.disk import Disk, read_file
from aimfuse.errors import ConfigError
from aimfuse.units import GIB, MIB

STORE_CONFIG_NAME = "store.toml"
_CONFIG_BYTES_MAX = MIB


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How long the history of a store is kept, in seconds, and how large it gets, in bytes.

    0 seconds switch it off. `keep_free_bytes` of the disk are left alone, whatever else is said.
    With `delay_s` a journal file is applied once it is so old, in seconds.
    """

    keep_s: float = 7 * 86400.0
    keep_bytes_max: int = 50 * GIB
    keep_free_bytes: int = 256 * MIB
    delay_s: float = 0.0


def load_store(store: Path, disk: Disk) -> StoreConfig:
    """Return the settings of the store at *store*; the defaults where it has none.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or a key or value in it is wrong.
    """
    path = store / STORE_CONFIG_NAME
    try:
        data = tomllib.loads(read_file(disk, path, _CONFIG_BYTES_MAX).decode())
    except FileNotFoundError:
        return StoreConfig()
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(path, "file", f"is no TOML: {exc}", hint="Correct that line.") from exc
    except OSError as exc:
        raise ConfigError(path, "file", str(exc), hint="Make it readable.") from exc
    return StoreConfig(**setting_values(path, "", STORE, data))
