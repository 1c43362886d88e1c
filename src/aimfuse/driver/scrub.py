"""The scrub: hash all volumes again and again, slowly, so that every mirror is compared always.

It works in bursts, as much as the time that has passed asks for, and rests between them: a quiet
group makes few files for it, and who writes does not notice. Its place is kept in ``scrub.json``
of the state directory: `volume` (id) and `offset` of what comes next, `done_bytes` of the round
that began at `begun_ns`, `rounds` finished, the last of them at `finished_ns`. What is lost of
that is done again.
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import trio

from aimfuse.disk import Disk, publish, read_file
from aimfuse.driver.engine import Engine
from aimfuse.driver.verifier import Piece, Verifier
from aimfuse.driver.volumes import Volume
from aimfuse.errors import AimfuseError
from aimfuse.units import MIB, SECOND_NS

log = logging.getLogger(__name__)

PLACE = "scrub.json"
BURST_BYTES = 64 * MIB
TICK_S = 5.0
LOOK_S = 60.0
REST = 9.0
"""How much longer than a piece took the pause behind it is: a tenth of the disk, at most."""

HURRY = 4.0
"""How much faster than its even pace it goes where it is behind, as after weeks unmounted."""

PIECE_BYTES_MIN = MIB
"""What a piece counts for at least, also one that is all hole."""

UNREADABLE_MAX = 64
_PLACE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class ScrubPlace:
    """Where the scrub is; times in Unix ns."""

    volume: int = 0
    offset: int = 0
    done_bytes: int = 0
    begun_ns: int = 0
    rounds: int = 0
    finished_ns: int = 0


class Scrub:
    """The scrub of one mounted group. `period_s` is the time for a round, 0 for never."""

    def __init__(
        self,
        disk: Disk,
        state_dir: Path,
        engine: Engine,
        verifier: Verifier,
        period_s: float,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take up the place that was kept; one that cannot be read begins a round."""
        self.period_s = period_s
        self._disk = disk
        self._path = state_dir / PLACE
        self._engine = engine
        self._verifier = verifier
        self._wall_ns = wall_ns
        self._problem = ""
        self._unreadable: list[dict[str, Any]] = []
        self._place = self._read_place()
        self._burst_at_s = 0.0
        self._allocated = 0
        self._looked_at_s = -LOOK_S

    async def run(self, is_wanted: Callable[[], bool]) -> None:
        """Scrub until cancelled, while *is_wanted*: there has to be a mirror to compare.

        Whatever goes wrong, the mount goes on.
        """
        while True:
            await trio.sleep(TICK_S)
            try:
                if self.is_due() and is_wanted():
                    await self.burst()
            except (AimfuseError, OSError) as exc:
                self._note(f"the scrub does not go on: {exc}")
            except Exception as exc:
                log.critical("a bug in the scrub", exc_info=exc)
                self._note(f"the scrub has ended: a bug: {exc!r}")
                return
            else:
                self._note("")

    def is_due(self) -> bool:
        """Tell whether so much time has passed that the next burst has to be done."""
        if not self.period_s or self._engine.halted is not None or not self._verifier.is_welcome():
            return False
        now_ns, place, all_bytes = self._wall_ns(), self._place, self._allocated_bytes()
        if not place.begun_ns or place.begun_ns - now_ns > self.period_s * SECOND_NS:
            self._place = place = replace(place, begun_ns=now_ns)  # Or the clock was set back.
        burst = min(BURST_BYTES, all_bytes)
        even_s = self.period_s * burst / max(1, all_bytes)
        if not burst or time.monotonic() < self._burst_at_s + even_s / HURRY:
            return False
        if place.done_bytes >= all_bytes:
            return True  # What is left is holes.
        passed = (now_ns - place.begun_ns) / (self.period_s * SECOND_NS)
        wanted = min(burst, all_bytes - place.done_bytes)
        return all_bytes * passed - place.done_bytes >= wanted

    async def burst(self) -> None:
        """Hash the next stretches, about `BURST_BYTES` of them, and note how far that is.

        Raises:
            AimfuseError, OSError: as for any request that needs room in the journal.
        """
        read_bytes = 0
        self._burst_at_s = time.monotonic()
        try:
            while read_bytes < BURST_BYTES:
                volume = self._next_volume()
                if volume is None:
                    self._finish_round()
                    break
                begun_s = time.monotonic()
                piece = await self._verifier.piece(volume, self._place.offset, volume.size_bytes)
                read_bytes += max(PIECE_BYTES_MIN, piece.read_bytes)
                self._advance(volume, piece)
                await trio.sleep(REST * (time.monotonic() - begun_s))
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._write_place)

    def status(self) -> dict[str, Any]:
        """Return how far it is; sizes in bytes, times in Unix ns and seconds."""
        return {
            "period_s": self.period_s,
            "allocated_bytes": self._allocated_bytes(),
            **asdict(self._place),
            "unreadable": self._unreadable,
            "problem": self._problem or None,
        }

    def _next_volume(self) -> Volume | None:
        """Return the volume that comes next; the place moves to its begin if it is another."""
        place = self._place
        for volume in sorted(self._engine.volumes, key=lambda one: one.volume):
            begins = place.offset if volume.volume == place.volume else 0
            if volume.volume >= place.volume and begins < volume.size_bytes:
                self._place = replace(place, volume=int(volume.volume), offset=begins)
                return volume
        return None

    def _advance(self, volume: Volume, piece: Piece) -> None:
        place = self._place
        offset = piece.end if piece.end > place.offset else volume.size_bytes
        self._place = replace(place, offset=offset, done_bytes=place.done_bytes + piece.read_bytes)
        self._unreadable = [
            one for one in self._unreadable
            if one["volume"] != volume.name or not place.offset <= one["offset"] < offset
        ]  # fmt: skip
        for low, high in piece.unreadable:
            found = {"volume": volume.name, "offset": low, "length": high - low}
            log.error("%s cannot be read at %d+%d", volume.name, low, high - low)
            if len(self._unreadable) < UNREADABLE_MAX:
                self._unreadable.append(found)

    def _finish_round(self) -> None:
        """Begin the next round when its time has come: the end of this one's, or now if late."""
        now_ns = self._wall_ns()
        begins_ns = max(now_ns, self._place.begun_ns + int(self.period_s * SECOND_NS))
        rounds = self._place.rounds + 1
        self._place = ScrubPlace(begun_ns=begins_ns, rounds=rounds, finished_ns=now_ns)

    def _allocated_bytes(self) -> int:
        """Return what there is to read; looked up anew now and then, for volumes may be many."""
        engine, now_s = self._engine, time.monotonic()
        if now_s >= self._looked_at_s + LOOK_S:
            self._looked_at_s = now_s
            self._allocated = sum(
                min(one.size_bytes, engine.images.blocks(one.volume) * 512)
                for one in engine.volumes
            )
        return self._allocated

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:
            log.warning("%s", problem)
        self._problem = problem

    def _read_place(self) -> ScrubPlace:
        with suppress(OSError, ValueError, TypeError, RecursionError):
            known = json.loads(read_file(self._disk, self._path, _PLACE_BYTES_MAX))
            return ScrubPlace(**{name: max(0, int(value)) for name, value in dict(known).items()})
        return ScrubPlace()

    def _write_place(self) -> None:
        try:
            publish(self._disk, "scrub", self._path, json.dumps(asdict(self._place)).encode())
        except OSError as exc:
            log.info("%s: %s", self._path, exc)  # It goes on from there, or again.
