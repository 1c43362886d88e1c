"""The application: a ledger in SQLite, every row committed durably, and files that come and go."""

import hashlib
import os
import sqlite3
import threading
import time
from pathlib import Path

from aimfuse.units import KIB

LEDGER = "ledger.db"
TICK_S = 0.05
CHUNK_BYTES = 384 * KIB
CHUNKS_A_FILE = 10
FILES = 12
_NOISE_BYTES = 1500


class Workload:
    """Writes below *directory* until stopped. Everything is committed as a real one would."""

    def __init__(self, directory: Path) -> None:
        self.rows = 0
        """Rows that the database has reported as committed."""
        self.error: Exception | None = None
        self._directory = directory
        self._slowest_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workload", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the commit under way; may be called twice."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def take_slowest_s(self) -> float:
        """Return how long the slowest commit since the last call took."""
        slowest_s, self._slowest_s = self._slowest_s, 0.0
        return slowest_s

    def _run(self) -> None:
        try:
            database = sqlite3.connect(self._directory / LEDGER)
            try:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                database.execute("CREATE TABLE ledger (number INTEGER PRIMARY KEY, noise, sum)")
                while not self._stopping.wait(TICK_S):
                    self._commit_row(database)
                    self._write_chunk(self.rows)
            finally:
                database.close()
        except (OSError, sqlite3.Error) as exc:
            self.error = exc

    def _commit_row(self, database: sqlite3.Connection) -> None:
        number = self.rows + 1
        noise = os.urandom(_NOISE_BYTES)
        began_s = time.monotonic()
        with database:
            row = (number, noise, row_sum(number, noise))
            database.execute("INSERT INTO ledger VALUES (?, ?, ?)", row)
        self._slowest_s = max(self._slowest_s, time.monotonic() - began_s)
        self.rows = number

    def _write_chunk(self, tick: int) -> None:
        path = self._directory / f"file-{tick // CHUNKS_A_FILE % FILES:02d}"
        if tick % CHUNKS_A_FILE == 0:
            path.unlink(missing_ok=True)
        with path.open("ab") as file:
            file.write(os.urandom(CHUNK_BYTES))
            file.flush()
            os.fsync(file.fileno())


def row_sum(number: int, noise: bytes) -> str:
    """Return what a row has to say about itself."""
    return hashlib.sha256(number.to_bytes(8, "little") + noise).hexdigest()
