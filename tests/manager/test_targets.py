"""What a path on the command line means, and the status put together from files."""

import fcntl
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aimfuse import config
from aimfuse.config import DestinationConfig, GroupConfig
from aimfuse.disk import Disk
from aimfuse.errors import UsageError
from aimfuse.journal.header import NO_DIGEST, Identity
from aimfuse.journal.names import JournalName
from aimfuse.journal.records import RecordType
from aimfuse.journal.slots import Slots
from aimfuse.journal.writer import AimWriter
from aimfuse.manager import far, source
from aimfuse.manager.far import store_status
from aimfuse.manager.files import lock_holder, read_json
from aimfuse.manager.model import Level
from aimfuse.manager.snapshot import snapshot
from aimfuse.manager.source import source_status
from aimfuse.manager.target import Kind, find_source, find_targets
from aimfuse.units import Epoch, FileNumber, Seq

GROUP = bytes(16)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A group that was shipped through file 1 of 3 and unmounted cleanly."""
    image = tmp_path / "v.img"
    image.write_bytes(bytes(4096))
    state_dir = tmp_path / "v.img.aim"
    (state_dir / "spool").mkdir(parents=True)
    destinations = (DestinationConfig("far", "dir:///far"), DestinationConfig("new", "dir:///new"))
    config.save(GroupConfig(state_dir, image, destinations=destinations))
    checkpoint = {
        "group": GROUP.hex(), "epoch": 1, "number": 3, "seq": 6, "clean": True,
        "volumes": [{"id": 1, "name": "v.img", "size": 4096, "inode": 7}],
    }  # fmt: skip
    Slots(Disk(), state_dir / "checkpoint", "test").write(checkpoint)
    for number in (1, 2, 3):
        seal(state_dir / "spool", number)
    place = state_dir / "destinations" / "far"
    place.mkdir(parents=True)
    cursor = {"url": "dir:///far", "state": "shipping", "number": 2, "applied": 1}
    Slots(Disk(), place / "cursor", "test").write(cursor)
    return image


def seal(spool: Path, number: int) -> None:
    identity = Identity(GROUP, Epoch(1), FileNumber(number), 1)
    writer = AimWriter.create(Disk(), spool, identity, None)
    first = 2 * number - 1
    now_ns = time.time_ns() - 60 * 10**9
    for seq in (first, first + 1):
        writer.append(RecordType.WRITE, 1, Seq(seq), 0, 4, now_ns, b"data")
    writer.seal(NO_DIGEST, Epoch(1), FileNumber(number + 1))
    writer.close()
    writer.path.rename(spool / JournalName(Epoch(1), FileNumber(number)).sealed)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "stores" / "v"
    for name in ("inbox", "work", "quarantine", "mirror"):
        (store / name).mkdir(parents=True)
    head = {"epoch": 1, "number": 4, "seq": 40, "digest": "00" * 32, "time_ns": 5}
    state: dict[str, Any] = {
        "group": "ab",
        "head": head,
        "phase": "consistent",
        "volumes": [],
        "sync": None,
    }
    Slots(Disk(), store / "state", "test").write(state)
    ack = {
        "version": 1, "generation": 7, "phase": "consistent", "applied": head,
        "received": {"number": 5}, "missing": [6], "damaged": ["x.aim"], "mirror_time_ns": 5,
    }  # fmt: skip
    (store / "ack.json").write_text(json.dumps(ack))
    newest = {"time_ns": time.time_ns(), "newest": {"epoch": 1, "number": 7}}
    (store / "inbox" / "source.json").write_text(json.dumps(newest))
    (store / "inbox" / "00000001-000000000007.aim").write_bytes(b"x" * 10)
    (store / "quarantine" / "junk").write_bytes(b"?")
    reason = {"name": "ju\x1bnk", "reason": "no AIM file", "time_ns": 1}
    (store / "quarantine" / "junk.reason").write_text(json.dumps(reason))
    (store / "quarantine" / "more").mkdir()
    (store / "quarantine" / "more" / "000000000000").write_bytes(b"")
    return store


def test_image_and_state_directory_name_the_same_source(image: Path) -> None:
    state_dir = image.with_name("v.img.aim")
    targets = find_targets([image, state_dir, image.parent])
    assert [(one.kind, one.path) for one in targets] == [(Kind.SOURCE, state_dir)]
    assert find_source(image) == state_dir


def test_a_directory_of_stores_names_each_of_them(store: Path) -> None:
    assert [one.path for one in find_targets([store.parent])] == [store]
    assert [one.kind for one in find_targets([store])] == [Kind.STORE]


def test_a_directory_that_may_not_be_looked_into_hides_no_other(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.parent / "a").mkdir()
    is_store = far.is_store

    def forbid(path: Path) -> bool:
        if path.name == "a":
            raise PermissionError
        return is_store(path)

    monkeypatch.setattr(far, "is_store", forbid)
    assert [one.path for one in find_targets([store.parent])] == [store]


def test_what_is_nothing_of_ours_is_refused_with_a_way_out(tmp_path: Path) -> None:
    plain = tmp_path / "plain.img"
    plain.write_bytes(b"")
    with pytest.raises(UsageError, match="no image with a state directory") as caught:
        find_targets([plain])
    assert "aimfuse init" in caught.value.hint
    with pytest.raises(UsageError, match="does not exist"):
        find_targets([tmp_path / "missing"])


def test_a_store_is_no_source(store: Path) -> None:
    with pytest.raises(UsageError, match="not one source"):
        find_source(store)


def test_the_status_of_an_unmounted_group_is_put_together_from_its_files(image: Path) -> None:
    status = source_status(image.with_name("v.img.aim"))
    assert (status["mounted"], status["state"], status["reason"]) == (False, "unmounted", "")
    assert (status["image"], status["epoch"], status["accepted_seq"]) == (str(image), 1, 6)
    assert status["checkpoint"] == {"number": 3, "seq": 6}
    assert status["volumes"] == [{"id": 1, "name": "v.img", "size": 4096}]
    assert status["spool"]["files"] == 3
    far, new = status["destinations"]
    assert (far["name"], far["state"], far["queued"]["files"]) == ("far", "stopped", 1)
    assert far["received_not_applied"]["files"] == 1
    assert (far["applied"]["number"], far["lag"]["files"]) == (1, 2)
    assert far["lag"]["seconds"] >= 60
    assert (new["state"], new["lag"]["seconds"], new["queued"]["files"]) == ("new", None, 0)


def test_a_fresh_status_file_counts_more_than_the_cursor(image: Path) -> None:
    place = image.with_name("v.img.aim") / "destinations" / "far"
    told = {"name": "far", "state": "shipping", "updated_ns": time.time_ns(), "queued": {}}
    (place / "status.json").write_text(json.dumps(told))
    assert source_status(image.with_name("v.img.aim"))["destinations"][0] == told


def test_a_group_that_was_not_unmounted_cleanly_says_so(image: Path) -> None:
    spool = image.with_name("v.img.aim") / "spool"
    (spool / "00000001-000000000004.open").write_bytes(b"")
    status = source_status(image.with_name("v.img.aim"))
    assert status["state"] == "unclean"
    assert "redoes the journal" in status["reason"]


def test_lost_checkpoint_and_bad_settings_are_states_and_no_crash(image: Path) -> None:
    state_dir = image.with_name("v.img.aim")
    (state_dir / "group.toml").write_text("image = 7")
    assert source_status(state_dir)["state"] == "damaged"
    for slot in state_dir.glob("checkpoint.*"):
        slot.write_bytes(b"?")
    status = source_status(state_dir)
    assert (status["state"], status["reason"]) == (
        "damaged",
        "checkpoint: neither slot is readable",
    )


def test_a_locked_group_with_a_dead_socket_is_starting_or_closing(image: Path) -> None:
    state_dir = image.with_name("v.img.aim")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(state_dir / "control.sock"))
    with (state_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = source_status(state_dir)
    assert (status["mounted"], status["state"]) == (False, "busy")
    assert source_status(state_dir)["state"] == "unmounted"


def test_settings_that_a_mounted_group_cannot_read_are_a_warning(
    tmp_path: Path,
    made: Any,  # noqa: ANN401 - the builders of statuses
    serve: Callable[[Callable[[Any], bytes]], Path],
) -> None:
    serve(lambda _request: json.dumps(made.source()).encode() + b"\n")
    settings = tmp_path / "group.toml"
    settings.write_text("image = '../v.img'\n[[destin")
    status = source_status(tmp_path)
    assert (status["mounted"], status["state"]) == (True, "active")
    (problem,) = snapshot([status], [], made.now_ns).sources[0].problems
    assert problem.level is Level.WARN
    assert "group.toml: file: is no TOML" in problem.text
    settings.write_text("image = '../v.img'\n")
    assert "settings_error" not in source_status(tmp_path)


def test_files_read_while_a_driver_holds_the_lock_are_not_called_damaged(image: Path) -> None:
    state_dir = image.with_name("v.img.aim")
    for slot in state_dir.glob("checkpoint.*"):
        slot.write_bytes(b"?")
    with (state_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert source_status(state_dir)["state"] == "busy"


def test_a_driver_that_goes_while_its_files_are_read_has_them_read_again(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir = image.with_name("v.img.aim")
    driver = (state_dir / "lock").open("w")
    fcntl.flock(driver, fcntl.LOCK_EX)
    assemble = source.assemble

    def assemble_while_it_ends(state_dir: Path) -> dict[str, Any]:
        status = assemble(state_dir)
        driver.close()
        return status

    monkeypatch.setattr(source, "assemble", assemble_while_it_ends)
    assert source_status(state_dir)["state"] == "unmounted"


def test_the_holder_of_a_lock_is_found_without_taking_it(tmp_path: Path) -> None:
    import os  # noqa: PLC0415

    with (tmp_path / "lock").open("w") as lock:
        assert lock_holder(tmp_path / "lock") is None
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert lock_holder(tmp_path / "lock") == os.getpid()
    assert lock_holder(tmp_path / "missing") is None


def test_the_status_of_a_store_shows_both_ends(store: Path) -> None:
    status = store_status(store)
    assert (status["phase"], status["replayer"], status["error"]) == ("consistent", None, None)
    assert (status["applied"]["number"], status["received"]["number"]) == (4, 5)
    assert (status["missing"], status["damaged"]) == ([6], ["x.aim"])
    assert status["inbox"] == {"files": 1, "bytes": 10}
    assert status["quarantine"]["files"] == 2
    assert status["quarantine"]["shown"] == [{"name": "ju\x1bnk", "reason": "no AIM file"}]
    assert status["lag"]["files"] == 3
    assert status["source"]["newest"] == {"epoch": 1, "number": 7}


def test_links_and_nonsense_in_a_store_are_not_followed(store: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"phase": "secret"}')
    (store / "inbox" / "source.json").unlink()
    (store / "inbox" / "source.json").symlink_to(secret)
    assert store_status(store)["source"] is None
    (store / "ack.json").write_text("[" * 100_000)
    for slot in store.glob("state.*"):
        slot.write_bytes(b"?")
    status = store_status(store)
    assert (status["phase"], status["error"]) == ("empty", "state: neither slot is readable")
    (store / "ack.json").write_text('{"error": ' + "[" * 500 + "]" * 500 + "}")
    assert read_json(store / "ack.json") is None
    assert read_json(store) is None
