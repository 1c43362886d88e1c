"""What SFTP has to stand: cuts, silence, restarts, and hosts that are not who they were."""

import os
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from aimfuse.errors import Refused, Unavailable
from aimfuse.transport import Transport, open_transport
from aimfuse.units import KIB, MIB
from tests.contract.far_sides import (
    EmbeddedSide,
    OpensshSide,
    names,
    opened,
    opened_at_last,
)
from tests.contract.openssh import make_key
from tests.contract.proxy import Proxy

Server = OpensshSide | EmbeddedSide
MakeFile = Callable[[str, int], Path]

SIZE = 8 * MIB


def client_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "sftp"]


async def test_a_file_whose_connection_is_cut_is_continued_over_the_next(
    server: Server, make_file: MakeFile
) -> None:
    told: list[int] = []
    source, store = make_file("a", SIZE), server.root / "store"
    with Proxy(server.port) as proxy:
        server.trust(proxy.port)
        async with opened(server.transport(store, proxy.port)) as transport:
            proxy.cut_after(SIZE // 2)
            with pytest.raises(Unavailable):
                await transport.put(source, "a.aim")
            with pytest.raises(Unavailable):
                await transport.put(source, "a.aim")  # It does not come back by itself.
        assert names(store) == ["a.aim.part"]
        async with opened(server.transport(store, proxy.port)) as transport:
            await transport.put(source, "a.aim", progress=told.append)
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()
    assert 0 < sum(told) < SIZE


async def test_a_file_arrives_however_often_the_connection_is_cut(
    server: Server, make_file: MakeFile
) -> None:
    source, store = make_file("a", SIZE // 2), server.root / "store"
    cuts = 0
    with Proxy(server.port) as proxy:
        server.trust(proxy.port)
        while not (store / "inbox" / "a.aim").exists():
            # In mid-file, or somewhere in the handshake: each must be survived.
            proxy.cut_after(3 * KIB if cuts % 3 == 1 else 1200 * KIB)
            cuts += 1
            try:
                async with opened(server.transport(store, proxy.port)) as transport:
                    await transport.put(source, "a.aim")
            except Unavailable:
                assert cuts < 100
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()
    assert cuts > 3


async def test_all_files_in_flight_fail_at_once_when_the_connection_is_cut(
    server: Server, make_file: MakeFile
) -> None:
    store = server.root / "store"
    failed: list[str] = []
    with Proxy(server.port) as proxy:
        server.trust(proxy.port)

        async def put(name: str) -> None:
            with pytest.raises(Unavailable):
                await transport.put(make_file(name, SIZE), name)
            failed.append(name)

        async with opened(server.transport(store, proxy.port)) as transport:
            proxy.cut_after(SIZE)
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(put, f"{number}.aim")
    assert len(failed) == 5
    assert all(name.endswith(".part") for name in names(store))


async def test_a_server_that_is_restarted_in_mid_file_gets_the_rest_afterwards(
    server: Server, make_file: MakeFile
) -> None:
    source, store = make_file("a", SIZE), server.root / "store"
    told: list[int] = []
    asked: list[int] = []
    under_way = trio.Event()

    def progress(count_bytes: int) -> None:
        told.append(count_bytes)
        under_way.set()

    async def pace(count_bytes: int) -> None:
        asked.append(count_bytes)
        if len(asked) == 2:
            await under_way.wait()
            await server.restart()

    async with opened(server.transport(store)) as transport:
        with pytest.raises(Unavailable):
            await transport.put(source, "a.aim", progress=progress, pace=pace)
    assert 0 < sum(told) < SIZE
    told.clear()
    async with opened(server.transport(store)) as transport:
        await transport.put(source, "a.aim", progress=told.append)
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()
    assert 0 < sum(told) < SIZE


async def test_a_server_that_was_restarted_takes_the_next_connection(
    server: Server, make_file: MakeFile
) -> None:
    store = server.root / "store"
    async with opened(server.transport(store)) as transport:
        await transport.put(make_file("a", 1000), "a.aim")
    await server.restart()
    async with opened(server.transport(store)) as transport:
        await transport.put(make_file("b", 1000), "b.aim")
    assert names(store) == ["a.aim", "b.aim"]


async def test_a_server_that_is_down_is_unavailable(server: Server) -> None:
    await server.stop()
    with pytest.raises(Unavailable, match=r": Connection refused$"):
        await server.transport(server.root / "store").open()


async def test_a_changed_host_key_is_refused_with_what_to_do(server: Server) -> None:
    await server.restart(new_host_key=True)
    transport = server.transport(server.root / "store")
    with pytest.raises(Refused, match="is not the one") as caught:
        await transport.open()
    assert "ssh-keygen -R" in caught.value.hint
    assert not (server.root / "store").exists()


async def test_an_unknown_host_is_refused_with_what_to_do(server: Server) -> None:
    assert server.settings.known_hosts is not None
    server.settings.known_hosts.write_text("# nobody yet\n")
    with pytest.raises(Refused, match="is not in") as caught:
        await server.transport(server.root / "store").open()
    assert f"ssh-keyscan -t ed25519 -p {server.port} 127.0.0.1" in caught.value.hint


async def test_a_missing_known_hosts_file_is_refused(server: Server) -> None:
    settings = replace(server.settings, known_hosts=server.root / "missing")
    with pytest.raises(Refused, match="missing") as caught:
        await server.transport(server.root / "store", settings=settings).open()
    assert f"ssh-keyscan -t ed25519 -p {server.port} 127.0.0.1" in caught.value.hint


async def test_a_key_that_the_account_does_not_have_is_refused(
    server: Server, tmp_path: Path
) -> None:
    settings = replace(server.settings, identity_files=(make_key(tmp_path / "stranger"),))
    with pytest.raises(Refused, match="does not accept our key") as caught:
        await server.transport(server.root / "store", settings=settings).open()
    assert "authorized_keys" in caught.value.hint


async def test_an_identity_file_that_is_missing_is_refused(server: Server, tmp_path: Path) -> None:
    settings = replace(server.settings, identity_files=(tmp_path / "missing",))
    with pytest.raises(Refused, match="missing"):
        await server.transport(server.root / "store", settings=settings).open()


async def test_a_link_that_goes_silent_in_mid_file_is_noticed(
    server: Server, make_file: MakeFile
) -> None:
    source, store = make_file("a", SIZE), server.root / "store"
    with Proxy(server.port) as proxy:
        server.trust(proxy.port)

        def patient(stall_s_max: float) -> Transport:
            settings = replace(server.settings, stall_s_max=stall_s_max, keepalive_interval_s=600)
            return server.transport(store, proxy.port, settings)

        async def fall_silent(_count: int) -> None:
            if proxy.sent_bytes > MIB:
                proxy.stop_forwarding()
            await trio.lowlevel.checkpoint()

        async with opened_at_last(patient, 1.5) as transport:
            with pytest.raises(Unavailable, match="no answer"):
                await transport.put(source, "a.aim", pace=fall_silent)
            with pytest.raises(Unavailable):
                await transport.get("ack.json", 10)  # Its connection is gone for good.
        proxy.forward()
    assert "a.aim" not in names(store)
    assert client_threads() == []


async def test_keepalives_notice_a_silent_link_between_files(server: Server) -> None:
    with Proxy(server.port) as proxy:
        server.trust(proxy.port)

        def patient(interval_s: float) -> Transport:
            settings = replace(
                server.settings, keepalive_interval_s=interval_s, keepalive_count_max=2
            )
            return server.transport(server.root / "s", proxy.port, settings)

        async with opened_at_last(patient, 0.5) as transport:
            proxy.stop_forwarding()
            with pytest.raises(Unavailable, match="keepalive"):
                await transport.get("ack.json", 10)


async def test_a_link_that_is_silent_from_the_start_times_out(server: Server) -> None:
    settings = replace(server.settings, connect_s_max=0.3)
    with Proxy(server.port) as proxy:
        server.trust(proxy.port)
        proxy.stop_forwarding()
        with pytest.raises(Unavailable):
            await server.transport(server.root / "store", proxy.port, settings).open()
    assert client_threads() == []


async def test_cancelling_a_transfer_on_a_dead_link_ends_it(
    server: Server, make_file: MakeFile
) -> None:
    source, store = make_file("a", SIZE), server.root / "store"
    with Proxy(server.port) as proxy:
        server.trust(proxy.port)

        async def fall_silent(_count: int) -> None:
            if proxy.sent_bytes > MIB:
                proxy.stop_forwarding()
                nursery.cancel_scope.deadline = trio.current_time() + 0.2
            await trio.lowlevel.checkpoint()

        async with opened(server.transport(store, proxy.port)) as transport:
            async with trio.open_nursery() as nursery:
                await transport.put(source, "a.aim", pace=fall_silent)
            assert nursery.cancel_scope.cancelled_caught
    assert "a.aim" not in names(store)
    assert client_threads() == []


async def test_a_slow_link_is_not_taken_for_a_dead_one(server: Server, make_file: MakeFile) -> None:
    # One large block takes two seconds, and keepalives would have to wait behind it.
    source, store = make_file("a", 384 * KIB), server.root / "store"
    for factor in (1, 4, 16):  # It is the machine that may be too slow for the first.
        settings = replace(
            server.settings, keepalive_interval_s=0.4 * factor, keepalive_count_max=3
        )
        with Proxy(server.port) as proxy:
            server.trust(proxy.port)
            try:
                async with opened(server.transport(store, proxy.port, settings)) as transport:
                    proxy.slow_down(128 * KIB / factor)
                    await transport.put(source, "a.aim", fresh=True)
                break
            except Unavailable:
                assert factor < 16
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()


async def test_a_transfer_can_use_a_host_alias_of_the_ssh_configuration(
    openssh: OpensshSide, make_file: MakeFile
) -> None:
    store = openssh.root / "store"
    write_config(openssh, f"Host far\n  HostName 127.0.0.1\n  Port {openssh.port}\n")
    url = f"sftp://far{store}"
    async with opened(open_transport(url, openssh.settings)) as transport:
        await transport.put(make_file("a", 1000), "a.aim")
    assert names(store) == ["a.aim"]


async def test_a_path_beneath_home_is_where_the_account_starts(openssh: OpensshSide) -> None:
    openssh.sshd.extra_config = f"ForceCommand internal-sftp -d {openssh.root}"
    await openssh.restart()
    url = f"sftp://127.0.0.1:{openssh.port}/~/store"
    async with opened(open_transport(url, openssh.settings)) as transport:
        await transport.put_bytes(b"here", "source.json")
    assert names(openssh.root / "store") == ["source.json"]


async def test_a_transfer_jumps_over_the_hosts_that_the_configuration_names(
    openssh: OpensshSide, make_file: MakeFile
) -> None:
    store = openssh.root / "store"
    with Proxy(openssh.port) as proxy:
        openssh.trust(proxy.port)
        jump(openssh, proxy)
        async with opened(open_transport(f"sftp://far{store}", openssh.settings)) as transport:
            await transport.put(make_file("a", SIZE), "a.aim")
        assert proxy.sent_bytes > SIZE  # It did go that way.
    assert names(store) == ["a.aim"]


async def test_a_transfer_goes_through_a_proxy_command(
    openssh: OpensshSide, make_file: MakeFile
) -> None:
    store, sshd = openssh.root / "store", openssh.sshd
    command = (
        f"ssh -F none -i {sshd.identity} -o UserKnownHostsFile={sshd.known_hosts} "
        f"-o IdentitiesOnly=yes -p {openssh.port} -W 127.0.0.1:{openssh.port} 127.0.0.1"
    )
    write_config(openssh, f"Host *\n  Port {openssh.port}\n  ProxyCommand {command}\n")
    url = f"sftp://127.0.0.1{store}"
    async with opened(open_transport(url, openssh.settings)) as transport:
        await transport.put(make_file("a", MIB), "a.aim")
    assert names(store) == ["a.aim"]


async def test_an_unknown_jump_host_is_refused_whatever_the_configuration_says(
    openssh: OpensshSide,
) -> None:
    with Proxy(openssh.port) as proxy:
        jump(openssh, proxy, "Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
        with pytest.raises(Refused, match=f"{proxy.port} is not in"):
            await open_transport(f"sftp://far{openssh.root}/store", openssh.settings).open()


async def test_a_jump_that_the_configuration_names_last_is_checked_as_any(
    openssh: OpensshSide,
) -> None:
    """Such as beneath `Match final`: asyncssh sees it only once it connects."""
    url = f"sftp://far{openssh.root}/store"
    with Proxy(openssh.port) as proxy:
        write_config(
            openssh,
            f"Host far\n  HostName 127.0.0.1\n  Port {openssh.port}\n"
            "Match final originalhost far\n  ProxyJump near\n"
            f"Host near\n  HostName 127.0.0.1\n  Port {proxy.port}\n"
            "Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n",
        )
        with pytest.raises(Refused, match=f"{proxy.port} is not in"):
            await open_transport(url, openssh.settings).open()
        openssh.trust(proxy.port)
        async with opened(open_transport(url, openssh.settings)) as transport:
            await transport.put_bytes(b"{}", "source.json")
        assert proxy.sent_bytes > 0
    assert names(openssh.root / "store") == ["source.json"]


async def test_what_the_user_s_own_configuration_says_counts_before_anybody_is_trusted(
    openssh: OpensshSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to asyncssh it would be read for the connection alone, jumps and trust included."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert openssh.settings.ssh_config is not None
    (tmp_path / ".ssh").mkdir()
    own = tmp_path / ".ssh" / "config"
    settings = replace(openssh.settings, ssh_config=None)
    with Proxy(openssh.port) as proxy:
        jump(openssh, proxy, "Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
        openssh.settings.ssh_config.rename(own)
        with pytest.raises(Refused, match=f"{proxy.port} is not in") as caught:
            await open_transport(f"sftp://far{openssh.root}/store", settings).open()
        assert f"ssh-keyscan -t ed25519 -p {proxy.port} 127.0.0.1" in caught.value.hint
        openssh.trust(proxy.port)
        async with opened(open_transport(f"sftp://far{openssh.root}/store", settings)) as transport:
            await transport.put_bytes(b"{}", "source.json")
    assert names(openssh.root / "store") == ["source.json"]


async def test_a_configuration_that_makes_no_sense_is_refused(openssh: OpensshSide) -> None:
    write_config(openssh, "Port nowhere\n")
    with pytest.raises(Refused, match="nowhere"):
        await open_transport("sftp://far/store", openssh.settings).open()


def write_config(openssh: OpensshSide, text: str) -> None:
    assert openssh.settings.ssh_config is not None
    openssh.settings.ssh_config.write_text(text)


def jump(openssh: OpensshSide, proxy: Proxy, more: str = "") -> None:
    far = f"Host far\n  HostName 127.0.0.1\n  Port {openssh.port}\n  ProxyJump near\n"
    near = f"Host near\n  HostName 127.0.0.1\n  Port {proxy.port}\n"
    write_config(openssh, far + near + more)


LEAST_PRIVILEGE = (
    "ForceCommand internal-sftp -u 0077 -p open,close,write,lstat,stat,fstat,realpath,opendir,"
    "readdir,posix-rename,fsync,limits\nDisableForwarding yes\nPermitTTY no\n"
)


async def test_an_account_that_may_only_write_takes_files(
    openssh: OpensshSide, make_file: MakeFile
) -> None:
    source, store = make_file("a", SIZE), openssh.root / "store"
    (store / "inbox").mkdir(parents=True)
    openssh.sshd.extra_config = LEAST_PRIVILEGE
    await openssh.restart()
    async with opened(openssh.transport(store)) as transport:
        (store / "inbox" / "a.aim.part").write_bytes(source.read_bytes()[:MIB])
        await transport.put(source, "a.aim")
        await transport.put_bytes(b"{}", "source.json")
        assert await transport.free_bytes() is None
        assert await transport.get("ack.json", 10) is None
        (store / "ack.json").write_bytes(b"{}")
        with pytest.raises(Unavailable):
            await transport.get("ack.json", 10)
    assert names(store) == ["a.aim", "source.json"]


async def test_an_account_that_may_only_write_cannot_make_the_store(openssh: OpensshSide) -> None:
    openssh.sshd.extra_config = LEAST_PRIVILEGE
    await openssh.restart()
    with pytest.raises(Unavailable, match=r"(?i)permission denied") as caught:
        await openssh.transport(openssh.root / "store").open()
    assert caught.value.hint


async def test_an_agent_can_hold_the_key(
    openssh: OpensshSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # Without any key of its own.
    settings = replace(openssh.settings, identity_files=(), use_agent=True)
    without = replace(settings, use_agent=False)
    with running_agent(tmp_path / "agent", openssh.sshd.identity) as address:
        monkeypatch.setenv("SSH_AUTH_SOCK", address)
        async with opened(openssh.transport(openssh.root / "s", settings=settings)) as transport:
            await transport.put_bytes(b"{}", "source.json")
        with pytest.raises(Refused):
            await openssh.transport(openssh.root / "s", settings=without).open()


@contextmanager
def running_agent(socket: Path, identity: Path) -> Generator[str]:
    command = ["ssh-agent", "-D", "-a", str(socket)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as agent:
        try:
            wait_for(socket)
            environment = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
            subprocess.run(["ssh-add", "-q", str(identity)], check=True, env=environment)
            yield str(socket)
        finally:
            agent.terminate()


def wait_for(path: Path) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if path.exists():
            return
        pause.wait(0.01)
    pytest.fail(f"{path} did not appear")
