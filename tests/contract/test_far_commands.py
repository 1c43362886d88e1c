"""`history` and `restore` of a store that is reached by a URL, as an operator types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aimfuse import config as configuration
from aimfuse.app import initialise
from aimfuse.cli.past import register
from aimfuse.cli.plain import App
from aimfuse.config import GroupConfig, add_destination
from tests.contract.far_sides import OpensshSide
from tests.replay.recorder import recorded

app = App()
app.callback()(lambda: None)
register(app)


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def keys(side: OpensshSide) -> tuple[object, ...]:
    known_hosts, config = side.sshd.known_hosts, side.settings.ssh_config
    return (
        "--identity", side.sshd.identity, "--known-hosts", known_hosts, "--ssh-config", config,
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
