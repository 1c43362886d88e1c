"""Settings: what is written is read back, and what is wrong is refused with a remedy."""

from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.config import (
    DestinationConfig,
    GroupConfig,
    JournalConfig,
    MountConfig,
    add_destination,
    destination_name,
    load,
    save,
    state_dir_for,
)
from aimfuse.config.edit import change_destination, drop_destination, edit
from aimfuse.config.keys import SCHEMES
from aimfuse.config.windows import parse_window
from aimfuse.errors import ConfigError, UsageError
from aimfuse.manager.reload import reload
from aimfuse.transport import TransportSettings, open_transport
from aimfuse.units import GIB, KIB, MIB


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """Return a state directory beside where its image would be."""
    path = tmp_path / "v.img.aim"
    path.mkdir()
    return path


def write(state_dir: Path, text: str) -> None:
    """Let the operator write the file by hand."""
    (state_dir / "group.toml").write_text(text)


def test_an_image_alone_is_enough_and_the_rest_has_the_documented_defaults(state_dir: Path) -> None:
    write(state_dir, 'image = "../v.img"\n')
    config = load(state_dir)
    assert config.image == state_dir.parent / "v.img"
    assert config.spool == state_dir / "spool"
    assert config.journal.file_bytes == 16 * MIB
    assert config.journal.file_age_s == 1.0
    assert config.journal.commit_interval_s == 0.2
    assert config.journal.spool_bytes_max == 64 * GIB
    assert config.journal.when_full == "fold"
    assert config.journal.size_bytes_max is None
    assert config.destinations == ()


def test_every_setting_survives_being_saved_and_loaded(state_dir: Path) -> None:
    config = GroupConfig(
        state_dir,
        state_dir.parent / "v.img",
        MountConfig(Path("/mnt/v"), writeback=True, allow_other=True),
        JournalConfig(
            1 * MIB,
            0.25,
            0.05,
            Path("/fast/spool"),
            8 * GIB,
            3 * MIB,
            "fail",
            5 * GIB,
            64 * MIB,
            2.5,
        ),
        (
            DestinationConfig(
                "b",
                "sftp://b/srv",
                paused=True,
                bandwidth_bytes_s=20 * MIB,
                windows=(parse_window("Mon-Fri 22:00-06:00"), parse_window("00:00-24:00")),
                retry_s_min=2.0,
                retry_s_max=600.0,
                give_up_s=5.0,
                spool_share_bytes=3 * GIB,
                volumes=("db-*", "home.img"),
                exclude=("*.tmp",),
                max_in_flight=8,
                inbox_bytes_max=9 * MIB,
                stall_s_max=12.5,
                known_hosts=Path("/k"),
                identity_files=(Path("/i"), Path("/j")),
                ssh_config=Path("/c"),
                use_agent=False,
            ),
        ),
    )
    save(config)
    assert load(state_dir) == config


def test_defaults_survive_being_saved_and_loaded(state_dir: Path) -> None:
    config = GroupConfig(state_dir, state_dir.parent / "v.img")
    save(config)
    loaded = load(state_dir)
    assert replace(loaded, journal=config.journal) == config
    assert loaded.spool == config.spool


