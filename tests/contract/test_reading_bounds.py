"""A server that answers otherwise than it was asked: nothing is misplaced, nothing is endless."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest

from aimfuse.errors import Refused
from aimfuse.transport import TransportSettings
from aimfuse.transport.bridge import AsyncioThread
from aimfuse.transport.reading import RUN_BYTES, RUNS_MAX, SftpFiles
from aimfuse.units import KIB, MIB

CONTENT = bytes(range(251)) * 20_000
NAMES_MAX = 1000


class Odd(asyncssh.SFTPServer):
    """Gives more than was asked for, and lists without end; notes how far it was read."""

    reached = 0
    surplus = 100

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        return (path, pflags, attrs)

    async def close(self, file_obj: object) -> None:
        del file_obj

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        del file_obj
        end = offset + size
        Odd.reached = max(Odd.reached, end)
        return CONTENT[offset : end + Odd.surplus] if end < len(CONTENT) else bytes(size)

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        number = 0
        while True:
            number += 1
            yield asyncssh.SFTPName(path + b"%d" % number)


class Open(asyncssh.SSHServer):
    """Lets everybody in."""

    def begin_auth(self, username: str) -> bool:
        return not username


async def listening(key: asyncssh.SSHKey) -> asyncssh.SSHAcceptor:
    return await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Open, server_host_keys=[key], sftp_factory=Odd
    )


@pytest.fixture
def files(tmp_path: Path) -> Iterator[SftpFiles]:
    Odd.reached, Odd.surplus = 0, 100
    thread, key = AsyncioThread("odd"), asyncssh.generate_private_key("ssh-ed25519")
    thread.start()
    try:
        acceptor = thread.submit(listening(key)).result()
        port, line = acceptor.get_port(), key.export_public_key().decode()
        (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {line}")
        (tmp_path / "config").touch()
        settings = TransportSettings(
            known_hosts=tmp_path / "known", ssh_config=tmp_path / "config", use_agent=False
        )
        url = f"sftp://anybody@127.0.0.1:{port}/store"
        reader = SftpFiles(url, settings, 10.0, NAMES_MAX)
        try:
            yield reader
        finally:
            reader.close()
            acceptor.close()
            thread.submit(acceptor.wait_closed()).result()
    finally:
        thread.end()


def test_what_was_not_asked_for_is_put_nowhere(files: SftpFiles) -> None:
    file = files.open("volume")
    assert files.read(file, 5, 10) == CONTENT[5:15]
    found = b"".join(data for _at, data in files.stream(file, [(7, 7 + 3 * MIB)]))
    assert found == CONTENT[7 : 7 + 3 * MIB]


def test_a_list_without_end_ends(files: SftpFiles) -> None:
    with pytest.raises(Refused, match="more than 1,000 names"):
        files.names("")


def test_no_more_is_asked_ahead_than_there_is_room_for(files: SftpFiles) -> None:
    Odd.surplus = 0
    stream = files.stream(files.open("volume"), [(0, 1024 * MIB)])
    for taken, (at, data) in enumerate(stream, 1):
        assert (at, len(data)) == ((taken - 1) * RUN_BYTES, RUN_BYTES)
        assert Odd.reached <= (taken + RUNS_MAX) * RUN_BYTES + 64 * KIB
        if taken == RUNS_MAX:
            break
