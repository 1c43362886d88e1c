"""The configurations of docs/topologies.md, as they stand there, with real processes."""

import contextlib
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from aimfuse.units import KIB, MIB
from tests.dice import LONG
from tests.e2e.host import AIMFUSE, FarHost, Source, aimfuse, until

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse", "home")]

HOSTS = ("berlin", "cairo", "delhi")
PAGE = Path(__file__).parents[2] / "docs" / "topologies.md"
_BLOCK = re.compile(r"(?ms)^```\w+\n# (?P<where>[^\n]*)\n(?P<text>.*?)^```$")


def blocks(heading: str) -> dict[str, str]:
    """Return the blocks beneath one heading, by what their first lines say."""
    page = PAGE.read_text()
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {found["where"]: found["text"] for found in _BLOCK.finditer(section)}


class World:
    """Far hosts by name, and a home directory that knows how to reach them."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        key = self.home / ".ssh" / "id_ed25519"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60
        )
        self._root = root
        self._known = ""
        self._config = ""
        self.hosts: dict[str, FarHost] = {}

    def add(self, name: str) -> None:
        far = FarHost(self._root / name)
        for suffix in ("", ".pub"):
            known = self.home / ".ssh" / f"id_ed25519{suffix}"
            (far.root / f"identity{suffix}").write_bytes(known.read_bytes())
        self.hosts[name] = far
        served = far.serve()
        assert served.known_hosts is not None
        self._known += served.known_hosts.read_text()
        address, port = served.url.split("@")[1].split("/")[0].rsplit(":", 1)
        self._config += f"Host {name}\n  HostName {address}\n  Port {port}\n"
        (self.home / ".ssh" / "known_hosts").write_text(self._known)
        self.connect()

    def connect(self) -> None:
        """Let names lead to their hosts."""
        self._write(self._config)

    def cut(self) -> None:
        """Let every name lead to a place where nobody answers."""
        self._write(re.sub(r"Port \d+", "Port 9", self._config))

    def _write(self, config: str) -> None:
        path = self.home / ".ssh" / "config"
        part = path.with_name("config.part")
        part.write_text(config)
        part.rename(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    with ExitStack() as stack:
        for name in HOSTS:
            made.add(name)
            stack.callback(made.hosts[name].close)
        yield made


@pytest.fixture
def home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(world.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def group(stack: ExitStack, root: Path, where: str, text: str) -> Source:
    """Make the group whose settings the page shows, on the host that it names."""
    host, _, path = where.partition(": ")
    image = path.split(".aim/")[0]
    source = stack.enter_context(Source(root / host / image, 2 * MIB, image))
    source.image.write_bytes(os.urandom(64 * KIB) + bytes(2 * MIB - 64 * KIB))
    source.init()
    (source.state_dir / "group.toml").write_text(text)
    return source


def write(source: Source, at: int = MIB) -> None:
    with source.volume.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(16 * KIB))
        os.fsync(file.fileno())


def work(source: Source, seed: int) -> None:
    """Write for a while, as an application does that syncs now and then."""
    dice = random.Random(seed)
    with source.volume.open("r+b", buffering=0) as file:
        for turn in range(400):
            file.seek(dice.randrange(2 * MIB // (4 * KIB)) * 4 * KIB)
            file.write(dice.randbytes(4 * KIB))
            if turn % 20 == 0:
                os.fsync(file.fileno())
                time.sleep(0.05)  # So that it goes on for a second, while files come and go.


def work_at_once(sources: list[Source]) -> None:
    loads = [threading.Thread(target=work, args=each) for each in zip(sources, count())]
    for load in loads:
        load.start()
    for load in loads:
        load.join()


def flush(source: Source) -> None:
    done = aimfuse("flush", source.image, "--wait", "applied", "--timeout", "100s")
    assert done.returncode == 0, done.stderr


def run_block(source: Source, text: str) -> subprocess.CompletedProcess[str]:
    """Run the one command of a block."""
    words = text.split()
    assert words[0] == "aimfuse"
    assert source.image.name in words
    return aimfuse(*(source.image if word == source.image.name else word for word in words[1:]))


def is_mirrored(source: Source, far: FarHost, store: str) -> bool:
    mirror = far.mirror(source.image.name, store)
    return mirror.exists() and mirror.read_bytes() == source.image.read_bytes()


def same(source: Source, world: World, host: str, store: str) -> None:
    source.wait_applied()
    assert is_mirrored(source, world.hosts[host], store)


def test_one_to_one_and_one_to_many(world: World, stack: ExitStack, tmp_path: Path) -> None:
    ((where, text), mount) = blocks("One to one").items()
    source = group(stack, tmp_path, where, text)
    assert mount[1] == "aimfuse mount disk.img volume --background\n"
    source.mount()
    write(source)
    flush(source)
    same(source, world, "berlin", "disk")
    (more,) = blocks("One to many").values()
    assert more.startswith(text)
    (source.state_dir / "group.toml").write_text(more)
    write(source, 0)
    assert aimfuse("reload", source.image).returncode == 0
    flush(source)
    for host in ("berlin", "cairo", "delhi"):
        same(source, world, host, "disk")
    assert source.umount() == 0


def test_many_to_one(world: World, stack: ExitStack, tmp_path: Path) -> None:
    ((where, text),) = blocks("Many to one").items()
    numbers = range(1, 11)
    sources = [
        group(stack, tmp_path, where.replace("vm1", f"vm{n}"), text.replace("vm1", f"vm{n}"))
        for n in numbers
    ]
    mounted, others = (sources, []) if LONG else (sources[:3], sources[3:])
    shipping = [start("ship", source.image, "--until-empty") for source in others]
    for source in mounted:
        source.mount()
        write(source)
    if LONG:
        work_at_once(mounted)
    assert [process.wait(120) for process in shipping] == [0] * len(others)
    for source in mounted:
        flush(source)
        source.wait_applied()
    far = world.hosts["berlin"]
    for n, source in zip(numbers, sources, strict=True):
        until(lambda n=n, source=source: is_mirrored(source, far, f"vm{n}"))  # type: ignore[misc]


def test_both_ways(world: World, stack: ExitStack, tmp_path: Path) -> None:
    pair = [group(stack, tmp_path, *block) for block in blocks("Both ways").items()]
    for source in pair:
        source.mount()
    work_at_once(pair)
    for source, host, store in zip(pair, ("cairo", "berlin"), ("disk-b", "disk-c"), strict=True):
        flush(source)
        same(source, world, host, store)


def test_chained(world: World, stack: ExitStack, tmp_path: Path) -> None:
    ((_, text), (_, ship)) = blocks("Chained").items()
    (where, first), _ = blocks("One to one").items()
    source = group(stack, tmp_path, where, first.replace('/disk"', '/chain"'))
    near, next_hop = world.hosts["berlin"], world.hosts["cairo"]
    source.mount()
    flush(source)
    forward = near.store("chain") / "forward"
    forward.mkdir()
    (forward / "group.toml").write_text(text)
    until(lambda: any(forward.glob("checkpoint.?")))
    words = [word.replace("disk/", f"{near.store('chain')}/") for word in ship.split()[1:]]
    assert aimfuse(*words, "--until-empty").returncode == 0
    until(lambda: is_mirrored(source, next_hop, "chained"))
    passed_on = near.ack("chain")["applied"]["number"]
    for place in (0, MIB):
        write(source, place)
        flush(source)
    source.wait_applied()
    waiting = near.ack("chain")["applied"]["number"] - passed_on
    assert len(list((forward / "spool").glob("*.aim"))) == waiting > 1
    assert aimfuse(*words, "--until-empty").returncode == 0
    until(lambda: is_mirrored(source, next_hop, "chained"))
    assert not list((forward / "spool").glob("*.aim"))
    for fact in ("group", "applied"):
        assert next_hop.ack("chained")[fact] == near.ack("chain")[fact]


def test_now_and_then_connected_and_held_on_a_metered_link(
    world: World, stack: ExitStack, tmp_path: Path
) -> None:
    ((where, text), (_, ship)) = blocks("Now and then connected").items()
    text = text.replace('/disk"', '/laptop"')  # Each test has stores of its own.
    source = group(stack, tmp_path, where, text)
    far = world.hosts["berlin"]
    world.cut()
    source.mount()
    write(source)
    assert source.umount() == 0
    world.connect()
    assert not far.store("laptop").exists()
    done = run_block(source, ship)
    assert done.returncode == 0, done.stderr
    until(lambda: is_mirrored(source, far, "laptop"))
    pause, resume = blocks("Held on a metered link").values()
    source.mount()
    flush(source)
    assert run_block(source, pause).returncode == 0
    source.remount()
    before = at_rest(far.store("laptop"))
    write(source, 0)
    source.remount()
    source.call("roll")
    assert tree(far.store("laptop")) == before
    assert run_block(source, resume).returncode == 0
    flush(source)
    same(source, world, "berlin", "laptop")


def test_a_store_refuses_a_second_source_and_says_whose_it_is(
    world: World, stack: ExitStack, tmp_path: Path
) -> None:
    ((where, text), _) = blocks("One to one").items()
    text = text.replace('/disk"', '/taken"')
    first = group(stack, tmp_path / "first", where, text)
    second = group(stack, tmp_path / "second", where, text)
    far = world.hosts["berlin"]
    assert aimfuse("ship", first.image, "--until-empty").returncode == 0
    until(lambda: is_mirrored(first, far, "taken"))
    before = at_rest(far.store("taken"))
    refused = aimfuse("ship", second.image, "--until-empty")
    assert refused.returncode == 14
    owner = far.ack("taken")["group"]
    assert f"the store belongs to another group, {owner}" in refused.stderr
    assert "a directory of its own" in refused.stderr
    assert "a store takes one source" in refused.stderr
    assert tree(far.store("taken")) == before
    settings = second.state_dir / "group.toml"
    settings.write_text(text.replace("/taken", "/own"))
    assert aimfuse("ship", second.image, "--until-empty").returncode == 0
    until(lambda: is_mirrored(second, far, "own"))
    assert is_mirrored(first, far, "taken")


def tree(store: Path) -> dict[str, bytes]:
    """Return what lies in a store, but for the report that is written anew by and by."""
    found = {}
    for path in store.rglob("*"):
        if not path.name.startswith("ack.json"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                found[str(path)] = path.read_bytes()
    return found


def at_rest(store: Path) -> dict[str, bytes]:
    """Return what lies in a store once its replayer has put everything away."""
    looks: list[dict[str, bytes]] = []

    def is_still() -> bool:
        time.sleep(0.6)  # An idle replayer looks four times a second.
        looks.append(tree(store))
        return looks[-2:] == [looks[-1]] * 2

    until(is_still)
    return looks[-1]


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*AIMFUSE, *map(str, arguments)], stderr=subprocess.DEVNULL)