def test_image_and_state_directory_can_be_moved_together(tmp_path: Path) -> None:
    (tmp_path / "old" / "v.img.aim").mkdir(parents=True)
    save(GroupConfig(tmp_path / "old/v.img.aim", tmp_path / "old/v.img"))
    (tmp_path / "old").rename(tmp_path / "new")
    config = load(tmp_path / "new/v.img.aim")
    assert config.image == tmp_path / "new/v.img"
    assert config.spool == tmp_path / "new/v.img.aim/spool"


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        pytest.param("", "image", "path of the image", id="no image"),
        pytest.param("image = 3", "image", "path in quotes", id="image is no path"),
        pytest.param('image="v"\njurnal={}', "jurnal", "mean journal", id="misspelt table"),
        pytest.param('image="v"\njournal=1', "journal", "[journal]", id="no table"),
        pytest.param(
            'image="v"\n[journal]\nfile_byte="1MiB"',
            "journal.file_byte",
            "mean file_bytes",
            id="misspelt",
        ),
        pytest.param(
            'image="v"\n[journal]\nfile_bytes="1 zB"',
            "journal.file_bytes",
            "64KiB to 128MiB",
            id="unit",
        ),
        pytest.param(
            'image="v"\n[journal]\nfile_bytes=1',
            "journal.file_bytes",
            "64KiB to 128MiB",
            id="small",
        ),
        pytest.param(
            'image="v"\n[journal]\nfile_bytes=true',
            "journal.file_bytes",
            "Give a size",
            id="flag as size",
        ),
        pytest.param(
            'image="v"\n[journal]\nfile_age="-1s"',
            "journal.file_age",
            "10ms to 3600s",
            id="negative age",
        ),
        pytest.param(
            'image="v"\n[journal]\nfile_age=nan', "journal.file_age", "Give a time", id="no number"
        ),
        pytest.param(
            'image="v"\n[journal]\nwhen_full="drop"',
            "journal.when_full",
            "fold, block or fail",
            id="policy",
        ),
        pytest.param(
            'image="v"\n[journal]\nspool_bytes_max="255MiB"',
            "journal.spool_bytes_max",
            "256.0 MiB or more",
            id="spool",
        ),
        pytest.param(
            'image="v"\n[[destination]]\nname="b"\nurl="/b"\nspool_share="255MiB"',
            "destination[0].spool_share",
            "256.0 MiB or more",
            id="share",
        ),
        pytest.param(
            'image="v"\n[journal]\nmemory_bytes_max="16MiB"',
            "journal.memory_bytes_max",
            "larger",
            id="mem",
        ),
        pytest.param(
            'image="v"\n[mount]\nwriteback="yes"',
            "mount.writeback",
            "true or false",
            id="quoted flag",
        ),
        pytest.param('image="v"\ndestination=[1]', "destination[0]", "[[destination]]", id="list"),
        pytest.param(
            'image="v"\n[[destination]]\nname="x"', "destination[0].url", "sftp://", id="no url"
        ),
        pytest.param(
            'image="v"\n[[destination]]\nurl="ftp://a/b"',
            "destination[0].url",
            "sftp://user@host/path, dir:///path or an absolute path",
            id="scheme",
        ),
        pytest.param(
            'image="v"\n[[destination]]\nurl="/a"\nname="../x"',
            "destination[0].name",
            "letters",
            id="name",
        ),
        pytest.param(
            'image="v"\n[[destination]]\nurl="/a"\nmax_in_flight=0',
            "destination[0].max_in_flight",
            "1 to 64",
            id="no file in flight",
        ),
        pytest.param(
            'image="v"\n[[destination]]\nurl="/a"\nname="x"\n[[destination]]\nurl="/b"\nname="x"',
            "destination[1].name",
            "of its own",
            id="name twice",
        ),
        *(
            pytest.param(
                f'image="v"\n[[destination]]\nurl="/a"\n{text}',
                f"destination[0].{key}",
                remedy,
                id=text,
            )
            for text, key, remedy in [
                ('bandwidth="1KiB/s"', "bandwidth", "from 4KiB/s on"),
                ('bandwidth="20MiB/h"', "bandwidth", "such as 20MiB/s"),
                ('windows="22:00-06:00"', "windows", '["22:00-06:00"'),
                ('windows=["22:00-25:00"]', "windows", '["22:00-06:00"'),
                ("windows=[22]", "windows", '["22:00-06:00"'),
                ('retry_min="2m"', "retry_min", "retry_max larger"),
                ('volumes="db"', "volumes", '["db-*"'),
                ('exclude=["a/b"]', "exclude", '["db-*"'),
                ("spool_share=0", "spool_share", "from 1MiB"),
            ]
        ),
        pytest.param("image = ", "file", "line", id="no TOML"),
    ],
)
def test_a_wrong_setting_is_refused_with_file_key_and_remedy(
    state_dir: Path, text: str, key: str, remedy: str
) -> None:
    write(state_dir, text)
    with pytest.raises(ConfigError) as caught:
        load(state_dir)
    assert caught.value.path == state_dir / "group.toml"
    assert caught.value.key == key
    assert remedy in caught.value.hint


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "no.aim")
    assert "aimfuse init" in caught.value.hint


def test_settings_that_could_not_be_loaded_are_not_saved(state_dir: Path) -> None:
    config = GroupConfig(state_dir, state_dir.parent / "v.img")
    save(config)
    before = (state_dir / "group.toml").read_bytes()
    with pytest.raises(ConfigError):
        save(replace(config, journal=JournalConfig(file_bytes=1 * KIB)))
    assert (state_dir / "group.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sftp://me@backup.example:2222/srv/v", "backup.example"),
        ("me@backup.example:/srv/v", "backup.example"),
        ("/mnt/usb disk", "usb-disk"),
        ("file:///mnt/usb", "usb"),
        ("sftp://[::1]/srv/v", "1"),
        ("/", "destination"),
    ],
)
def test_a_destination_is_named_after_its_host_or_directory(url: str, name: str) -> None:
    assert destination_name(url) == name


def test_destinations_on_one_host_get_names_of_their_own(state_dir: Path) -> None:
    config = GroupConfig(state_dir, state_dir.parent / "v.img")
    for path in ("a", "b", "c"):
        config = add_destination(config, f"sftp://host/{path}")
    assert [one.name for one in config.destinations] == ["host", "host-2", "host-3"]
    save(config)
    assert load(state_dir).destinations == config.destinations


