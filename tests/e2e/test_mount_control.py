"""The control files and the socket of a mount, and who may unmount it when."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.errors import AimfuseError
from aimfuse.journal.records import RecordType
from aimfuse.units import MIB
from tests.e2e.host import FarHost, Source, aimfuse, is_mountpoint, until

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarHost]:
    with FarHost(tmp_path_factory.mktemp("far") / "far") as host:
        host.start()
        yield host


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, far: FarHost) -> Iterator[Source]:
    with Source(tmp_path_factory.mktemp("near") / "near", MIB) as made:
        made.init(to=[far.url()])
        made.mount()
        yield made


def ask(source: Source, *lines: bytes) -> socket.socket:
    """Send raw lines to the control socket; return the link, on which the answers come."""
    fd = os.open(source.state_dir, os.O_PATH)
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(60)
        link.connect(f"/proc/self/fd/{fd}/control.sock")
        with contextlib.suppress(ConnectionError):
            link.sendall(b"".join(lines))
    except BaseException:
        link.close()
        raise
    finally:
        os.close(fd)
    return link


def talk(source: Source, *lines: bytes) -> list[dict[str, object]]:
    """Send raw lines to the control socket and return the answers, none if it hangs up."""
    with ask(source, *lines) as link:
        try:
            link.shutdown(socket.SHUT_WR)
            with link.makefile("rb") as answers:
                return [json.loads(line) for line in answers]
        except ConnectionError:
            return []


def overwrite(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


def bookmarks(source: Source) -> list[str]:
    source.call("roll")
    return [
        bytes(file.payload(record)).decode()
        for file in source.files()
        for record in file.records()
        if record.type is RecordType.BOOKMARK
    ]


def test_the_status_file_is_the_socket_s_answer(source: Source) -> None:
    told = json.loads((source.mountpoint / ".aimfuse" / "status").read_bytes())
    asked = source.status()
    assert told.keys() == asked.keys()
    assert told["group"] == asked["group"]
    assert told["state"] == "active"
    assert told["volumes"] == [{"id": 1, "name": "v.img", "size": MIB}]
    assert told["mountpoint"] == str(source.mountpoint)


def test_the_status_is_read_anew_at_every_opening(source: Source) -> None:
    path = source.mountpoint / ".aimfuse" / "status"
    before = json.loads(path.read_bytes())["accepted_seq"]
    overwrite(source.volume, b"x")
    assert json.loads(path.read_bytes())["accepted_seq"] > before


def test_lag_is_one_line_for_each_destination_and_ends_at_nothing(
    source: Source, far: FarHost
) -> None:
    source.wait_mirrored(far)
    lag = source.mountpoint / ".aimfuse" / "lag"
    until(lambda: lag.read_text() == "v 0.000 s 0 bytes 0 files\n", lag.read_text)


def test_whatever_a_destination_s_account_holds_the_volume_goes_on(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init(to=[f"dir://{tmp_path}/nobody"])
        source.mount()
        account = source.state_dir / "destinations" / "nobody" / "status.json"
        until(account.exists)
        coordinator = source.status()["coordinator"]["pid"]
        os.kill(coordinator, signal.SIGSTOP)  # Or it would write its account anew.
        try:
            for told in (
                b"",
                b"nonsense",
                b"[]",
                b"{}",
                b'{"lag": {"seconds": null}}',
                b'{"lag":3}',
            ):
                account.write_bytes(told)
                for name in ("status", "lag"):
                    assert (source.mountpoint / ".aimfuse" / name).read_bytes()
                overwrite(source.volume, b"goes on")
        finally:
            os.kill(coordinator, signal.SIGCONT)
        assert source.status()["state"] == "active"


def test_a_bookmark_is_written_like_a_file(source: Source) -> None:
    path = source.mountpoint / ".aimfuse" / "bookmark"
    path.write_text("before the update ✓\n")
    assert bookmarks(source)[-1] == "before the update ✓"
    status = source.status()
    assert status["durable_seq"] == status["accepted_seq"]


def test_a_bookmark_of_somebody_who_hung_up_is_not_set(source: Source) -> None:
    """It is for a moment at which something was frozen, and that may be over."""
    assert source.process is not None
    request = b'{"cmd": "bookmark", "label": "too late"}\n'
    source.process.send_signal(signal.SIGSTOP)
    try:
        ask(source, request).close()
    finally:
        source.process.send_signal(signal.SIGCONT)
    (answer,) = talk(source, request.replace(b"late", b"soon"))  # It only sends no more.
    assert answer["ok"], answer
    assert bookmarks(source)[-1] == "too soon"
    assert "too late" not in bookmarks(source)


@pytest.mark.parametrize(
    "label", ["", "\n", "two\nlines", "x" * 256, "\x07", b"\xff\xfe".decode("latin-1") * 200]
)
def test_a_label_that_cannot_be_one_is_refused(source: Source, label: str) -> None:
    before = source.status()["accepted_seq"]
    with pytest.raises(AimfuseError, match="cannot be a bookmark"):
        source.call("bookmark", label=label)
    if label:
        with pytest.raises(OSError, match="Invalid argument"):
            (source.mountpoint / ".aimfuse" / "bookmark").write_text(label)
    assert source.status()["accepted_seq"] == before


def test_control_files_can_be_neither_changed_nor_removed(source: Source) -> None:
    directory = source.mountpoint / ".aimfuse"
    assert {entry.name for entry in directory.iterdir()} == {"status", "lag", "bookmark"}
    for change in (
        (directory / "status").unlink,
        lambda: (directory / "new").write_bytes(b""),
        lambda: (directory / "lag").rename(directory / "other"),
        directory.rmdir,
        lambda: (directory / "status").rename(source.mountpoint / "status"),
    ):
        with pytest.raises(OSError, match=r"\[Errno"):
            change()
    assert (directory / "bookmark").read_bytes() == b""
    assert source.status()["state"] == "active"


def test_nonsense_on_the_socket_costs_nothing_but_its_own_answer(source: Source) -> None:
    answers = talk(source, b"nonsense\n", b"[]\n", b'{"cmd": "explode"}\n', b'{"cmd":"status"}\n')
    assert [answer.get("ok") for answer in answers[:3]] == [False, False, False]
    assert answers[2]["exit_code"] == 2
    assert answers[3]["mounted"] is True
    assert talk(source, b"x" * 200_000) == []
    assert talk(source, b"[" * 60_000 + b"\n")[0]["ok"] is False
    assert talk(source, b'{"cmd": "bookmark", "label": 7}\n')[0]["ok"] in {True, False}
    assert source.status()["state"] == "active"


@pytest.mark.usefixtures("require_root_loop")
def test_another_user_is_not_answered_even_where_the_path_is_open_to_him(source: Source) -> None:
    ask = (
        "import os, socket, sys\n"
        "fd = os.open(sys.argv[1], os.O_PATH)\n"
        "link = socket.socket(socket.AF_UNIX)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "link.connect(f'/proc/self/fd/{fd}/control.sock')\n"
        'link.sendall(b\'{"cmd": "status"}\\n\')\n'
        "print(len(link.recv(100)))\n"
    )
    command = [sys.executable, "-c", ask, str(source.state_dir)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "PermissionError" in done.stderr
    source.state_dir.chmod(0o711)
    sock = source.state_dir / "control.sock"
    sock.chmod(0o666)
    try:
        direct = ask.replace("f'/proc/self/fd/{fd}/control.sock'", "'control.sock'")
        done = subprocess.run(
            [sys.executable, "-c", direct, "."], check=False, capture_output=True, text=True,
            cwd=source.state_dir,
        )  # fmt: skip
    finally:
        sock.chmod(0o600)
        source.state_dir.chmod(0o700)
    hung_up = any(word in done.stderr for word in ("ConnectionResetError", "BrokenPipeError"))
    assert done.stdout == "0\n" or hung_up, done.stderr


@pytest.mark.usefixtures("require_root_loop")
def test_a_loop_device_keeps_the_mount_and_the_refusal_names_it(source: Source) -> None:
    device = source.attach()
    refused = aimfuse("umount", source.image, "--timeout", "0.3s")
    assert refused.returncode == 3
    assert device in refused.stderr
    assert "losetup -d" in refused.stderr
    with pytest.raises(AimfuseError, match="busy"):
        source.call("stop")
    assert is_mountpoint(source.mountpoint)
    with Path(device).open("r+b", buffering=0) as file:
        file.write(b"still there".ljust(512))
    source.detach(device)
    assert source.volume.read_bytes()[:11] == b"still there"


def test_an_open_file_keeps_the_mount_and_the_refusal_names_its_holder(source: Source) -> None:
    hold = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(source.volume)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        refused = aimfuse("umount", source.mountpoint, "--timeout", "0.3s")
        assert refused.returncode == 3
        assert f"pid {holder.pid}" in refused.stderr
        assert source.status()["state"] == "active"
        holder.communicate()


def test_sigterm_unmounts_when_idle_and_waits_for_the_next_when_not(tmp_path: Path) -> None:
    with Source(tmp_path / "near", MIB) as source:
        source.init()
        source.mount()
        assert source.process is not None
        with source.volume.open("r+b") as file:
            source.process.terminate()
            until(lambda: "SIGTERM" in source.log.read_text())
            file.write(b"after the signal")
            file.flush()
        source.process.terminate()
        assert source.wait_ended() == 0
        assert not is_mountpoint(source.mountpoint)
        assert source.image.read_bytes()[:16] == b"after the signal"


def test_flush_and_umount_on_the_command_line_leave_both_sides_the_same(
    source: Source, far: FarHost
) -> None:
    overwrite(source.volume, b"last")
    assert aimfuse("flush", source.image, "--wait", "applied").returncode == 0
    assert far.mirror().read_bytes()[:4] == b"last"
    done = aimfuse("umount", source.mountpoint)
    assert done.returncode == 0, done.stderr
    assert source.wait_ended() == 0
    assert source.image.read_bytes() == far.mirror().read_bytes()
    again = aimfuse("umount", source.image)
    assert again.returncode == 3
    assert "not mounted" in again.stderr
    source.mount()
