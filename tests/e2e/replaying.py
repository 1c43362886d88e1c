"""A replayer for one store, on the host of a source that was promoted or rejoined."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.host import AIMFUSE, Source, until


@contextmanager
def replaying(store: Path) -> Iterator[None]:
    process = subprocess.Popen((*AIMFUSE, "replay", str(store)), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def ack(store: Path) -> dict[str, object]:
    try:
        found: dict[str, object] = json.loads((store / "ack.json").read_bytes())
    except FileNotFoundError:
        return {}
    return found


def wait_mirrored(new: Source, store: Path) -> None:
    number = new.call("roll")["number"]

    def is_there() -> bool:
        said = ack(store)
        applied = said.get("applied")
        at = applied["number"] if isinstance(applied, dict) else 0
        return said.get("phase") == "consistent" and at >= number

    until(is_there, lambda: (ack(store), new.status()["destinations"]))
    new.wait_applied()
