"""The embedded server: what it refuses to start with, and what no client can reach through it."""

import os
import shutil
import stat
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from aimfuse.errors import BusyError, Refused, UsageError
from aimfuse.replay.sshd import open_server
from aimfuse.transport.bridge import AsyncioThread
from tests.contract.far_sides import EmbeddedSide
from tests.contract.openssh import make_key

Attempt = Callable[..., Awaitable[object]]


async def attempt(side: EmbeddedSide, action: Attempt, *arguments: str) -> object:
    """Do *action* as a client with a good key and no manners."""

    async def session() -> object:
        async with connected(side) as connection:
            client = await connection.start_sftp_client()
            result = await action(client, *arguments)
        return result  # noqa: RET504 - mypy does not know that the block lets errors out

    return await run(session)


@asynccontextmanager
async def connected(side: EmbeddedSide) -> AsyncGenerator[asyncssh.SSHClientConnection]:
    keys = [str(path) for path in side.settings.identity_files]
    known_hosts = str(side.settings.known_hosts)
    async with asyncssh.connect(
        "127.0.0.1",
        side.port,
        known_hosts=known_hosts,
        client_keys=keys,
        agent_path=None,
        config=[],
    ) as connection:
        yield connection


async def run(work: Callable[[], Coroutine[Any, Any, object]]) -> object:
    thread = AsyncioThread("rude-client")
    thread.start()
    try:
        return await thread.run(work)
    finally:
        await thread.stop()


def content(path: Path) -> str:
    return path.read_text()


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file outside of what is served."""
    path = tmp_path / "secret"
    path.write_text("not for you")
    return path


@pytest.fixture
def inbox(embedded: EmbeddedSide) -> Path:
    path = embedded.root / "store" / "inbox"
    path.mkdir(parents=True)
    return path


async def read(client: asyncssh.SFTPClient, path: str) -> bytes:
    async with client.open(path, "rb") as file:
        data: bytes = await file.read(100)
        return data


async def mkdir(client: asyncssh.SFTPClient, path: str) -> None:
    await client.mkdir(path)


async def rename(client: asyncssh.SFTPClient, old: str, new: str) -> None:
    await client.posix_rename(old, new)


async def listdir(client: asyncssh.SFTPClient, path: str) -> list[str]:
    return sorted(await client.listdir(path))


async def size(client: asyncssh.SFTPClient, path: str) -> int | None:
    return await client.getsize(path)


async def write(client: asyncssh.SFTPClient, path: str) -> None:
    async with client.open(path, "wb") as file:
        await file.write(b"rude")


@pytest.mark.parametrize(
    "path", ["../secret", "/../secret", "//../../secret", "store/../../secret"]
)
async def test_dots_do_not_lead_out(embedded: EmbeddedSide, secret: Path, path: str) -> None:
    assert str(secret).endswith("/secret")
    with pytest.raises(asyncssh.SFTPNoSuchFile):
        await attempt(embedded, read, path)


async def test_an_absolute_path_begins_at_the_served_directory(
    embedded: EmbeddedSide, secret: Path
) -> None:
    with pytest.raises(asyncssh.SFTPNoSuchFile):
        await attempt(embedded, read, str(secret))


@pytest.mark.parametrize("path", ["store/wanted", "store/source", "store/history/pins.lock"])
async def test_no_name_that_a_store_will_need_can_be_taken(
    embedded: EmbeddedSide, inbox: Path, path: str
) -> None:
    (inbox.parent / "history").mkdir()
    with pytest.raises(asyncssh.SFTPPermissionDenied):
        await attempt(embedded, mkdir, path)
    await attempt(embedded, mkdir, "other")
    await attempt(embedded, mkdir, "other/inbox")


async def test_a_link_is_followed_neither_at_the_end_nor_on_the_way(
    embedded: EmbeddedSide, inbox: Path, secret: Path
) -> None:
    (inbox / "file").symlink_to(secret)
    (inbox / "up").symlink_to(secret.parent)
    (inbox.parent / "inside").symlink_to(inbox)
    for path in ("store/inbox/file", "store/inbox/up/secret", "store/inside/x"):
        for action in (read, write):
            with pytest.raises(asyncssh.SFTPError):
                await attempt(embedded, action, path)
    assert content(secret) == "not for you"
    assert not (inbox / "x").exists()


async def test_a_store_that_is_a_link_out_of_the_tree_is_not_used(
    embedded: EmbeddedSide, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (embedded.root / "store").symlink_to(tmp_path / "outside")
    with pytest.raises(asyncssh.SFTPError):
        await attempt(embedded, mkdir, "/store/inbox")
    assert names(tmp_path / "outside") == []


async def test_the_servers_own_keys_are_out_of_reach(embedded: EmbeddedSide) -> None:
    (embedded.root / "store").mkdir()
    for path in ("/.aimfuse/host_key", ".aimfuse/authorized_keys", "x/../.aimfuse/host_key"):
        for action in (read, write):
            with pytest.raises(asyncssh.SFTPError):
                await attempt(embedded, action, path)
    with pytest.raises(asyncssh.SFTPError):
        await attempt(embedded, read, "/.aimfuse")
    assert await attempt(embedded, listdir, "/") == ["store"]


async def test_only_files_in_an_inbox_can_be_written(embedded: EmbeddedSide, inbox: Path) -> None:
    (inbox.parent / "ack.json").write_text("{}")
    (inbox / "a").write_text("ours")
    await attempt(embedded, write, "/store/inbox/b")
    for path in ("/store/ack.json", "/store/new", "/new", "/inbox"):
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await attempt(embedded, write, path)
    for old, new in (("inbox/a", "moved"), ("ack.json", "inbox/x"), ("inbox/a", "ack.json")):
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await attempt(embedded, rename, f"/store/{old}", f"/store/{new}")
    assert (inbox.parent / "ack.json").read_text() == "{}"
    assert (inbox / "b").read_text() == "rude"


def limit_key(side: EmbeddedSide, option: str) -> None:
    """Write *option* in front of the client's key."""
    keys = side.root / ".aimfuse" / "authorized_keys"
    keys.write_text(f"{option} {keys.read_text()}")


