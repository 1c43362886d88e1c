"""`history` and `restore` of a store that is reached by a URL, as an operator types them."""

import errno
import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from aimfuse import config as configuration
from aimfuse.app import initialise
from aimfuse.cli.places import shown
from aimfuse.config import GroupConfig, add_destination
from aimfuse.coordinator.run import connect_as_configured
from aimfuse.errors import Refused
from aimfuse.transport.reading import About, SftpFiles
from tests.contract.commands import run
from tests.contract.far_sides import EmbeddedSide, OpensshSide
from tests.contract.openssh import make_key
from tests.replay.recorder import recorded


def keys(side: OpensshSide | EmbeddedSide) -> tuple[object, ...]:
    with_what = side.settings
    return (
        "--identity", with_what.identity_files[0], "--known-hosts", with_what.known_hosts,
        "--ssh-config", with_what.ssh_config,
    )  # fmt: skip


async def test_a_url_does_what_the_directory_does(openssh: OpensshSide, tmp_path: Path) -> None:
    source, store, _waiting = recorded(openssh.root)
    url = openssh.sshd.url(store)
    _code, here, _errors = run("history", store, "--json")
    for place, words in ((url, keys(openssh)), (f"dir://{store}", ())):
        code, there, errors = run("history", place, "--json", *words)
        assert code == 0, errors
        assert json.loads(there) | {"store": str(store)} == json.loads(here)
        output = tmp_path / place[:4]
        at = ("--at", "1:12", "--volume", "v.img")
        code, shown, errors = run("restore", place, "-o", output, *at, *words)
        assert code == 0, errors
        assert shown.startswith("restored 1:12 in file 3")
        assert output.read_bytes() == source.states[1, 12]["v.img"]


async def test_a_destination_of_an_image_is_reached_as_its_settings_say(
    openssh: OpensshSide, tmp_path: Path
) -> None:
    source, store, _waiting = recorded(openssh.root)
    image = tmp_path / "v.img"
    image.write_bytes(bytes(4096))
    config = add_destination(
        GroupConfig(tmp_path / "v.img.aim", image),
        openssh.sshd.url(store),
        name="far",
        known_hosts=openssh.sshd.known_hosts,
        identity_files=(openssh.sshd.identity,),
        ssh_config=openssh.settings.ssh_config,
        use_agent=False,
    )
    initialise(config)
    assert configuration.load(config.state_dir).destination("far").url == openssh.sshd.url(store)
    output = tmp_path / "out"
    words = ("-o", output, "--at", "1:12", "--volume", "v.img")
    code, _shown, errors = run("restore", image, "--dest", "far", *words)
    assert code == 0, errors
    assert output.read_bytes() == source.states[1, 12]["v.img"]
    code, _shown, errors = run("history", image, "--dest", "nobody")
    assert code == 2
    assert "no destination is called 'nobody'" in errors


def a_group(tmp_path: Path) -> Path:
    image = tmp_path / "v.img"
    image.write_bytes(bytes(4096))
    initialise(GroupConfig(tmp_path / "v.img.aim", image))
    return image


async def test_a_destination_is_added_with_what_it_takes_to_log_in(
    openssh: OpensshSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, url = a_group(tmp_path), openssh.sshd.url(openssh.root / "store")
    identity = openssh.sshd.identity
    monkeypatch.chdir(identity.parent)
    by_name = ("--identity", identity.name, *keys(openssh)[2:])
    code, shown, errors = run("destination", "add", image, url, "--name", "far", *by_name)
    assert (code, shown) == (0, "Added far.\n"), errors
    added = configuration.load(tmp_path / "v.img.aim").destination("far")
    assert added.identity_files == (identity,)
    assert added.known_hosts == openssh.sshd.known_hosts
    assert added.ssh_config == openssh.settings.ssh_config
    transport = connect_as_configured(added)
    await transport.open()
    await transport.aclose()


def no_key(path: Path) -> str:
    path.write_text("no key\n")
    return "Invalid private key"


def locked_key(path: Path) -> str:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return "Passphrase"


def no_host(path: Path) -> str:
    path.write_text("nobody\n")
    return "nobody"


def no_lines(path: Path) -> str:
    path.write_text("Port nowhere\n")
    return "nowhere"


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("--identity", lambda _path: "No such file"),
        ("--identity", no_key),
        ("--identity", locked_key),
        ("--known-hosts", lambda _path: "No such file"),
        ("--known-hosts", no_host),
        ("--ssh-config", lambda _path: "No such file"),
        ("--ssh-config", no_lines),
    ],
)
def test_what_nobody_could_log_in_with_is_refused_and_named(
    option: str, make: Callable[[Path], str], tmp_path: Path
) -> None:
    image, path = a_group(tmp_path), tmp_path / "given"
    reason = make(path)
    code, _shown, errors = run("destination", "add", image, "sftp://far/srv/v", option, path)
    assert (code, f"{path}: " in errors, reason in errors) == (2, True, True), errors
    assert not configuration.load(tmp_path / "v.img.aim").destinations


