"""What every transport promises, held against each far side."""

import os
import subprocess
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from aimfuse.errors import Refused, Unavailable, UsageError
from aimfuse.transport import TransportSettings, open_transport
from aimfuse.units import KIB, MIB
from tests.contract.far_sides import DirectorySide, EmbeddedSide, OpensshSide, names, opened

Far = DirectorySide | OpensshSide | EmbeddedSide
MakeFile = Callable[[str, int], Path]

SIZE = 3 * MIB + 17


async def test_a_file_arrives_whole_and_nothing_else_stays(far: Far, make_file: MakeFile) -> None:
    told: list[int] = []
    source, store = make_file("a", SIZE), far.root / "store"
    async with opened(far.transport(store)) as transport:
        await transport.put(source, "a.aim", progress=told.append)
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()
    assert names(store) == ["a.aim"]
    assert sum(told) == SIZE


async def test_an_empty_file_arrives(far: Far, make_file: MakeFile) -> None:
    store = far.root / "store"
    async with opened(far.transport(store)) as transport:
        await transport.put(make_file("empty", 0), "empty.aim")
    assert (store / "inbox" / "empty.aim").read_bytes() == b""


async def test_several_files_at_once_share_a_connection(far: Far, make_file: MakeFile) -> None:
    store = far.root / "store"
    sources = {f"{number}.aim": make_file(f"f{number}", 700 * KIB + number) for number in range(6)}
    async with opened(far.transport(store)) as transport, trio.open_nursery() as nursery:
        for name, source in sources.items():
            nursery.start_soon(transport.put, source, name)
    assert names(store) == sorted(sources)
    for name, source in sources.items():
        assert (store / "inbox" / name).read_bytes() == source.read_bytes()


async def test_a_source_that_is_used_for_something_else_meanwhile_does_not_arrive(
    far: Far, make_file: MakeFile
) -> None:
    """A file that a full spool gives up is renamed first, and then written anew."""
    source, store = make_file("a", 3 * SIZE), far.root / "store"

    def recycle(_count_bytes: int) -> None:
        if source.exists():
            source.rename(source.with_name("free"))

    async with opened(far.transport(store)) as transport:
        with pytest.raises(FileNotFoundError):
            await transport.put(source, "a.aim", progress=recycle)
    assert "a.aim" not in names(store)


async def test_a_second_file_of_the_same_name_replaces_the_first(
    far: Far, make_file: MakeFile
) -> None:
    store = far.root / "store"
    async with opened(far.transport(store)) as transport:
        await transport.put(make_file("long", SIZE), "a.aim")
        await transport.put(make_file("short", 1000), "a.aim")
    assert (store / "inbox" / "a.aim").read_bytes() == make_file("short", 1000).read_bytes()
    assert names(store) == ["a.aim"]


async def test_a_half_sent_file_is_continued_from_its_end(far: Far, make_file: MakeFile) -> None:
    told: list[int] = []
    source, store = make_file("a", SIZE), far.root / "store"
    async with opened(far.transport(store)) as transport:
        (store / "inbox" / "a.aim.part").write_bytes(source.read_bytes()[:MIB])
        await transport.put(source, "a.aim", progress=told.append)
    assert sum(told) == SIZE - MIB
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()


async def test_a_damaged_half_is_sent_again_when_asked_for(far: Far, make_file: MakeFile) -> None:
    told: list[int] = []
    source, store = make_file("a", SIZE), far.root / "store"
    async with opened(far.transport(store)) as transport:
        (store / "inbox" / "a.aim.part").write_bytes(bytes(SIZE))
        await transport.put(source, "a.aim", progress=told.append, fresh=True)
    assert sum(told) == SIZE
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()


async def test_who_still_writes_into_an_old_half_does_not_spoil_a_new_one(
    far: Far, make_file: MakeFile
) -> None:
    """The server of a session that died with the link may have its last blocks still to write."""
    source, store = make_file("a", SIZE), far.root / "store"
    async with opened(far.transport(store)) as transport:
        with (store / "inbox" / "a.aim.part").open("wb") as old:

            def write_late() -> None:
                old.write(b"old" * 1000)
                old.flush()

            async def pace(_count: int) -> None:
                write_late()
                await trio.lowlevel.checkpoint()

            write_late()
            await transport.put(source, "a.aim", pace=pace, fresh=True)
            write_late()
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()
    assert names(store) == ["a.aim"]


async def test_a_part_longer_than_the_file_is_not_believed(far: Far, make_file: MakeFile) -> None:
    source, store = make_file("a", SIZE), far.root / "store"
    async with opened(far.transport(store)) as transport:
        (store / "inbox" / "a.aim.part").write_bytes(bytes(SIZE + 1))
        await transport.put(source, "a.aim")
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()


async def test_every_block_is_asked_for_before_it_is_sent(far: Far, make_file: MakeFile) -> None:
    store, asked = far.root / "store", []

    async def pace(count: int) -> None:
        asked.append(count)
        await trio.lowlevel.checkpoint()

    async with opened(far.transport(store)) as transport:
        await transport.put(make_file("a", SIZE), "a.aim", pace=pace)
    assert sum(asked) == SIZE


async def test_an_error_of_the_pace_ends_the_transfer(far: Far, make_file: MakeFile) -> None:
    store = far.root / "store"

    async def pace(_count: int) -> None:
        raise KeyError("no such rate")

    async with opened(far.transport(store)) as transport:
        with pytest.raises(KeyError, match="no such rate"):
            await transport.put(make_file("a", SIZE), "a.aim", pace=pace)
    assert "a.aim" not in names(store)