async def test_a_key_that_is_for_one_store_reaches_no_other(
    embedded: EmbeddedSide, inbox: Path
) -> None:
    other = embedded.root / "other" / "inbox"
    other.mkdir(parents=True)
    (other / "a").write_text("others'")
    (embedded.root / "stores").mkdir()
    limit_key(embedded, 'store="store"')
    await attempt(embedded, write, "/store/inbox/b")
    assert names(inbox) == ["b"]
    assert await attempt(embedded, listdir, "/") == ["store"]
    for action, *words in (
        (read, "/other/inbox/a"), (write, "/other/inbox/b"), (listdir, "/other"),
        (mkdir, "/new"), (mkdir, "/stores/inbox"), (read, "/store/../other/inbox/a"),
        (rename, "/store/inbox/b", "/other/inbox/b"), (size, "/other/inbox/a"),
    ):  # fmt: skip
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await attempt(embedded, action, *words)
    assert names(other) == ["a"]


async def test_a_key_that_is_for_deliveries_reads_nothing_but_answers(
    embedded: EmbeddedSide, inbox: Path
) -> None:
    store = inbox.parent
    for name in ("history", "volumes"):
        (store / name).mkdir()
        (store / name / "a").write_text("mirrored")
    said = ("ack.json", "differs.map", "rewound.map")
    for name in said:
        (store / name).write_text("{}")
    limit_key(embedded, "deliver-only")
    await attempt(embedded, write, "/store/inbox/b")
    for name in said:
        assert await attempt(embedded, read, f"/store/{name}") == b"{}"
    assert await attempt(embedded, listdir, "/store/inbox") == ["b"]
    for action, path in (
        (read, "/store/volumes/a"), (read, "/store/history/a"), (listdir, "/store/history"),
        (listdir, "/store"), (listdir, "/"),
    ):  # fmt: skip
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await attempt(embedded, action, path)


async def test_a_key_that_is_for_reading_changes_nothing(
    embedded: EmbeddedSide, inbox: Path
) -> None:
    (inbox / "a").write_text("mirrored")
    limit_key(embedded, "read-only")
    assert await attempt(embedded, read, "/store/inbox/a") == b"mirrored"
    for action, *words in (
        (write, "/store/inbox/a"), (write, "/store/inbox/b"), (mkdir, "/new"),
        (rename, "/store/inbox/a", "/store/inbox/b"),
    ):  # fmt: skip
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await attempt(embedded, action, *words)
    assert names(inbox) == ["a"]
    assert content(inbox / "a") == "mirrored"


async def test_a_key_may_be_for_several_stores_or_for_none(embedded: EmbeddedSide) -> None:
    for name in ("one", "two", "three"):
        (embedded.root / name).mkdir()
    limit_key(embedded, 'store="one",store="three"')
    assert await attempt(embedded, listdir, "/") == ["one", "three"]
    keys = embedded.root / ".aimfuse" / "authorized_keys"
    keys.write_text(keys.read_text().replace('store="one",store="three"', "store"))
    assert await attempt(embedded, listdir, "/") == []


@pytest.mark.parametrize(
    "action",
    [
        lambda client: client.remove("/store/inbox/a"),
        lambda client: client.rmdir("/store/empty"),
        lambda client: client.symlink("/etc/passwd", "/store/inbox/l"),
        lambda client: client.link("/store/inbox/a", "/store/inbox/l"),
        lambda client: client.readlink("/store/inbox/link"),
        lambda client: client.chmod("/store/inbox/a", 0o777),
        lambda client: client.truncate("/store/inbox/a", 0),
        lambda client: client.rename("/store/inbox/a", "/store/inbox/link"),
    ],
    ids=["remove", "rmdir", "symlink", "link", "readlink", "chmod", "truncate", "rename-onto"],
)
async def test_what_a_source_need_not_do_is_refused(
    embedded: EmbeddedSide, inbox: Path, action: Attempt
) -> None:
    (inbox / "a").write_text("ours")
    (inbox / "link").symlink_to("a")
    (inbox.parent / "empty").mkdir()
    with pytest.raises(asyncssh.SFTPError):
        await attempt(embedded, action)
    assert names(inbox) == ["a", "link"]
    assert (inbox / "a").read_text() == "ours"
    assert (inbox.parent / "empty").exists()


