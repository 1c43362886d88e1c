"""Put hashes of the volumes into the journal, a piece at a time, beside those who write.

Reading and hashing are done in a thread of their own, at the lowest priority. What was written
to meanwhile is hashed again; what is written to all the time is hashed on trio's thread, a grain
at a time: that takes as long as a few writes.
"""

from dataclasses import dataclass, field
from typing import Any

from aimfuse.driver.control import Request
from aimfuse.driver.engine import Engine
from aimfuse.driver.lanes import Lane
from aimfuse.driver.pump import BACKGROUND_NICENESS, Pump
from aimfuse.driver.stretch import Place, Stretch
from aimfuse.driver.volumes import Volume
from aimfuse.errors import UsageError
from aimfuse.journal.verify import GRAIN_BYTES, VERIFY_BYTES_MAX, Hashed, hash_of
from aimfuse.units import MIB, Epoch, Seq, align_down

TRIES_MAX = 3
"""Times that a part is hashed beside its writers, before they have to wait for it."""

ASKED_BYTES_MAX = 256 * MIB
"""Read for one request, at most, so that whoever asks can tell how far it is."""


@dataclass(slots=True)
class Piece:
    """What became of one piece: hashed up to `end`, the last record of it is `epoch`:`seq`.

    `read_bytes` were read for it; `unreadable` could not be, and are in no record.
    """

    end: int
    epoch: Epoch
    seq: Seq
    read_bytes: int = 0
    unreadable: list[Place] = field(default_factory=list)


class Verifier:
    """Hashes volumes of one engine. Any number of tasks may ask for pieces."""

    def __init__(self, engine: Engine, pump: Pump) -> None:
        """Use *pump* as every request does."""
        self._engine = engine
        self._pump = pump
        self._lane = Lane("verify", BACKGROUND_NICENESS)

    def is_welcome(self) -> bool:
        """Tell whether there is room for records that nobody waits for."""
        admission = self._pump.admission
        if admission.ended or admission.full is not None:
            return False
        return self._pump.keeper.level == "fine"

    async def piece(self, volume: Volume, start: int, end: int) -> Piece:
        """Hash *volume* from *start* on, about 16 MiB of it and any holes, at most to *end*.

        Cancelled, it leaves some of the records: each is true by itself.

        Raises:
            HaltedError, VolumeError: as for any request that needs room in the journal.
        """
        journal = self._engine.journal
        done = Piece(start, journal.epoch, journal.last_seq)
        done.end = await self._hash(volume, start, end, done, tries=0)
        return done

    async def rewrite(self, volume: Volume, start: int, end: int) -> Piece:
        """Write again what *volume* holds from *start* to *end*, and hashes behind it.

        For its mirrors: they get it in order, and keep what they overwrite. What cannot be read
        is left as it is there. Errors as for `piece`.
        """
        journal = self._engine.journal
        done = Piece(start, journal.epoch, journal.last_seq)
        while done.end < end and not volume.removed:
            done.end = await self._hash_at_once(volume, done.end, end, done, rewrite=True)
        self._pump.commit_soon()
        return done

    async def _hash(self, volume: Volume, start: int, end: int, done: Piece, *, tries: int) -> int:
        """Hash one stretch and, again, what changed meanwhile; return how far it came."""
        stretch = self._engine.begin_stretch(volume, start, end)
        try:
            await self._lane.run(stretch.hash)
            await self._record(stretch, done)
            touched = stretch.touched()
        finally:
            if not self._pump.admission.ended:  # Then another thread is closing the engine.
                self._engine.end_stretch(stretch)
        done.read_bytes += stretch.read_bytes
        done.unreadable += stretch.unreadable
        for low, high in touched:
            at = low
            while at < high:
                if tries >= TRIES_MAX or high - at <= GRAIN_BYTES:
                    at = await self._hash_at_once(volume, at, high, done)
                else:
                    at = await self._hash(volume, at, high, done, tries=tries + 1)
                if volume.removed or at >= volume.size_bytes:
                    break
        return stretch.end

    async def _record(self, stretch: Stretch, done: Piece) -> None:
        def append() -> None:  # No await: as long as this takes nothing can change.
            ranges = stretch.sound()
            if ranges:
                self._note(done, self._engine.verify(stretch.volume, ranges))

        await self._pump.admission.accept(VERIFY_BYTES_MAX, append)

    async def _hash_at_once(
        self, volume: Volume, start: int, end: int, done: Piece, *, rewrite: bool = False
    ) -> int:
        """Read, hash and record one grain, or *rewrite* it, while nobody else gets to it."""
        stop = min(end, align_down(start, GRAIN_BYTES) + GRAIN_BYTES)

        def append() -> None:  # No await here either.
            length = min(stop, volume.size_bytes) - start
            if volume.removed or length <= 0:
                return
            try:
                data = self._engine.read(volume, start, length)
            except OSError:
                done.unreadable.append((start, start + length))
                return
            done.read_bytes += length
            if rewrite:
                self._engine.write(volume, start, data)
            hashed = Hashed(start, length, hash_of(data))
            self._note(done, self._engine.verify(volume, [hashed]))

        await self._pump.admission.accept(VERIFY_BYTES_MAX + rewrite * GRAIN_BYTES, append)
        return stop

    def _note(self, done: Piece, seq: Seq) -> None:
        done.epoch, done.seq = self._engine.journal.epoch, seq


class VerifyRequests:
    """Answers `verify` on the control socket: one bounded part of one volume at a time.

    ``volume`` is its name; from ``offset`` to ``end`` it is to be hashed, ``bytes`` at most. The
    answer says where the ``next`` part begins, how large the volume is and how much of it is
    ``allocated``, and the last record. With ``rewrite`` that part is written again, all of it.
    """

    def __init__(self, engine: Engine, verifier: Verifier) -> None:
        self._engine = engine
        self._verifier = verifier

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Do what is asked.

        Raises:
            UsageError: there is no such volume, or a number is none.
        """
        said = request.said
        volume = self._engine.volumes.named(str(said.get("volume")))
        if volume is None:
            raise UsageError(
                f"the group has no volume {said.get('volume')!r}",
                hint="`aimfuse status` names them.",
            )
        at = _natural(said.get("offset", 0))
        end = min(_natural(said.get("end", volume.size_bytes)), volume.size_bytes)
        left = min(_natural(said.get("bytes", ASKED_BYTES_MAX)), ASKED_BYTES_MAX)
        journal = self._engine.journal
        last = Piece(at, journal.epoch, journal.last_seq)
        read_bytes, unreadable = 0, []
        work = self._verifier.piece
        if said.get("rewrite") is True:
            work = self._verifier.rewrite
            end = min(end, at + ASKED_BYTES_MAX)
        while at < end and left > read_bytes and not volume.removed:
            last = await work(volume, at, end)
            at = max(last.end, at)
            read_bytes += last.read_bytes
            unreadable += last.unreadable
            end = min(end, volume.size_bytes)
        return {
            "ok": True,
            "next": at,
            "size": 0 if volume.removed else volume.size_bytes,
            "allocated": self._engine.images.blocks(volume.volume) * 512,
            "epoch": last.epoch,
            "seq": last.seq,
            "read_bytes": read_bytes,
            "unreadable": unreadable,
        }


def _natural(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{value!r} is no number of bytes")
    return value
