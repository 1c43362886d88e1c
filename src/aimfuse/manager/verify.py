"""Have the volumes of a mounted group hashed, and wait until its mirrors have compared.

The driver puts hashes into the journal; each store compares when it comes to them, and its ack
says what differs. So nothing has to stand still, and what is written meanwhile does not matter.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aimfuse.errors import UsageError
from aimfuse.manager import control_client
from aimfuse.manager.control_client import Answer
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import read_json
from aimfuse.manager.held import read_held
from aimfuse.manager.wait import HOPELESS, destination_names, is_paused
from aimfuse.units import GIB, MIB

ASKED_BYTES = 64 * MIB
AHEAD_BYTES_MAX = 2 * GIB
"""Hashed ahead of the slowest mirror that compares: what is written waits behind it there."""

ANSWER_S_MAX = 600.0
POLL_S = 0.2
AWAY_S_MAX = 20.0
"""A destination that is away for so long is not waited for."""

_AWAY = {"retrying", "stopped", "connecting", "waiting", "new", "removed", "silent", ""}
_WITHOUT_MIRROR = {"empty", "syncing", "promoting", "promoted"}

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a volume, which goes by its name; in bytes."""

    volume: str
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a mirror did not hold what its image held, by the newest record that says so."""

    volume: str
    offset: int
    length: int
    epoch: int
    seq: int
    time_ns: int


@dataclass(slots=True)
class Mirror:
    """What became of one destination; `problem` says why it has not compared, "" if it has."""

    name: str
    problem: str = ""
    differences: list[Difference] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """What was hashed, what of the image could not be read, and what the mirrors say."""

    volumes: list[str]
    read_bytes: int = 0
    unreadable: list[Part] = field(default_factory=list)
    mirrors: list[Mirror] = field(default_factory=list)


def whole_volumes(state_dir: Path, only: Sequence[str]) -> list[Part]:
    """Return the volumes of a mounted group, all or *only* some, each as one part.

    Raises:
        BusyError: the group is not mounted.
        UsageError: it has no volume of that name.
    """
    told = Fields(control_client.call(state_dir, {"cmd": "status"})).parts("volumes")
    sizes = {one.text("name"): one.count("size") for one in told}
    if unknown := [name for name in only if name not in sizes]:
        hint = f"Known: {', '.join(sorted(sizes)[:10]) or 'none'}."
        raise UsageError(f"the group has no volume {unknown[0]!r}", hint=hint)
    return [Part(name, 0, size) for name, size in sizes.items() if name in (only or sizes)]


def verify(
    state_dir: Path, parts: Sequence[Part], destinations: Sequence[str], report: Report
) -> Verdict:
    """Hash *parts* now and wait until the destinations, all or those named, have compared.

    Args:
        state_dir: the group's state directory.
        parts: of which volumes, and how much of each.
        destinations: their names; none are all.
        report: is called with what is done, the bytes done and those in all.

    Raises:
        BusyError: the group is not mounted, or its driver went away.
        UsageError: there is no destination, or none of that name.
    """
    return _Round(state_dir, parts, destinations, report).run()


def rewrite(state_dir: Path, parts: Sequence[Part], report: Report) -> None:
    """Have the driver write again what the image holds in *parts*, for all mirrors to get it.

    Raises:
        BusyError: the group is not mounted, or its driver went away.
    """
    done, total = 0, sum(part.end - part.offset for part in parts)
    for part in parts:
        at = part.offset
        while at < part.end:
            report("writing again", done + at - part.offset, total)
            request = {
                "cmd": "verify", "rewrite": True, "volume": part.volume, "offset": at,
                "end": part.end,
            }  # fmt: skip
            answer = Fields(control_client.call(state_dir, request, ANSWER_S_MAX))
            if answer.count("next") <= at or answer.count("next") >= answer.count("size"):
                break  # It was cut, or is gone.
            at = answer.count("next")
        done += part.end - part.offset


class _Round:
    """One verification."""

    def __init__(
        self, state_dir: Path, parts: Sequence[Part], destinations: Sequence[str], report: Report
    ) -> None:
        self._state_dir = state_dir
        self._parts = parts
        self._report = report
        self._names = destination_names(state_dir, destinations)
        self._verdict = Verdict(list(dict.fromkeys(one.volume for one in parts)))
        self._total = 0
        self._records: list[tuple[int, int, int]] = []
        """Of each piece: epoch and seq of its last record, and the bytes read so far."""
        self._away_since: dict[str, float] = {}
        self._lost: dict[str, str] = {}

    def run(self) -> Verdict:
        begun = self._roll()
        self._total = sum(self._allocated(part) for part in self._parts)
        for part in self._parts:
            self._hash(part)
        end = self._roll()
        self._report("comparing", 0, self._verdict.read_bytes)
        while waiting := self._waiting(end):
            done = min(self._compared(name) for name in waiting)
            held = [self._held(name) for name in waiting]
            is_held = all(held)  # By a delay: of a pause nobody waits for the end.
            what = f"{', '.join(waiting[:3])} {held[0] if is_held else 'comparing'}"
            self._report(what, done, self._verdict.read_bytes)
            time.sleep(POLL_S)
        self._verdict.mirrors = [self._mirror(name, begun, end) for name in self._names]
        return self._verdict

    def _roll(self) -> int:
        answer = control_client.call(self._state_dir, {"cmd": "roll"}, ANSWER_S_MAX)
        return Fields(answer).count("number")

    def _ask(self, part: Part, offset: int, size: int) -> Answer:
        request = {
            "cmd": "verify", "volume": part.volume, "offset": offset, "end": part.end,
            "bytes": size,
        }  # fmt: skip
        return control_client.call(self._state_dir, request, ANSWER_S_MAX)

    def _allocated(self, part: Part) -> int:
        allocated = Fields(self._ask(part, part.offset, 0)).count("allocated")
        return min(part.end - part.offset, allocated)

    def _hash(self, part: Part) -> None:
        at = part.offset
        while at < part.end:
            answer = Fields(self._ask(part, at, ASKED_BYTES))
            verdict = self._verdict
            verdict.read_bytes += answer.count("read_bytes")
            verdict.unreadable += [
                Part(part.volume, int(low), int(high)) for low, high in answer.items("unreadable")
            ]
            self._records.append((answer.count("epoch"), answer.count("seq"), verdict.read_bytes))
            reached = answer.count("next")
            if reached <= at or reached >= answer.count("size"):  # It was cut, or is gone.
                return
            at = reached
            self._total = max(self._total, verdict.read_bytes)
            self._report(f"hashing {part.volume}", verdict.read_bytes, self._total)
            self._wait_for_mirrors()

    def _wait_for_mirrors(self) -> None:
        """Let no mirror that compares fall far behind: what is written now comes after this."""
        while any(
            self._verdict.read_bytes - self._compared(name) > AHEAD_BYTES_MAX
            for name in self._names
            if not self._is_lost(name)
        ):
            time.sleep(POLL_S)

    def _compared(self, name: str) -> int:
        """Return how many of the bytes that were hashed a mirror has passed."""
        applied = self._status(name).part("ack").part("applied")
        at = (applied.count("epoch"), applied.count("seq"))
        return max((size for *record, size in self._records if tuple(record) <= at), default=0)

    def _waiting(self, end: int) -> list[str]:
        return [
            name
            for name in self._names
            if not self._is_there(name, end) and not self._is_lost(name)
        ]

    def _is_there(self, name: str, end: int) -> bool:
        return self._status(name).part("ack").part("applied").count("number") >= end

    def _is_lost(self, name: str) -> bool:
        """Tell whether a destination is not worth waiting for, and note why."""
        if name in self._lost:
            return True
        status = self._status(name)
        state, phase = status.text("state"), status.part("ack").text("phase")
        now = time.monotonic()
        if state in HOPELESS and not (state == "paused" and not is_paused(self._state_dir, name)):
            self._lost[name] = state
        elif state == "held":
            self._lost[name] = self._held(name)
        elif state in _AWAY or phase in _WITHOUT_MIRROR:
            since = self._away_since.setdefault(name, now)
            if now - since >= AWAY_S_MAX:
                self._lost[name] = state or "nothing is known of it"
                if phase in _WITHOUT_MIRROR:
                    self._lost[name] += ", there is no mirror yet"
        else:
            self._away_since.pop(name, None)
        if name in self._lost and (error := status.text("error")):
            self._lost[name] += f": {error}"
        return name in self._lost

    def _held(self, name: str) -> str:
        """Return what a store holds back for on purpose, "" if for nothing."""
        return read_held(self._status(name).part("ack")).describe()

    def _mirror(self, name: str, begun: int, end: int) -> Mirror:
        ack = self._status(name).part("ack")
        verified = ack.part("verified")
        mirror = Mirror(name, differences=list(self._differences(verified)))
        since = verified.count("since")
        if not self._is_there(name, end):
            mirror.problem = self._lost.get(name, "it did not get there")
        elif not verified:
            mirror.problem = "its release of aimfuse compares nothing"
        elif not 0 < since <= begun + 1:
            mirror.problem = "it was interrupted while it compared, or got a copy: run this again"
        return mirror

    def _differences(self, verified: Fields) -> Iterable[Difference]:
        for one in verified.parts("mismatches"):
            found = Difference(
                one.text("name"), one.count("offset"), one.count("length"),
                one.count("epoch"), one.count("seq"), one.count("time_ns"),
            )  # fmt: skip
            if any(
                found.volume == part.volume
                and found.offset < part.end
                and part.offset < found.offset + found.length
                for part in self._parts
            ):
                yield found

    def _status(self, name: str) -> Fields:
        return Fields(read_json(self._state_dir / "destinations" / name / "status.json"))