def test_adding_the_same_destination_again_changes_nothing(state_dir: Path) -> None:
    config = add_destination(GroupConfig(state_dir, Path("/v.img")), "/mnt/usb", max_in_flight=2)
    assert add_destination(config, "/mnt/usb") is config


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("/mnt/usb", "/mnt/usb/"),
        ("/mnt/usb", "dir:///mnt//usb"),
        ("dir:///mnt/my%20usb", "/mnt/my usb"),
        ("sftp://me@host/srv/v", "sftp://me@HOST/srv/v/"),
    ],
)
def test_a_place_is_mirrored_to_once_however_it_is_spelt(
    state_dir: Path, there: str, wanted: str
) -> None:
    config = add_destination(GroupConfig(state_dir, Path("/v.img")), there, name="one")
    assert add_destination(config, wanted) is config
    with pytest.raises(UsageError, match="a destination already: one"):
        add_destination(config, wanted, name="two")


@pytest.mark.parametrize("wanted", ["sftp://you@host/srv/v", "sftp://host/srv/V", "later:"])
def test_another_place_is_another_destination(state_dir: Path, wanted: str) -> None:
    config = GroupConfig(state_dir, Path("/v.img"))
    for url, name in (("sftp://host/srv/v", "one"), ("later:", "two"), (wanted, "three")):
        config = add_destination(config, url, name=name)
    assert [one.name for one in config.destinations] == ["one", "two", "three"]


def test_two_that_are_one_place_from_before_stay_until_one_is_removed(state_dir: Path) -> None:
    head = '[[destination]]\nname="one"\nurl="/a"\n'
    write(state_dir, f'image="v"\n{head}[[destination]]\nname="two"\nurl="/a/"\n')
    assert len(load(state_dir).destinations) == 2
    with pytest.raises(ConfigError, match="is there twice") as caught:
        reload(state_dir)
    assert caught.value.key == "destination[1].url"
    edit(state_dir, lambda config: change_destination(config, "two", paused=True))
    with pytest.raises(ConfigError, match="is there twice"):
        edit(state_dir, lambda config: change_destination(config, "two", url="dir:///a"))
    assert len(edit(state_dir, lambda config: drop_destination(config, "one")).destinations) == 1
    reload(state_dir)


def test_a_taken_name_and_an_empty_url_are_refused(state_dir: Path) -> None:
    config = add_destination(GroupConfig(state_dir, Path("/v.img")), "/mnt/usb", name="usb")
    with pytest.raises(UsageError, match="exists"):
        add_destination(config, "/mnt/other", name="usb")
    with pytest.raises(UsageError, match="no destination"):
        add_destination(config, " ")
    with pytest.raises(UsageError, match="cannot name"):
        add_destination(config, "/mnt/other", name="a/b")


def test_the_state_directory_lies_beside_the_image_unless_named(tmp_path: Path) -> None:
    assert state_dir_for(tmp_path / "v.img") == tmp_path / "v.img.aim"
    assert state_dir_for(tmp_path / "dir") == tmp_path / "dir.aim"
    assert state_dir_for(tmp_path / "v.img", tmp_path / "s") == tmp_path / "s"


def test_a_device_needs_a_named_state_directory() -> None:
    with pytest.raises(UsageError) as caught:
        state_dir_for(Path("/dev/null"))
    assert "--state" in caught.value.hint


def test_an_unknown_destination_is_refused_with_the_known_ones(state_dir: Path) -> None:
    config = add_destination(GroupConfig(state_dir, Path("/v.img")), "/mnt/usb")
    assert config.destination("usb").url == "/mnt/usb"
    with pytest.raises(UsageError) as caught:
        config.destination("usp")
    assert "usb" in caught.value.hint


@pytest.mark.parametrize(
    "url", ["host:/srv/v", "sfpt://host/srv", "file:///srv", "mirror", "~/mirror", "sftp://[::1/s"]
)
def test_a_destination_of_no_known_scheme_is_refused_at_once(state_dir: Path, url: str) -> None:
    config = GroupConfig(state_dir, Path("/v.img"))
    with pytest.raises(UsageError, match="no destination") as caught:
        add_destination(config, url)
    assert "sftp://user@host/path, dir:///path" in caught.value.hint


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_known_scheme_has_a_transport(scheme: str) -> None:
    host = "host" if scheme == "sftp" else ""
    assert open_transport(f"{scheme}://{host}/path", TransportSettings()) is not None


def test_a_path_that_begins_with_a_dot_starts_at_the_working_directory(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(state_dir)
    config = add_destination(GroupConfig(state_dir, Path("/v.img")), "../usb", name="usb")
    assert config.destination("usb").url == str(state_dir.parent / "usb")
    assert add_destination(config, "../usb") is config
