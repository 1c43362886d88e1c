"""A mirror that is held back on purpose, from end to end: what is received leaves the spool."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.units import MIB
from tests.e2e.host import Answer, FarHost, Source, aimfuse, until

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
        made.wait_mirrored(far)
        yield made


def write(source: Source, data: bytes) -> None:
    with source.volume.open("r+b") as file:
        file.write(data)
    assert aimfuse("flush", source.image, "--wait", "received").returncode == 0


def seen(source: Source) -> Answer:
    (destination,) = source.status()["destinations"]
    return dict(destination)


def test_a_paused_mirror_stays_while_the_spool_empties_and_follows_when_resumed(
    source: Source, far: FarHost
) -> None:
    before = far.mirror().read_bytes()
    store = far.store()
    assert aimfuse("pause", store, "apply", "--reason", "a backup").returncode == 0
    write(source, b"first")
    first = source.files()[-1]
    for data in (b"held back", b"held back too"):
        source.call("checkpoint")  # Kept until the one before the newest is past it.
        write(source, data)
    source.call("checkpoint")
    until(lambda: seen(source)["pinned"]["files"] == 0, lambda: seen(source))
    until(lambda: not first.path.exists(), source.status)
    assert far.mirror().read_bytes() == before
    until(lambda: seen(source)["ack"]["held"] is not None, lambda: seen(source))
    assert seen(source)["stuck"] is False
    for what in (store, source.image):
        assert "apply paused since" in aimfuse("status", what).stdout
    assert aimfuse("resume", store, "apply").returncode == 0
    assert aimfuse("flush", source.image, "--wait", "applied").returncode == 0
    assert far.mirror().read_bytes().startswith(b"held back too")


def test_a_delayed_mirror_can_be_restored_from_what_it_has_received(
    source: Source, far: FarHost, tmp_path: Path
) -> None:
    store = far.store()
    (store / "store.toml").write_text('delay = "1h"\n')
    until(lambda: far.ack()["delay_s"] == 3600, far.ack)
    before = far.mirror().read_bytes()
    assert aimfuse("bookmark", source.image, "ahead").returncode == 0
    write(source, b"behind the bookmark")
    told = json.loads(
        aimfuse("restore", store, "-o", tmp_path / "x", "--at", "ahead", "--json").stdout
    )
    assert told["ahead"] is True
    assert (tmp_path / "x").read_bytes() == before
    assert aimfuse("restore", store, "-o", tmp_path / "y", "--at", "0s ago").returncode == 0
    assert (tmp_path / "y").read_bytes().startswith(b"behind the bookmark")
    assert far.mirror().read_bytes() == before
    late = aimfuse("flush", source.image, "--wait", "applied", "--timeout", "1s")
    assert late.returncode == 20
    assert "held back on purpose: its delay is 1 h 0 min" in late.stderr
    assert "`delay = 0` in STORE/store.toml" in late.stderr
    until(lambda: seen(source)["state"] == "delayed", lambda: seen(source))
    (store / "store.toml").unlink()
    assert aimfuse("flush", source.image, "--wait", "applied").returncode == 0


def test_no_restore_replaces_what_a_mount_or_a_store_works_on(
    source: Source, far: FarHost, tmp_path: Path
) -> None:
    inode = source.image.stat().st_ino
    served = aimfuse("restore", far.store(), "-o", source.image, "--force")
    assert (served.returncode, source.image.stat().st_ino) == (3, inode)
    assert f"is served at {source.mountpoint}" in served.stderr
    assert "--dest NAME" in aimfuse("restore", source.image, "-o", tmp_path / "v").stderr
    volume = aimfuse("restore", far.store(), "-o", source.volume, "--force")
    assert volume.returncode == 2
    assert "Restore to another directory" in volume.stderr
    other = tmp_path / "other"
    (other / "mirror").mkdir(parents=True)
    (other / "state.0").touch()
    assert aimfuse("restore", far.store(), "-o", other / "mirror" / "v").returncode == 2
