"""Random operations on one file, each checked against a bytearray: in the manner of fsx.

What one run did is in `history`; with the same `random.Random` it is done again.
"""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse import calls
from tests.fuse.calls import KEEP_SIZE, PUNCH, ZERO_RANGE, fallocate, opened

PIECE_BYTES_MAX = 48 * 1024


class Fsx:
    """The file *path*, which may grow to *size_max*, and the bytes it should hold."""

    def __init__(
        self, path: Path, size_max: int, chance: random.Random, *, too_far: bool = True
    ) -> None:
        self.path = path
        self._too_far = too_far
        self.size_max = size_max
        self.chance = chance
        self.model = bytearray(path.read_bytes())
        self.history: list[str] = []

    def run(self, count: int) -> None:
        """Do *count* operations and check the file as a whole at the end."""
        steps: dict[Callable[[], None], int] = {
            self.write: 20, self.write_direct: 10, self.write_mapped: 10, self.append: 3,
            self.read: 15, self.read_direct: 8, self.read_mapped: 8,
            self.truncate: 6, self.truncate_by_opening: 1, self.write_too_far: int(self._too_far),
            self.punch: 6, self.zero: 4, self.zero_keeping_size: 3,
            self.sync: 3, self.drop_cache: 3,
        }  # fmt: skip
        for step in self.chance.choices(list(steps), list(steps.values()), k=count):
            step()
        self.check()

    def check(self) -> None:
        """Compare size and all bytes."""
        assert self.path.stat().st_size == len(self.model), self.told()
        found = self.path.read_bytes()
        assert found == self.model, self.told(_first_difference(found, self.model))

    def told(self, at: int | None = None) -> str:
        """Return the last operations, for the message of a failed check."""
        what = "" if at is None else f"differs at {at}\n"
        return what + "\n".join(self.history[-40:])

    # Writes.

    def write(self) -> None:
        offset, data = self._somewhere(self.size_max), self._data()
        data = data[: self.size_max - offset]
        self._note("write", offset, len(data))
        with opened(self.path) as fd:
            assert os.pwrite(fd, data, offset) == len(data)
        self._expect(offset, data)

    def write_direct(self) -> None:
        offset, data = self._somewhere(self.size_max), self._data()
        if self.chance.random() < 0.7:
            offset -= offset % 4096
            data += bytes([data[0] or 1]) * (-len(data) % 4096)
        data = data[: self.size_max - offset]
        self._note("write_direct", offset, len(data))
        assert calls.write_direct(self.path, offset, data) == len(data)
        self._expect(offset, data)

    def write_mapped(self) -> None:
        offset, length = self._inside()
        if length:
            self._note("write_mapped", offset, length)
            data = self.chance.randbytes(length)
            calls.write_mapped(self.path, offset, data)
            self._expect(offset, data)

    def append(self) -> None:
        data = self._data()[: self.size_max - len(self.model)]
        if data:
            self._note("append", len(self.model), len(data))
            with opened(self.path, os.O_WRONLY | os.O_APPEND) as fd:
                assert os.write(fd, data) == len(data)
            self._expect(len(self.model), data)

    def write_too_far(self) -> None:
        self._note("write_too_far", self.size_max, 1)
        with opened(self.path) as fd, pytest.raises(OSError, match="too large") as refused:
            os.pwrite(fd, b"x", self.size_max)
        assert refused.value.errno == errno.EFBIG

    def truncate(self) -> None:
        size = self._somewhere(self.size_max + 1)
        self._note("truncate", size, 0)
        os.truncate(self.path, size)
        self._resize(size)

    def truncate_by_opening(self) -> None:
        self._note("open(O_TRUNC)", 0, 0)
        with opened(self.path, os.O_WRONLY | os.O_TRUNC):
            pass
        self._resize(0)

    def punch(self) -> None:
        offset, length = self._range()
        self._note("punch", offset, length)
        self._fallocate(PUNCH, offset, length)
        self._expect_zeros(offset, min(offset + length, len(self.model)))

    def zero(self) -> None:
        offset, length = self._range()
        self._note("zero", offset, length)
        self._fallocate(ZERO_RANGE, offset, length)
        self._expect(offset, bytes(length))

    def zero_keeping_size(self) -> None:
        offset, length = self._range()
        self._note("zero_keeping_size", offset, length)
        self._fallocate(ZERO_RANGE | KEEP_SIZE, offset, length)
        self._expect_zeros(offset, min(offset + length, len(self.model)))

    # Reads and the rest.

    def read(self) -> None:
        offset, length = self._somewhere(self.size_max), self.chance.randint(1, PIECE_BYTES_MAX)
        self._note("read", offset, length)
        with opened(self.path, os.O_RDONLY) as fd:
            assert os.pread(fd, length, offset) == self._slice(offset, length), self.told()

    def read_direct(self) -> None:
        offset, length = self._somewhere(self.size_max), self.chance.randint(1, PIECE_BYTES_MAX)
        self._note("read_direct", offset, length)
        found = calls.read_direct(self.path, offset, length)
        assert found == self._slice(offset, length), self.told()

    def read_mapped(self) -> None:
        offset, length = self._inside()
        if length:
            self._note("read_mapped", offset, length)
            found = calls.read_mapped(self.path, offset, length)
            assert found == self._slice(offset, length), self.told()

    def sync(self) -> None:
        self._note("sync", 0, 0)
        with opened(self.path) as fd:
            os.fsync(fd)

    def drop_cache(self) -> None:
        self._note("drop_cache", 0, 0)
        calls.drop_cache(self.path)

    # The model.

    def _expect(self, offset: int, data: bytes) -> None:
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def _expect_zeros(self, start: int, end: int) -> None:
        if end > start:
            self.model[start:end] = bytes(end - start)

    def _resize(self, size: int) -> None:
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def _slice(self, offset: int, length: int) -> bytes:
        return bytes(self.model[offset : offset + length])

    # Choices.

    def _somewhere(self, end: int) -> int:
        near = self.chance.random() < 0.5  # Where things are is where they collide.
        at = self.chance.randrange(min(end, len(self.model) + 8192) if near else end)
        return at if self.chance.random() < 0.7 else at - at % 4096

    def _range(self) -> tuple[int, int]:
        offset = self._somewhere(self.size_max)
        return offset, self.chance.randint(1, min(4 * PIECE_BYTES_MAX, self.size_max - offset))

    def _inside(self) -> tuple[int, int]:
        if not self.model:
            return 0, 0
        offset = self.chance.randrange(len(self.model))
        return offset, self.chance.randint(1, min(PIECE_BYTES_MAX, len(self.model) - offset))

    def _data(self) -> bytes:
        length = self.chance.choice([1, 511, 512, 4095, 4096, 4097, 8192, 20000, PIECE_BYTES_MAX])
        data = self.chance.randbytes(length)
        if self.chance.random() < 0.3:  # With a run of zeros somewhere in it.
            start = self.chance.randrange(length)
            stop = self.chance.randrange(start, length)
            data = data[:start] + bytes(stop - start) + data[stop:]
        return data

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        with opened(self.path) as fd:
            assert fallocate(fd, mode, offset, length) == 0, self.told()

    def _note(self, what: str, offset: int, length: int) -> None:
        self.history.append(f"{len(self.history)} {what} {offset}+{length}")


def _first_difference(left: bytes, right: bytes | bytearray) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
