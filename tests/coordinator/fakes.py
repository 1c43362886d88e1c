"""A store and a link to it that misbehave on command. Written for these tests, in memory."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.parts import Tools
from aimfuse.disk import Disk
from aimfuse.errors import JournalError, Refused, Unavailable
from aimfuse.journal.header import NO_DIGEST
from aimfuse.journal.names import JournalName, SyncName, parse
from aimfuse.journal.reader import AimFile, check_sealed
from aimfuse.journal.records import RecordType
from aimfuse.transport.base import Pace, Progress, ignore_progress
from tests.coordinator.samples import GROUP, SampleSource


class FakeStore:
    """The far side, replaying whenever its ack is read; `mirror` is its one volume."""

    def __init__(self) -> None:
        self.inbox: dict[str, bytes] = {}
        self.heartbeats: list[dict[str, object]] = []
        self.group: str | None = None
        self.phase = "empty"
        self.error: str | None = None
        self.mirror = bytearray()
        self.number = 0
        self.epoch = 0
        self.seq = 0
        self.digest = NO_DIGEST
        self.sync: dict[str, object] | None = None
        self.to = 0
        self.damaged: list[str] = []
        self.generation = 0
        self.has_replayer = True
        self.last_ack: dict[str, object] | None = None
        self.applies = True
        self.says: dict[str, object] = {}
        """What its report says besides."""
        self.deliveries: list[str] = []

    def receive(self, name: str, data: bytes) -> None:
        self.deliveries.append(name)
        if name in self.damaged:
            self.damaged.remove(name)
        self.inbox[name] = data

    def ack(self) -> dict[str, object] | None:
        if self.has_replayer:
            self._replay()
            self.generation += 1
            self.last_ack = self._report()
        return self.last_ack

    def _report(self) -> dict[str, object]:
        received = self._received()
        names = [one for one in map(parse, self.inbox) if isinstance(one, JournalName)]
        newest = max((int(one.number) for one in names), default=0)
        have = {int(one.number) for one in names}
        missing = [n for n in range(received + 1, newest) if n not in have]
        return {
            "version": 1, "group": self.group, "time_ns": 1, "generation": self.generation,
            "phase": self.phase, "received": {"number": received}, "missing": missing[:64],
            "applied": {
                "epoch": self.epoch, "number": self.number, "seq": self.seq,
                "digest": self.digest.hex(), "time_ns": 1,
            } if self.group else None,
            "damaged": self.damaged, "sync": self.sync, "error": self.error, "quarantined": 0,
            "queue": {"files": len(self.inbox), "bytes": sum(map(len, self.inbox.values()))},
            "mirror_time_ns": 0, "free_bytes": 1 << 40, **self.says,
        }  # fmt: skip

    def _received(self) -> int:
        number = self.number
        if self.phase in {"catching_up", "consistent"}:
            have = {n.number for n in map(parse, self.inbox) if isinstance(n, JournalName)}
            while number + 1 in have:
                number += 1
        return number

    def _replay(self) -> None:
        if self.phase == "halted":
            return
        self._take_syncs()
        while self.applies and self.phase in {"catching_up", "consistent"}:
            following = next(
                (n for n in map(parse, sorted(self.inbox))
                 if isinstance(n, JournalName) and n.number <= self.number + 1), None,
            )  # fmt: skip
            if following is None:
                break
            aim = self._take(following.sealed)
            if aim is not None and following.number == self.number + 1:
                self._apply_journal(aim)
        if self.phase == "catching_up" and self.number >= self.to:
            self.phase = "consistent"

    def _take_syncs(self) -> None:
        found = sorted(one for one in map(parse, self.inbox) if isinstance(one, SyncName))
        for name in found:
            ours = self.sync is not None and self.sync["id"] == f"{name.sync_id:016x}"
            index = self.sync["next_index"] if ours and self.sync else 0
            if self.phase in {"empty", "syncing"} and name.index == index:
                if (aim := self._take(name.sealed)) is not None:
                    self._apply_sync(aim)
            elif name.index < (index if isinstance(index, int) else 0):
                del self.inbox[name.sealed]

    def _take(self, name: str) -> AimFile | None:
        data = self.inbox.pop(name)
        try:
            return check_sealed(Path(name), data)
        except JournalError:
            self.damaged.append(name)
            return None

    def _apply_sync(self, aim: AimFile) -> None:
        mark = json.loads(bytes(aim.payload(aim.iocbs[1])))
        if mark["index"] == 0:
            self.group, self.phase = aim.identity.group.hex(), "syncing"
            table = aim.table()
            assert table
            self.mirror = bytearray(table[0].size_bytes)
            head = mark["from"]
            self.number, self.epoch, self.seq = head["number"], head["epoch"], head["seq"]
            self.digest = bytes.fromhex(head["digest"])
        else:
            assert self.sync
            assert self.sync["next"] == mark["start"]
        self._write(aim)
        self.sync = {
            "id": mark["id"], "next_index": mark["index"] + 1, "next": mark["end"],
            "done": mark["last"],
        }  # fmt: skip
        if mark["last"]:
            self.phase, self.to = "catching_up", mark["to"]

    def _apply_journal(self, aim: AimFile) -> None:
        assert aim.identity.group == GROUP
        if aim.seal.prev_digest != self.digest:
            self.phase, self.error = "halted", "fork: another predecessor"
            return
        self._write(aim)
        self.number, self.epoch = int(aim.identity.number), int(aim.identity.epoch)
        self.seq, self.digest = int(aim.seal.last_seq), aim.seal.digest

    def _write(self, aim: AimFile) -> None:
        for iocb in aim.records():
            if iocb.type is RecordType.WRITE:
                end = iocb.offset + iocb.payload_bytes
                self.mirror[iocb.offset : end] = aim.payload(iocb)


@dataclass
class Link:
    """What goes wrong on the way. `plan` is asked before each call and may raise or return
    ``lose`` (claim success, deliver nothing) or ``spoil`` (deliver damaged bytes)."""

    store: FakeStore = field(default_factory=FakeStore)
    plan: Callable[[str, str], str | None] = lambda _call, _name: None
    latency_s: float = 0.001
    close_s: float = 0.0
    opens: int = 0
    open_now: int = 0
    calls: int = 0
    offers: list[tuple[str, bytes, bool]] = field(default_factory=list)
    """Of each file that was to be put: name, content, whether from its beginning."""
    free: int | None = None
    breaks_in_the_middle: bool = True
    """Whether a `put` that fails had sent something."""

    async def step(self, call: str, name: str = "") -> str | None:
        self.calls += 1
        await trio.sleep(self.latency_s)
        return self.plan(call, name)


class FakeTransport:
    def __init__(self, link: Link) -> None:
        self._link = link

    async def open(self) -> None:
        self._link.opens += 1
        await self._link.step("open")
        self._link.open_now += 1

    async def put(
        self, source: Path, name: str, *, progress: Progress = ignore_progress,
        pace: Pace | None = None, fresh: bool = False,
    ) -> None:  # fmt: skip
        del pace
        data = source.read_bytes()
        self._link.offers.append((name, data, fresh))
        check_sealed(source, data)  # Nothing is shipped that is not sealed.
        begun = len(data) // 2 if self._link.breaks_in_the_middle else 0
        if begun:
            progress(begun)
        fate = await self._link.step("put", name)
        progress(len(data) - begun)
        if fate == "spoil":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        if fate != "lose":
            self._link.store.receive(name, data)

    async def put_bytes(self, data: bytes, name: str) -> None:
        await self._link.step("put_bytes", name)
        self._link.store.heartbeats.append(json.loads(data))

    async def get(self, name: str, limit_bytes: int) -> bytes | None:
        del limit_bytes
        await self._link.step("get", name)
        ack = self._link.store.ack()
        return None if ack is None else json.dumps(ack).encode()

    async def free_bytes(self) -> int | None:
        await self._link.step("free_bytes")
        return self._link.free

    async def aclose(self) -> None:
        await trio.sleep(self._link.close_s)
        self._link.open_now = 0


def tools_for(
    source: SampleSource,
    dice: random.Random,
    sync_file_bytes: int = 1 << 20,
    disk: Disk | None = None,
    **links: Link,
) -> Tools:
    """Return a world in which each destination is reached over the link of its name."""

    def connect(config: DestinationConfig) -> FakeTransport:
        return FakeTransport(links[config.name])

    return Tools(connect, disk or source.disk, source.wall, dice, sync_file_bytes)


def unreliable(dice: random.Random, rate: float) -> Callable[[str, str], str | None]:
    """Return a plan under which a share of all calls fails in one way or another."""

    def plan(call: str, _name: str) -> str | None:
        if dice.random() >= rate:
            return None
        if call == "put" and dice.random() < 0.6:
            return dice.choice(["lose", "spoil"])
        raise Unavailable("the link broke")

    return plan


def refusing(_call: str, _name: str) -> str | None:
    raise Refused("the host key changed")


def dead(_call: str, _name: str) -> str | None:
    raise Unavailable("nobody answers")
