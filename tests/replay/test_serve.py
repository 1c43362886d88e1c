"""`aimfuse replay` and `aimfuse serve` as real processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import psutil
import pytest

from aimfuse.errors import UsageError
from aimfuse.manager.files import lock_holder
from aimfuse.replay.serve import join_address, split_address
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import until

AIMFUSE = (sys.executable, "-m", "aimfuse")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    made = Source(tmp_path / "spool")
    made.create("v.img", 3000)
    made.roll()
    return made


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen((*AIMFUSE, *arguments), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            assert process.wait(60) == 0


def is_shown(store: Path, source: Source) -> bool:
    return (store / "mirror").exists() and mirror_of(store) == source.snapshot()


async def test_replay_once_applies_what_is_there_and_exits(tmp_path: Path, source: Source) -> None:
    deliver(tmp_path / "store", *source.sync())
    subprocess.run((*AIMFUSE, "replay", str(tmp_path / "store"), "--once"), check=True)
    assert mirror_of(tmp_path / "store") == source.snapshot()


async def test_a_second_replay_is_refused_with_its_exit_code(
    tmp_path: Path, source: Source
) -> None:
    store = tmp_path / "store"
    deliver(store, *source.sync())
    with running("replay", str(store)):
        await until(lambda: is_shown(store, source))
        second = subprocess.run(
            (*AIMFUSE, "replay", str(store)), capture_output=True, text=True, check=False
        )
    assert second.returncode == 3
    assert "has a replayer already" in second.stderr
    assert "Traceback" not in second.stderr


async def test_serve_says_where_it_listens_and_survives_its_replayer(
    tmp_path: Path, source: Source
) -> None:
    directory = tmp_path / "srv"
    directory.mkdir()
    keys = tmp_path / "authorized_keys"
    keys.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_public_key())
    listen = ("serve", str(directory), "--listen", "127.0.0.1:0")
    with running(*listen, "--authorized-keys", str(keys)) as server:
        assert server.stdout is not None
        said = dict(server.stdout.readline().rstrip("\n").split(" ", 1) for _line in range(3))
        assert list(said) == ["listening", "fingerprint", "known_hosts"]
        host, port = split_address(said["listening"])
        assert said["fingerprint"].startswith("SHA256:")
        socket.create_connection((host, port)).close()
        deliver(directory / "vm", *source.sync())
        await until(lambda: is_shown(directory / "vm", source))
        (child,) = psutil.Process(server.pid).children()
        os.kill(child.pid, signal.SIGKILL)
        source.write(1, 0, b"after the replayer died")
        deliver(directory / "vm", source.roll())
        await until(lambda: is_shown(directory / "vm", source))
        socket.create_connection((host, port)).close()
    assert lock_holder(directory / "vm" / "lock") is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:2222", ("127.0.0.1", 2222)),
        ("[::1]:0", ("::1", 0)),
        ("mirror.example:65535", ("mirror.example", 65535)),
        (":22", ("", 22)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address
    assert join_address(*address) == text


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "host:65536", "::1:22", "h:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        split_address(text)
