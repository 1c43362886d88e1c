"""``inbox/switchover.json``: the source asks its mirror to go on in its place, at one position.

It is carried out only by a store that stands exactly there, with nothing waiting behind it;
until then it stays where it is. What cannot be any more, or is of another group, is set aside.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from aimfuse.config.store import load_store
from aimfuse.errors import ConfigError, StoreError
from aimfuse.replay.findings import Findings
from aimfuse.replay.look import Entry
from aimfuse.replay.promotion import next_epoch
from aimfuse.replay.state import Head, Json, Phase, StoreState
from aimfuse.replay.store import REQUEST, Store
from aimfuse.replay.work import Work
from aimfuse.units import natural

VERSION = 1
_BYTES_MAX = 64 * 1024


class Impossible(Exception):
    """It can never be carried out here."""


@dataclass(frozen=True, slots=True)
class Switchover:
    """The request: *group* is to go on behind *position*, the end of a journal file."""

    group: bytes
    position: Head

    @classmethod
    def from_json(cls, data: Json) -> "Switchover":
        """Read a request.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or of another kind.
        """
        if natural(data["version"]) != VERSION:
            raise ValueError(f"version {data['version']}, not {VERSION}")
        return cls(bytes.fromhex(data["group"]), Head.from_json(data["position"]))


class Switchovers:
    """Looks for such a request in the inbox of one open store.

    `is_waiting` while there is one that cannot be carried out yet.
    """

    def __init__(self, store: Store, work: Work, findings: Findings) -> None:
        self._store = store
        self._work = work
        self._findings = findings
        self.is_waiting = False

    def due(self, inbox_files: int) -> Head | None:
        """Return the position of a request that is to be carried out now, if there is one.

        *inbox_files* are the AIM files that lie in the inbox still.

        Raises:
            OSError: the disk failed.
        """
        self.is_waiting = False
        path = self._store.inbox / REQUEST
        entry = self._store.look.entry(path)
        if entry is None:
            return None
        try:
            self._check_allowed()
            request = Switchover.from_json(self._read(path, entry))
            why = self._why_not_yet(request, inbox_files)
        except Impossible as exc:
            self._findings.set_aside(path, str(exc))
        except (KeyError, TypeError, ValueError, RecursionError) as exc:
            self._findings.set_aside(path, f"no switch-over request: {exc!r}")
        else:
            if not why:
                return self._store.state.head
            self.is_waiting = True
            self._findings.give_notice(f"the switch-over waits: {why}")
        return None

    def _check_allowed(self) -> None:
        try:
            is_allowed = load_store(self._store.home, self._store.disk).switchover
        except ConfigError as exc:
            raise Impossible(f"whether it is allowed cannot be read: {exc}") from exc
        if not is_allowed:
            why = "the store's operator allows no switch-over: run `aimfuse promote` there"
            self._findings.give_notice(why)
            raise Impossible(why)

    def _read(self, path: Path, entry: Entry) -> Json:
        if not entry.is_file or entry.links != 1 or entry.size > _BYTES_MAX:
            raise ValueError(f"a {entry.kind} with {entry.links} names, {entry.size} bytes")
        disk = self._store.disk
        fd = disk.open("switchover:open", path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            data = json.loads(disk.pread(fd, _BYTES_MAX, 0))
        finally:
            disk.close(fd)
        if not isinstance(data, dict):
            raise TypeError("no object")
        return data

    def _why_not_yet(self, request: Switchover, inbox_files: int) -> str:
        state, wanted = self._store.state, request.position
        if state.group is not None and request.group != state.group:
            raise Impossible(f"it is of group {request.group.hex()}, not of this store's")
        if state.phase is not Phase.CONSISTENT or state.head is None:
            return f"the mirror is {state.phase.value}"
        head = state.head
        if head.number > wanted.number:
            raise Impossible(
                f"it names file {wanted.number}, and file {head.number} is applied already"
            )
        if head.number < wanted.number:
            return f"file {wanted.number} is named, file {head.number} is applied"
        if (head.epoch, head.seq, head.digest) != (wanted.epoch, wanted.seq, wanted.digest):
            raise Impossible(f"its file {wanted.number} is another one than the one applied here")
        try:
            next_epoch(head)
        except StoreError as exc:
            raise Impossible(str(exc)) from exc
        return self._why_not_alone(state, inbox_files)

    def _why_not_alone(self, state: StoreState, inbox_files: int) -> str:
        if state.staging is not None:
            return "a copy is on its way"
        if self._work.files or inbox_files > 0:
            return "more files wait here"
        return ""