async def test_a_pipe_in_an_inbox_does_not_hold_the_server_up(
    embedded: EmbeddedSide, inbox: Path
) -> None:
    os.mkfifo(inbox / "pipe")
    for action in (read, write):
        with pytest.raises(asyncssh.SFTPError):
            await attempt(embedded, action, "/store/inbox/pipe")


async def test_names_and_attributes_can_be_listed(embedded: EmbeddedSide, inbox: Path) -> None:
    (inbox / "a").write_bytes(b"12345")
    assert await attempt(embedded, listdir, "/store/inbox") == ["a"]
    assert await attempt(embedded, size, "/store/inbox/a") == 5


@pytest.mark.parametrize("command", [None, "id", "scp -t /"])
async def test_there_is_no_shell_and_no_command(
    embedded: EmbeddedSide, command: str | None
) -> None:
    async def session() -> None:
        async with connected(embedded) as connection:
            await connection.run(command)

    with pytest.raises(asyncssh.ChannelOpenError):
        await run(session)


async def test_there_is_no_forwarding(embedded: EmbeddedSide) -> None:
    async def session() -> None:
        async with connected(embedded) as connection:
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.open_connection("127.0.0.1", embedded.port)
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.open_unix_connection("/run/x")
            with pytest.raises(asyncssh.ChannelListenError):
                await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)

    await run(session)


async def test_a_key_added_later_is_good_for_the_next_connection(
    embedded: EmbeddedSide, tmp_path: Path
) -> None:
    keys = embedded.root / ".aimfuse" / "authorized_keys"
    before = keys.read_text()
    keys.write_text(make_key(tmp_path / "other").with_suffix(".pub").read_text())
    with pytest.raises(Refused):
        await embedded.transport(embedded.root / "store").open()
    keys.write_text(before)
    transport = embedded.transport(embedded.root / "store")
    await transport.open()
    await transport.aclose()


@pytest.mark.expects_warnings
async def test_authorised_keys_that_vanish_let_nobody_in(embedded: EmbeddedSide) -> None:
    (embedded.root / ".aimfuse" / "authorized_keys").unlink()
    with pytest.raises(Refused):
        await embedded.transport(embedded.root / "store").open()


async def test_openssh_and_its_tools_agree_with_what_the_server_says_of_itself(
    embedded: EmbeddedSide, tmp_path: Path
) -> None:
    line = tmp_path / "line"
    line.write_text(embedded.server.host_key_line + "\n")
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(line)], check=True, capture_output=True, text=True
    )
    assert embedded.server.fingerprint in shown.stdout
    assert embedded.server.fingerprint.startswith("SHA256:")


async def test_the_host_key_is_made_once_and_private(embedded: EmbeddedSide) -> None:
    first = embedded.server.host_key_line
    await embedded.restart()
    assert embedded.server.host_key_line == first
    mode = (embedded.root / ".aimfuse" / "host_key").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("content", [None, "", "# nobody\n", "ssh-ed25519 garbage\n"])
async def test_a_server_that_would_let_nobody_in_does_not_start(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / ".aimfuse").mkdir()
        (tmp_path / ".aimfuse" / "authorized_keys").write_text(content)
    with pytest.raises(UsageError, match="nobody could log in") as caught:
        async with open_server(tmp_path, "127.0.0.1", 0):
            pass
    assert "public key" in caught.value.hint


async def test_a_host_key_that_others_can_read_is_not_used(embedded: EmbeddedSide) -> None:
    await embedded.stop()
    (embedded.root / ".aimfuse" / "host_key").chmod(0o644)
    with pytest.raises(UsageError, match="read by others"):
        async with open_server(embedded.root, "127.0.0.1", 0):
            pass


async def test_a_directory_that_is_missing_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing"):
        async with open_server(tmp_path / "missing", "127.0.0.1", 0):
            pass


async def test_a_port_that_is_taken_is_said_to_be(embedded: EmbeddedSide) -> None:
    with pytest.raises(BusyError, match=str(embedded.port)):
        async with open_server(embedded.root, "127.0.0.1", embedded.port):
            pass


async def test_port_zero_takes_a_free_one_and_frees_it(tmp_path: Path) -> None:
    identity = make_key(tmp_path / "identity")
    keys = shutil.copy(identity.with_suffix(".pub"), tmp_path / "keys")
    (tmp_path / "served").mkdir()
    async with open_server(tmp_path / "served", "127.0.0.1", 0, Path(keys)) as server:
        assert server.host_key_line.startswith(f"[127.0.0.1]:{server.port} ssh-ed25519 ")
    listening = [
        one.laddr.port
        for one in psutil.Process().net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    ]
    assert server.port not in listening
