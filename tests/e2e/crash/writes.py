"""One writer whose every block says which write put it there, and a thread that keeps syncing.

A block holds (seq, block number) over and over, so a stale, torn or misplaced one shows. There
is one writing thread, so what any recovery leaves has to be what the first *k* writes left, for
some *k* not below what an fsync had acknowledged.
"""

import contextlib
import mmap
import os
import random
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

BLOCK = 4096
_STAMP = struct.Struct("<QQ")
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Write:
    """Write number *seq*: *count* blocks from *first* on; *zero* makes zeros of them."""

    seq: int
    first: int
    count: int
    zero: bool

    def payload(self) -> bytes:
        return b"".join(self.block(self.first + index) for index in range(self.count))

    def block(self, number: int) -> bytes:
        if self.zero:
            return _ZEROS
        return _STAMP.pack(self.seq, number) * (BLOCK // _STAMP.size)


class History:
    """All writes that were issued, in order, since the image was all zeros."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.blocks = blocks
        self.dice = random.Random(seed)
        self.writes: list[Write] = []
        self.next_seq = 1
        self.completed = 0
        """How many of `writes` have returned."""
        self.acked = 0
        """How many of `writes` an fsync has promised."""

    def issue(self) -> Write:
        """Make up the next write; it counts as issued from now on."""
        dice = self.dice
        count = 1 if dice.random() < 0.9 else dice.randint(2, min(self.blocks, 48))
        first = dice.randrange(self.blocks - count + 1)
        write = Write(self.next_seq, first, count, zero=dice.random() < 0.1)
        self.next_seq += 1
        self.writes.append(write)
        return write

    def recovered(self, image: bytes) -> int:
        """Return the k for which *image* is what the first k writes leave; the rest is forgotten.

        Fails if there is none, or if an acknowledged write is not among them.
        """
        k = self.prefix(image)
        assert k >= self.acked, (
            f"an acknowledged write is lost: {self.acked} were promised, {k} of "
            f"{len(self.writes)} are there"
        )
        del self.writes[k:]
        self.completed = self.acked = k
        return k

    def prefix(self, image: bytes) -> int:
        """Return the largest k for which *image* is what the first k writes leave."""
        return self._prefixes(image)[-1]

    def least_prefix(self, image: bytes) -> int:
        """Return the smallest such k: writes of zeros may bring an earlier state back."""
        return self._prefixes(image)[0]

    def _prefixes(self, image: bytes) -> list[int]:
        """Return every k for which *image* is what the first k writes leave: at least one."""
        assert len(image) == self.blocks * BLOCK
        holds = [image[at : at + BLOCK] for at in range(0, len(image), BLOCK)]
        differing = {number for number, block in enumerate(holds) if block != _ZEROS}
        found, fewest = ([] if differing else [0]), (len(differing), 0)
        for k, write in enumerate(self.writes, 1):
            for number in range(write.first, write.first + write.count):
                if holds[number] == write.block(number):
                    differing.discard(number)
                else:
                    differing.add(number)
            if not differing:
                found.append(k)
            fewest = min(fewest, (len(differing), k))
        assert found, self._difference(holds, *fewest)
        return found

    def _difference(self, holds: list[bytes], count: int, k: int) -> str:
        """Tell how *holds* differs from the most similar state that there ever was."""
        state = [_ZEROS] * self.blocks
        for write in self.writes[:k]:
            for number in range(write.first, write.first + write.count):
                state[number] = write.block(number)
        found = {
            number: (_stamps(got), "instead of", _stamps(want))
            for number, (got, want) in enumerate(zip(holds, state, strict=True))
            if got != want
        }
        return f"no prefix: nearest to the first {k} writes, but {count} blocks differ: {found}"


class Load:
    """Write and fsync as fast as it goes until stopped, or until the volume takes no more.

    With *pause_s* it waits that long before each write. A context manager; at its end both
    threads are done. `error` is what ended the writing.
    """

    def __init__(self, volume: Path, history: History, pause_s: float = 0.0) -> None:
        self.history = history
        self.error: OSError | None = None
        self.sync_error: OSError | None = None
        self.syncs = 0
        self._volume = volume
        self._pause_s = pause_s
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, daemon=True),
            threading.Thread(target=self._sync, daemon=True),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a request never returned"

    def wait_for_trouble(self, wait_s_max: float) -> bool:
        """Wait until a request has failed, or the time is over; tell which."""
        return self._over.wait(wait_s_max)

    def _write(self) -> None:
        history = self.history
        try:
            fd = os.open(self._volume, os.O_RDWR | os.O_DIRECT)
        except OSError as exc:
            self.error = exc
            self._over.set()
            return
        try:
            while not self._over.wait(self._pause_s):
                write = history.issue()
                with mmap.mmap(-1, write.count * BLOCK) as buffer:  # Aligned, for O_DIRECT.
                    buffer.write(write.payload())
                    length = os.pwritev(fd, [buffer], write.first * BLOCK)
                assert length == write.count * BLOCK, "a short write"
                history.completed = len(history.writes)
        except OSError as exc:
            self.error = exc
            self._over.set()
        finally:
            with contextlib.suppress(OSError):  # Closing asks the driver, too.
                os.close(fd)

    def _sync(self) -> None:
        history = self.history
        try:
            fd = os.open(self._volume, os.O_RDWR)
            try:
                while not self._over.is_set():
                    completed = history.completed
                    os.fsync(fd)
                    history.acked = max(history.acked, completed)
                    self.syncs += 1
                    self._over.wait(history.dice.random() * 0.01)
            finally:
                os.close(fd)
        except OSError as exc:
            self.sync_error = exc
            self._over.set()


def _stamps(block: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the first and the last (seq, block number) in a block."""
    return _STAMP.unpack_from(block), _STAMP.unpack_from(block, BLOCK - _STAMP.size)