@pytest.mark.parametrize("url", ["/srv/v", "./v", "dir:///srv/v"])
def test_nobody_logs_in_at_a_directory(url: str, tmp_path: Path) -> None:
    image = a_group(tmp_path)
    key = make_key(tmp_path / "key")
    code, _shown, errors = run("destination", "add", image, url, "--identity", key)
    assert (code, "nobody logs in there" in errors) == (2, True), errors


@pytest.mark.parametrize(
    ("place", "code", "text"),
    [
        ("ftp://host/store", 2, "is no place of a store"),
        ("sftp://host", 2, "names no host and path"),
        ("sftp://u:secret@host/x", 2, "no passwords in URLs"),
        ("dir:///nowhere/at/all", 2, "is no store"),
    ],
)
def test_what_is_no_store_is_refused_with_its_exit_code(place: str, code: int, text: str) -> None:
    found, _shown, errors = run("history", place)
    assert found == code
    assert text in errors
    assert "secret" not in errors


async def test_what_the_account_may_not_read_is_named_with_what_to_do(
    embedded: EmbeddedSide, tmp_path: Path
) -> None:
    recorded(embedded.root)
    authorized = embedded.root / ".aimfuse" / "authorized_keys"
    authorized.write_text(f"deliver-only {authorized.read_text()}")
    url = f"sftp://anybody@127.0.0.1:{embedded.port}/store"
    output = tmp_path / "out"
    for words in (("history", url), ("restore", url, "-o", output, "--at", "1:12")):
        code, _shown, errors = run(*words, *keys(embedded))
        assert code == 21, errors
        assert f"{url}/state.0: this account may not read it; it belongs to user id " in errors
        assert "mode 0600" in errors
        assert "without deliver-only" in errors
        assert "internal-sftp -R" in errors
    assert not [*tmp_path.glob("out*")]


class Closed(SftpFiles):
    """A server that shows the store's directory and nothing beneath it."""

    def __init__(self) -> None:
        pass

    def about(self, path: str) -> About | None:
        if path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return About(stat.S_IFDIR | 0o700, 0, 1001, 0)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("history/floor.0", "/floor.0: this account may not read it; the store belongs to user id"),
        ("", "/srv/v: this account may not read it; it belongs to user id"),
    ],
)
def test_where_a_directory_is_shut_it_is_that_one_that_is_described(path: str, said: str) -> None:
    url = "sftp://aim@far//srv/v"
    with pytest.raises(Refused) as caught, shown(url, Closed()):
        raise PermissionError(errno.EACCES, "Permission denied", str(Path(url) / path))
    assert f"{said} 1001 over there, mode 0700" in str(caught.value)


def test_other_troubles_of_files_stay_what_they_are() -> None:
    url = "sftp://aim@far/srv/v"
    with pytest.raises(OSError, match="Input/output"), shown(url, Closed()):
        raise OSError(errno.EIO, "Input/output error", str(Path(url) / "history"))
    with pytest.raises(PermissionError), shown(url, Closed()):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/out.part")


async def test_a_host_that_does_not_answer_is_named(openssh: OpensshSide, tmp_path: Path) -> None:
    openssh.sshd.stop()
    url = openssh.sshd.url(tmp_path)
    code, _shown, errors = run("restore", url, "-o", tmp_path / "out", *keys(openssh))
    assert code == 20
    assert url in errors


async def test_an_unknown_host_is_not_talked_to(openssh: OpensshSide, tmp_path: Path) -> None:
    _source, store, _waiting = recorded(openssh.root)
    openssh.sshd.known_hosts.write_text("")
    url = openssh.sshd.url(store)
    code, _shown, errors = run("restore", url, "-o", tmp_path / "out", *keys(openssh))
    assert code == 21
    assert "ssh-keyscan" in errors
    assert not (tmp_path / "out").exists()
