"""Hold a mirror to the VERIFY records of a file, each exactly where it stands in the file.

A file that is executed again after a crash has left in the mirror, in parts, what its later
records wrote. What these touch says nothing about the mirror then, and is not compared.
"""

import errno
import logging
from collections.abc import Iterator
from dataclasses import replace

from blake3 import blake3

from aimfuse.disk import Disk
from aimfuse.journal.reader import AimFile
from aimfuse.journal.records import Iocb, RecordType
from aimfuse.journal.verify import Hashed, decode_hashes, hash_of_zeros, zeros
from aimfuse.replay.plan import Plan
from aimfuse.replay.verified import Mismatch, Verified
from aimfuse.units import GIB, MIB, VolumeId

log = logging.getLogger(__name__)

READ_BYTES = MIB
COMPARED_BYTES_MAX = 64 * GIB
"""Read for the records of one file, at most: nobody who writes files may stop a replayer."""

_UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ})
"""What reading gives where the disk has lost what was written: that is a mismatch, too."""


class Comparison:
    """What one file's records say of the mirror, and what is found there."""

    def __init__(
        self, disk: Disk, aim: AimFile, plan: Plan, before: Verified, *, again: bool
    ) -> None:
        """Compare what *plan* lists, with what was known *before*.

        *again*: an attempt before this one may have executed any of it.
        """
        self._disk = disk
        self._aim = aim
        self._plan = plan
        self._again = again
        self._skipped = False
        self._left_bytes = COMPARED_BYTES_MAX
        self._known = before

    def merged(self, volume: VolumeId) -> list[Iocb]:
        """Return the records of a volume that are to be executed or compared, in order."""
        changes = self._plan.changes.get(volume, [])
        checks = self._plan.checks.get(volume)
        return sorted([*changes, *checks], key=lambda one: one.seq) if checks else changes

    def check(self, fd: int, iocb: Iocb) -> None:
        """Compare what the file *fd* holds now with what the record says.

        Raises:
            OSError: the disk failed in another way than by losing what it held.
        """
        try:
            ranges = decode_hashes(bytes(self._aim.payload(iocb)))
        except ValueError as exc:
            log.info("%s: record %d is not compared: %s", self._aim.path.name, iocb.seq, exc)
            self._skipped = True
            return
        epoch, seq, time_ns = self._aim.identity.epoch, iocb.seq, iocb.time_ns
        known = replace(self._known, epoch=epoch, seq=seq, time_ns=time_ns)
        for one in ranges:
            if self._is_spoilt(iocb, one) or self._left_bytes <= 0:
                self._skipped = True
                continue
            found = [
                Mismatch(iocb.volume, offset, end - offset, epoch, seq, time_ns)
                for offset, end in self._differences(fd, one)
            ]
            known = known.without(iocb.volume, one.offset, one.length)
            if found:
                known = known.with_mismatches(found)
        self._known = known

    def result(self, number: int) -> Verified:
        """Return what is known behind file *number*, which is this one."""
        known = self._known.interrupted() if self._skipped else self._known.begun(number)
        return known.within(self._plan.table())

    def _is_spoilt(self, check: Iocb, one: Hashed) -> bool:
        """Tell whether records behind *check* may have been executed on the range before it."""
        if not self._again:
            return False
        for iocb in self._plan.changes.get(check.volume, ()):
            if iocb.seq < check.seq:
                continue
            start, end = int(iocb.offset), iocb.offset + (iocb.payload_bytes or iocb.length)
            if iocb.type is RecordType.TRUNCATE:  # From the shorter of its two sizes on.
                start, end = min(iocb.offset, iocb.length), one.end
            if start < one.end and one.offset < end:
                return True
        return False

    def _differences(self, fd: int, one: Hashed) -> Iterator[tuple[int, int]]:
        """Yield where the range does not hold what it should, as closely as that can be told."""
        if one.digest:
            if not self._is_as_hashed(fd, one):
                yield one.offset, one.end
            return
        at = one.offset
        while at < one.end and self._left_bytes > 0:
            at = self._disk.next_data(fd, at, one.end)
            stop = min(one.end, at + READ_BYTES)
            if at < stop:
                data = self._read(fd, at, stop - at)
                if data is None or data.strip(b"\0"):
                    yield at, stop
            at = stop
        self._skipped = self._skipped or at < one.end

    def _is_as_hashed(self, fd: int, one: Hashed) -> bool:
        if self._disk.next_data(fd, one.offset, one.end) >= one.end:
            return hash_of_zeros(one.length) == one.digest
        data = self._read(fd, one.offset, one.length)
        if data is None:
            return False
        return blake3(data + zeros(one.length - len(data))).digest() == one.digest

    def _read(self, fd: int, offset: int, length: int) -> bytes | None:
        """Return what the disk itself holds, None if it cannot be read any more."""
        self._left_bytes -= length
        try:
            self._disk.drop_cache(fd, offset, length)
            return self._disk.pread(fd, length, offset)
        except OSError as exc:
            if exc.errno in _UNREADABLE:
                return None
            raise
