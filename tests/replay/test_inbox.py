"""Whatever lies in the inbox, the mirror changes by sound files only, and good ones get through."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.disk import Disk
from aimfuse.replay.look import Look
from aimfuse.replay.quarantine import KEPT_MAX
from aimfuse.replay.session import Session
from aimfuse.units import SECOND_NS
from tests.replay.faults import Steps
from tests.replay.source import Source, deliver, inbox_of, mirror_of
from tests.replay.stores import catch_up, exhaust, opened, report

pytestmark = pytest.mark.expects_warnings

OLD_S = 10.0


def next_file(source: Source, data: bytes = b"new") -> Path:
    source.write(1, 7, data)
    return source.roll()


def put(store: Path, name: str, data: bytes, age_s: float = OLD_S) -> Path:
    path = inbox_of(store) / name
    path.write_bytes(data)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def set_aside(store: Path) -> list[str]:
    names = [path.name for path in (store / "quarantine").iterdir()]
    return sorted(name for name in names if not name.endswith(".reason"))


def reasons(store: Path) -> str:
    return "".join(path.read_text() for path in (store / "quarantine").glob("*.reason"))


def test_no_flipped_bit_ever_reaches_the_mirror(source: Source, store: Path) -> None:
    """All single-bit flips; the good file is applied after every one of them was refused."""
    file = next_file(source)
    whole = bytearray(file.read_bytes())
    before = mirror_of(store)
    with opened(store) as session:
        for at in [*range(200), *range(500, 700), *range(4090, len(whole))]:
            for bit in range(8):
                whole[at] ^= 1 << bit
                put(store, file.name, bytes(whole))
                session._again = True  # noqa: SLF001 - all within one tick of the clock
                session.round()
                whole[at] ^= 1 << bit
        assert mirror_of(store) == before
        assert not session.halted
        ack = report(session)
        deliver(store, file)
        exhaust(session)
    assert file.name in ack["damaged"]
    assert mirror_of(store) == source.snapshot()
    assert report(session)["damaged"] == []


def test_no_shortened_file_ever_reaches_the_mirror(source: Source, store: Path) -> None:
    file = next_file(source)
    whole = file.read_bytes()
    before = mirror_of(store)
    with opened(store) as session:
        for length in [*range(0, 4096, 37), *range(4090, len(whole))]:
            put(store, file.name, whole[:length])
            session._again = True  # noqa: SLF001 - all within one tick of the clock
            session.round()
        put(store, file.name, whole + b"x")
        session._again = True  # noqa: SLF001
        session.round()
        assert mirror_of(store) == before
        assert session.store.state.head is not None
        assert session.store.state.head.number == 1
        assert not session.halted


def test_a_file_that_still_grows_is_left_alone_until_it_is_whole(
    source: Source, store: Path
) -> None:
    file = next_file(source)
    whole = file.read_bytes()
    put(store, file.name, whole[:3000], age_s=0)
    session = catch_up(store)
    assert report(session)["damaged"] == []
    put(store, file.name, whole[:-1], age_s=0)
    catch_up(store)
    assert not set_aside(store)
    put(store, file.name, whole, age_s=0)
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_a_file_that_changes_after_it_was_read_does_no_harm(source: Source, store: Path) -> None:
    """Its writer still has it open and overwrites it: what counts is what was read."""
    file = next_file(source)
    path = put(store, file.name, file.read_bytes())
    with path.open("r+b") as writer:

        def scribble(_at: int, label: str) -> None:
            if label == "work:create":
                writer.seek(0)
                writer.write(b"\xff" * 6000)
                writer.flush()

        catch_up(store, Steps(scribble))
    assert mirror_of(store) == source.snapshot()


def test_only_regular_files_are_read(source: Source, store: Path, tmp_path: Path) -> None:
    inbox = inbox_of(store)
    file = next_file(source)
    secret = tmp_path / "secret"
    secret.write_bytes(file.read_bytes())
    names = [file.name.replace("000002", f"{n:06d}") for n in range(3, 9)]
    (inbox / names[0]).symlink_to(secret)
    os.mkfifo(inbox / names[1])
    (inbox / names[2]).mkdir()
    (inbox / names[2] / "inside").write_text("x")
    (inbox / names[3]).symlink_to("/dev/zero")
    os.link(secret, inbox / names[4])
    os.utime(secret, (1, 1))
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    try:
        os.chdir(inbox)
        listener.bind(names[5])
    finally:
        os.chdir(here)
        listener.close()
    session = catch_up(store)
    assert not session.halted
    assert not session.error
    assert set_aside(store) == names
    assert (store / "quarantine" / names[0]).is_symlink()
    said = reasons(store)
    for kind in ("symbolic link", "FIFO", "directory", "2 names", "socket"):
        assert kind in said
    assert secret.read_bytes() == file.read_bytes()
    deliver(store, file)
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_a_symbolic_link_to_the_right_file_is_not_followed(
    source: Source, store: Path, tmp_path: Path
) -> None:
    file = next_file(source)
    before = mirror_of(store)
    (inbox_of(store) / file.name).symlink_to(file)
    catch_up(store)
    assert mirror_of(store) == before
    assert set_aside(store) == [file.name]
    assert tmp_path.joinpath("spool", file.name).exists()


HOSTILE_NAMES = [
    b"..aim", b".aim", b"00000001-000000000002.aim.exe", b"-rf", b"$(reboot)", b"; ls", b"\x1b[2J",
    b"00000001-00000000002.aim", b"00000001-000000000002.AIM",
    "\uff10\uff10\uff10\uff10\uff10\uff10\uff10\uff11-000000000002.aim".encode(),
    b"\xff\xfe.aim", b"x" * 255, b"a\nb", b"sync-00-0.aim", b"more", b"x.reason", b"ack.json",
    b"CON", b"00000001-000000000002.aim ", b"source.json.aim",
]  # fmt: skip


def test_hostile_names_are_set_aside_under_harmless_ones(source: Source, store: Path) -> None:
    inbox = os.fsencode(inbox_of(store))
    for name in HOSTILE_NAMES:
        Path(os.fsdecode(os.path.join(inbox, name))).write_bytes(b"#!/bin/sh\n")  # noqa: PTH118
        os.utime(os.path.join(inbox, name), (1, 1))  # noqa: PTH118
    deliver(store, next_file(source))
    session = catch_up(store)
    assert not session.error
    assert mirror_of(store) == source.snapshot()
    kept = set_aside(store)
    assert len(kept) == len(HOSTILE_NAMES)
    assert all(name.isascii() and name.isprintable() and "/" not in name for name in kept)
    assert report(session)["quarantined"] == len(HOSTILE_NAMES)
    assert not list(inbox_of(store).iterdir())


def test_the_heartbeat_and_files_on_their_way_are_left_alone(source: Source, store: Path) -> None:
    names = ["source.json", "source.json.part", "00000001-000000000002.aim.part"]
    for name in names:
        put(store, name, b"{}")
    put(store, "just-arrived.txt", b"", age_s=0)
    deliver(store, next_file(source))
    catch_up(store)
    left = sorted(path.name for path in inbox_of(store).iterdir())
    assert left == sorted(["just-arrived.txt", "source.json", "source.json.part"])


def test_a_temporary_file_that_nobody_finishes_is_cleared_away(source: Source, store: Path) -> None:
    name = "00000001-000000000009.aim.part"
    put(store, name, b"half", age_s=3600)
    catch_up(store)
    assert not set_aside(store)
    put(store, name, b"half", age_s=3600 * 25)
    catch_up(store)
    assert set_aside(store) == [name]
    assert source.number == 1


def test_a_sound_file_under_another_ones_name_is_not_used(source: Source, store: Path) -> None:
    file = next_file(source)
    before = mirror_of(store)
    put(store, file.name.replace("000002", "000003"), file.read_bytes())
    catch_up(store)
    assert mirror_of(store) == before
    assert "another file" in reasons(store)


def test_a_file_larger_than_any_is_not_read(source: Source, store: Path) -> None:
    path = put(store, "00000001-000000000002.aim", b"")
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    os.utime(path, (1, 1))
    disk = Steps()
    catch_up(store, disk)
    assert "inbox:open" not in disk.labels
    assert "more than any AIM file" in reasons(store)
    assert source.number == 1


@pytest.mark.slow
def test_a_flood_of_junk_does_not_hold_up_a_good_file(source: Source, store: Path) -> None:
    inbox = inbox_of(store)
    flood = 100_000
    template = inbox / "junk-0"
    template.write_bytes(b"")
    os.utime(template, (1, 1))
    for number in range(1, flood):
        os.mknod(inbox / f"junk-{number}", 0o600)
    deliver(store, next_file(source))
    later = time.time_ns() + 10 * SECOND_NS
    session = Session(Disk(), store, clock=lambda: later)
    session.round()
    assert mirror_of(store) == source.snapshot()
    exhaust(session)
    session.close()
    assert not list(inbox.iterdir())
    assert len(set_aside(store)) == KEPT_MAX + 1  # One of them holds all the others.
    assert session._findings.quarantine.count == flood  # noqa: SLF001 - the ack may be older


def test_damaged_copies_do_not_fill_the_disk(source: Source, store: Path) -> None:
    file = next_file(source)
    with opened(store) as session:
        exhaust(session)
        session._findings.quarantine._kept = KEPT_MAX  # noqa: SLF001 - as after a thousand of them
        put(store, file.name, file.read_bytes()[:-1] + b"?")
        exhaust(session)
    assert not set_aside(store)
    assert not list(inbox_of(store).iterdir())
    assert report(session)["damaged"] == [file.name]


def test_what_was_damaged_is_still_known_after_a_restart(source: Source, store: Path) -> None:
    file = next_file(source)
    put(store, file.name, b"no AIM file at all")
    catch_up(store)
    assert report(catch_up(store))["damaged"] == [file.name]
    deliver(store, file)
    assert report(catch_up(store))["damaged"] == []


def test_a_private_copy_that_rotted_is_asked_for_again(source: Source, store: Path) -> None:
    first, second = next_file(source), next_file(source, b"newer")
    deliver(store, second)
    catch_up(store)
    copy = store / "work" / second.name
    data = bytearray(copy.read_bytes())
    data[-100] ^= 1
    copy.write_bytes(data)
    before = mirror_of(store)
    deliver(store, first)
    session = catch_up(store)
    assert report(session)["damaged"] == [second.name]
    assert mirror_of(store) != before
    deliver(store, second)
    catch_up(store)
    assert mirror_of(store) == source.snapshot()


def test_an_inbox_that_is_a_link_elsewhere_stops_the_store(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    store = tmp_path / "store"
    store.mkdir()
    (store / "inbox").symlink_to(elsewhere)
    session = catch_up(store)
    assert "not a plain directory" in session.halted
    assert (elsewhere / "precious").exists()


def test_an_inbox_that_did_not_change_is_not_listed_again(source: Source, store: Path) -> None:
    """A flood that cannot be moved must not be walked through twenty times a second."""

    class CountingLook(Look):
        scans = 0

        def scan(self, directory: Path) -> Iterator[str]:
            self.scans += directory.name == "inbox"
            return super().scan(directory)

    look = CountingLook()
    now_ns = time.time_ns() + SECOND_NS
    session = Session(Disk(), store, look, clock=lambda: now_ns)
    exhaust(session)
    before = look.scans
    for _round in range(20):
        session.round()
    assert look.scans == before
    deliver(store, next_file(source))
    session.round()
    assert look.scans == before + 1
    now_ns += 2 * SECOND_NS
    session.round()
    assert look.scans > before + 1
    session.close()
    assert mirror_of(store) == source.snapshot()
