"""A store on a far side, read from here, and a replayer that is at work on it meanwhile."""

import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from aimfuse.disk import Disk
from aimfuse.replay.access import Access
from aimfuse.replay.point import Wanted
from aimfuse.replay.restore import Request, restore_from
from aimfuse.replay.session import Session
from aimfuse.transport.reading import About, File, SftpFiles
from tests.contract.far_sides import EmbeddedSide, OpensshSide
from tests.replay.recorder import Snapshot, silent

PATIENCE_S = 60.0


@contextmanager
def reaching(
    side: OpensshSide | EmbeddedSide,
    store: Path,
    port: int | None = None,
    disk: Disk | None = None,
    patience_s: float = PATIENCE_S,
    answer_s_max: float = 5.0,
    files_kind: type[SftpFiles] = SftpFiles,
) -> Iterator[Access]:
    """Give access to *store*, through *port* if that of a proxy is given."""
    inside = store.relative_to(side.root) if isinstance(side, EmbeddedSide) else store
    user = side.sshd.user if isinstance(side, OpensshSide) else "anybody"
    url = f"sftp://{user}@127.0.0.1:{port or side.port}/{str(inside).lstrip('/')}"
    files = files_kind(url, side.settings, patience_s)
    try:
        yield Access.afar(files, url, disk, answer_s_max)
    finally:
        files.close()


class Counted(SftpFiles):
    """Counts what comes over the line: bytes of files, by the end of their names, and lists."""

    got: ClassVar[Counter[str]] = Counter()

    def read(self, file: File, offset: int, length: int) -> bytes:
        before = self.got[_ending(file)]
        data = super().read(file, offset, length)
        self.got[_ending(file)] = before + len(data)  # Some of it came by `stream`.
        return data

    def stream(self, file: File, ranges: Iterable[tuple[int, int]]) -> Generator[tuple[int, bytes]]:
        for at, data in super().stream(file, ranges):
            self.got[_ending(file)] += len(data)
            yield at, data

    def names(self, path: str) -> list[tuple[str, About]]:
        self.got[f"list of {path}"] += 1
        return super().names(path)


def _ending(file: File) -> str:
    return Path(file.path.decode()).suffix


@contextmanager
def replaying(store: Path) -> Iterator[Session]:
    """Have a replayer at work on *store* while the block runs."""
    session, over = Session(Disk(), store), threading.Event()
    session.store.lock()

    def work() -> None:
        while not over.wait(0.01):
            session.round()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield session
    finally:
        over.set()
        thread.join()
        session.close()


def restored_from(access: Access, wanted: Wanted, output: Path) -> Snapshot:
    """Restore all volumes into the directory *output*; return what is in them."""
    said = restore_from(access, Request(output, wanted, as_directory=True), silent)
    found = {one["name"]: (output / one["name"]).read_bytes() for one in said["volumes"]}
    assert sorted(found) == sorted(path.name for path in output.iterdir())
    return found
