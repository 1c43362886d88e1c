"""A PostgreSQL server of a test's own, without a network, and what must hold in any copy of it.

Its files belong to the user `postgres`: every directory above them must be open to that.
"""

import contextlib
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.host import is_running, until

USER = "postgres"
START_S_MAX = 100
_AS_USER: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": [], "cwd": "/"}
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "min_wal_size": "32MB",
    "max_wal_size": "48MB",
    "checkpoint_timeout": "30s",
}
_IN_STEP = """
WITH done AS (SELECT coalesce(sum(delta), 0) AS total FROM pgbench_history)
SELECT (SELECT sum(abalance) FROM pgbench_accounts) = total
   AND (SELECT sum(tbalance) FROM pgbench_tellers) = total
   AND (SELECT sum(bbalance) FROM pgbench_branches) = total FROM done
"""
_INDEXES = """
SELECT count(*) FROM (
    SELECT bt_index_check(c.oid, heapallindexed => true)
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
     WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid
) AS checked
"""
_INDEXES_MIN = 50
"""Those of the catalogue alone are more."""


def programs() -> Path | None:
    """Return where the newest installed server's programs lie, None without one."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


class Commits:
    """A client that commits one row after the other; `acknowledged`: row and when, in Unix ns."""

    def __init__(self, sockets: Path) -> None:
        self.acknowledged: list[tuple[int, int]] = []
        self._psql = subprocess.Popen(
            ("psql", "-XAt", "--host", str(sockets)), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, bufsize=1, **_AS_USER,
        )  # fmt: skip
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._commit)
        self._thread.start()

    def end(self) -> None:
        """Commit nothing more."""
        self._is_over.set()
        self._thread.join()
        with self._psql:
            self._psql.communicate()

    def _commit(self) -> None:
        assert self._psql.stdin is not None
        assert self._psql.stdout is not None
        row = 0
        while not self._is_over.is_set():
            row += 1
            self._psql.stdin.write(f"INSERT INTO acknowledged SELECT {row:d};\n")
            if self._psql.stdout.readline() != "INSERT 0 1\n":
                return
            self.acknowledged.append((row, time.time_ns()))


class Postgres:
    """A server for the cluster in PLACE/db; PLACE is where a file system is mounted."""

    def __init__(self, place: Path) -> None:
        found = programs()
        assert found is not None, "PostgreSQL is not installed"
        self._programs = found
        self._place = place
        self._data = place / "db"
        self._runtime = place.with_name(f"{place.name}-run")  # Sockets and log are of no copy.
        self._runtime.mkdir()
        shutil.chown(self._runtime, USER, USER)

    def create(self) -> None:
        """Make the cluster, with checksums, and the tables that `busy` works on."""
        shutil.chown(self._place, USER, USER)
        self._run(
            "initdb", "--auth=trust", "--no-locale", "--encoding=UTF8", "--data-checksums",
            "--wal-segsize=4", f"--pgdata={self._data}",
        )  # fmt: skip
        with self.running():
            self.query("CREATE EXTENSION amcheck")
            self.query("CREATE TABLE acknowledged (n bigint PRIMARY KEY)")
            self._run("pgbench", "--initialize", "--quiet", f"--host={self._runtime}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve for the block, after a recovery if one is due."""
        settings = {**_SETTINGS, "unix_socket_directories": str(self._runtime)}
        # Of a copy: the server that it names is not this one's, though its number may be in use.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self._ctl("start", f"--log={self._runtime / 'log'}", f"--options={options}")
        postmaster = int((self._data / "postmaster.pid").read_text().split("\n")[0])
        try:
            yield
        finally:
            self._ctl("stop", "--mode=fast")
            # It works in the cluster's directory until it has gone, and pg_ctl does not wait.
            until(lambda: not is_running(postmaster))

    def query(self, text: str) -> str:
        """Return what a statement yields, as text."""
        return self._run("psql", "-XAtq", f"--host={self._runtime}", f"--command={text}").strip()

    def check(self) -> set[int]:
        """Check all indexes against their tables and pgbench's sums; return the rows of `busy`."""
        assert int(self.query(_INDEXES)) > _INDEXES_MIN
        assert self.query(_IN_STEP) == "t", "part of a transaction is there"
        return {int(line) for line in self.query("SELECT n FROM acknowledged").split()}

    @contextlib.contextmanager
    def busy(self) -> Iterator[Commits]:
        """Have pgbench at work during the block, and single rows committed beside it."""
        words = ("pgbench", "--client=2", "--time=600", f"--host={self._runtime}")
        bench = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **_AS_USER
        )
        commits = Commits(self._runtime)
        try:
            yield commits
            assert bench.poll() is None, "pgbench has ended"
        finally:
            commits.end()
            bench.terminate()
            bench.wait()

    def _ctl(self, *words: str) -> None:
        patience = ("--wait", f"--timeout={START_S_MAX}")
        self._run("pg_ctl", *patience, "--silent", f"--pgdata={self._data}", *words)

    def _run(self, program: str, *words: str) -> str:
        with tempfile.TemporaryFile() as said:  # A server would hold a pipe open for ever.
            done = subprocess.run(
                (self._programs / program, *words), check=False, stdin=subprocess.DEVNULL,
                stdout=said, stderr=subprocess.STDOUT, timeout=2 * START_S_MAX, **_AS_USER,
            )  # fmt: skip
            said.seek(0)
            text = said.read().decode()
        log = self._runtime / "log"
        more = log.read_text()[-2000:] if log.exists() else ""
        assert done.returncode == 0, f"{program} {words}: {text}{more}"
        return text