async def test_a_cancelled_transfer_leaves_no_final_name_and_can_be_continued(
    far: Far, make_file: MakeFile
) -> None:
    source, store = make_file("a", 12 * MIB), far.root / "store"
    async with opened(far.transport(store)) as transport:
        with trio.CancelScope() as scope:

            async def pace(_count: int) -> None:
                if (store / "inbox" / "a.aim.part").stat().st_size:
                    scope.cancel()
                await trio.lowlevel.checkpoint()

            await transport.put(source, "a.aim", pace=pace)
        assert scope.cancelled_caught
        assert names(store) == ["a.aim.part"]
        await transport.put(source, "a.aim")
    assert (store / "inbox" / "a.aim").read_bytes() == source.read_bytes()


async def test_a_small_file_is_replaced_in_one_step(far: Far) -> None:
    store = far.root / "store"
    async with opened(far.transport(store)) as transport:
        await transport.put_bytes(b"first and long", "source.json")
        await transport.put_bytes(b"second", "source.json")
    assert (store / "inbox" / "source.json").read_bytes() == b"second"
    assert names(store) == ["source.json"]


async def test_what_the_far_side_wrote_can_be_read(far: Far) -> None:
    store = far.root / "store"
    async with opened(far.transport(store)) as transport:
        assert await transport.get("ack.json", 100) is None
        (store / "ack.json").write_bytes(b"x" * 100_000)
        assert await transport.get("ack.json", 100_000) == b"x" * 100_000
        with pytest.raises(Unavailable, match="larger than 99999"):
            await transport.get("ack.json", 99_999)


async def test_free_space_is_known(far: Far) -> None:
    async with opened(far.transport(far.root / "store")) as transport:
        free = await transport.free_bytes()
    assert free is not None
    assert free > 0


async def test_an_existing_store_is_opened_again(far: Far, make_file: MakeFile) -> None:
    store = far.root / "store"
    async with opened(far.transport(store)) as transport:
        await transport.put(make_file("a", 10), "a.aim")
    async with opened(far.transport(store)) as transport:
        await transport.put(make_file("b", 10), "b.aim")
    assert names(store) == ["a.aim", "b.aim"]


async def test_who_only_wants_to_look_makes_no_store(far: Far) -> None:
    store = far.root / "store"
    settings = replace(far.settings, makes_store=False)
    looking = far.transport(store, settings=settings)
    with pytest.raises(Refused, match="there is no store"):
        async with opened(looking):
            pass
    assert not store.exists()
    async with opened(far.transport(store)):
        (store / "ack.json").write_bytes(b"{}")
    async with opened(far.transport(store, settings=settings)) as transport:
        assert await transport.get("ack.json", 10) == b"{}"


async def test_a_store_below_a_missing_directory_is_unavailable(far: Far) -> None:
    transport = far.transport(far.root / "mistyped" / "store")
    with pytest.raises(Unavailable):
        await transport.open()
    await transport.aclose()
    assert not (far.root / "mistyped").exists()


async def test_an_inbox_that_vanishes_makes_the_store_unavailable(
    far: Far, make_file: MakeFile
) -> None:
    store = far.root / "store"
    async with opened(far.transport(store)) as transport:
        (store / "inbox").rmdir()
        with pytest.raises(Unavailable):
            await transport.put(make_file("a", 10), "a.aim")


async def test_a_source_that_cannot_be_read_is_not_the_stores_fault(
    far: Far, make_file: MakeFile
) -> None:
    source, store = make_file("a", SIZE), far.root / "store"

    async def shorten(_count: int) -> None:
        os.truncate(source, 5)

    async with opened(far.transport(store)) as transport:
        with pytest.raises(FileNotFoundError):
            await transport.put(source.with_name("missing"), "a.aim")
        with pytest.raises(OSError, match="shorter"):
            await transport.put(source, "a.aim", pace=shorten)
    assert "a.aim" not in names(store)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", ".a", "a\n", "ä", "a" * 201])
async def test_a_name_that_leads_elsewhere_is_refused(far: Far, name: str) -> None:
    async with opened(far.transport(far.root / "store")) as transport:
        with pytest.raises(UsageError):
            await transport.put_bytes(b"", name)
        with pytest.raises(UsageError):
            await transport.get(name, 10)


async def test_closing_twice_and_closing_what_was_never_opened_is_fine(far: Far) -> None:
    transport = far.transport(far.root / "store")
    await transport.aclose()
    await transport.aclose()


@pytest.fixture
def tiny_disk(far: Far) -> Generator[Path]:
    """Mount a file system of 1 MiB beneath the far side's root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    point = far.root / "tiny"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(point)]
    made = subprocess.run(mount, check=False, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.strip()}")
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True)


async def test_a_full_disk_is_unavailable_and_leaves_no_final_name(
    far: Far, make_file: MakeFile, tiny_disk: Path
) -> None:
    store = tiny_disk / "store"
    async with opened(far.transport(store)) as transport:
        with pytest.raises(Unavailable, match="is full"):
            await transport.put(make_file("a", SIZE), "a.aim")
        assert "a.aim" not in names(store)
        (store / "inbox" / "a.aim.part").unlink()
        await transport.put(make_file("b", 1000), "b.aim")  # The connection is still good.
    assert names(store) == ["b.aim"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "relative/path",
        "ftp://host/path",
        "dir://host/path",
        "dir:relative",
        "sftp:///path",
        "sftp://host",
        "sftp://host:port/path",
        "sftp://user:secret@host/path",
        "sftp://host/path?query",
    ],
)
def test_a_url_that_is_no_destination_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_transport(url, TransportSettings())
    assert "secret" not in str(caught.value)
