"""Replay a directory of stores: find them, and keep each one's session going.

One task per store. Sessions block, so their rounds run in worker threads, a few at a time; a
store that fails or halts does not hold up the others. Cancelling lets a round that has begun
end, so that the last ack says what is; killing loses nothing either.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import trio

from aimfuse.disk import Disk, process_disk
from aimfuse.errors import AimfuseError, BusyError, UsageError, explain
from aimfuse.replay.handover import is_wanted
from aimfuse.replay.look import Look
from aimfuse.replay.once import Caught, caught, unopened
from aimfuse.replay.session import Session
from aimfuse.replay.store import INBOX

log = logging.getLogger(__name__)

T = TypeVar("T")

STORES_MAX = 1000
"""Names beneath DIR that are looked at; whoever can make names there cannot make us work."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look, in seconds, and how many stores work at once."""

    active_s: float = 0.05
    idle_s: float = 0.25
    idle_after_s: float = 10.0
    retry_s_min: float = 0.25
    retry_s_max: float = 30.0
    discover_s: float = 0.5
    busy_retry_s: float = 5.0
    threads: int = 4
    hung_s: float = 20.0
    """A round that lasts longer, on a disk that hangs, gives its place to another store."""

    def retry_s(self, failures: int) -> float:
        """Return the pause after *failures* failed rounds in a row, from 1."""
        return min(self.retry_s_max, self.retry_s_min * 2.0 ** min(failures - 1, 32))


class Replayer:
    """Every store in one directory. `sessions` are those that are open, by path."""

    def __init__(
        self,
        directory: Path,
        disk: Disk | None = None,
        pace: Pace | None = None,
        look: Look | None = None,
    ) -> None:
        """*directory* is a store itself (it has an inbox) or holds stores."""
        self.directory = directory
        self.sessions: dict[Path, Session] = {}
        self._disk = disk or process_disk()
        self._look = look or Look()
        self._pace = pace or Pace()
        self._places = trio.CapacityLimiter(self._pace.threads)
        self._threads = trio.CapacityLimiter(math.inf)
        self._begun_s: dict[object, float] = {}
        self._started: set[Path] = set()
        self._busy_said: set[Path] = set()
        self._said: set[str] = set()

    async def run(self) -> None:
        """Replay until cancelled, also stores that come into being later.

        Raises:
            UsageError: the directory is none.
            BusyError: all the stores that are here already have a replayer.
            OSError: none of them can be opened.
        """
        await self._check_not_all_busy()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._make_up_for_hung)
            while True:
                for path in await self._find_again():
                    if path not in self._started:
                        self._started.add(path)
                        nursery.start_soon(self._keep_open, path)
                await trio.sleep(self._pace.discover_s)

    async def run_once(self) -> list[Caught]:
        """Apply what is here and can be applied; return how each store stands then.

        Raises:
            UsageError: the directory is none.
        """
        found = []
        for path in await self._in_thread(self._find):
            try:
                session = await self._in_thread(partial(self._open, path))
            except BusyError as exc:
                found.append(unopened(str(path), exc))
                continue
            except OSError as exc:  # One store's disk must not end the work on the others.
                found.append(unopened(str(path), AimfuseError(explain(exc))))
                continue
            try:
                await self._exhaust(session)
                found.append(await self._in_thread(partial(caught, session)))
            finally:
                await self._shielded(session)
        return found

    async def _exhaust(self, session: Session) -> None:
        while await self._in_thread(session.round) or (session.is_busy and not session.halted):
            if await self._is_wanted(session):
                return
            if session.is_busy:
                await trio.sleep(self._pace.active_s)

    async def _check_not_all_busy(self) -> None:
        """Notice a second replayer at once, where somebody sees the message."""
        failure: BusyError | OSError | None = None
        for path in await self._in_thread(self._find):
            try:
                self.sessions[path] = await self._in_thread(partial(self._open, path))
            except (BusyError, OSError) as exc:
                failure = exc
        if failure is not None and not self.sessions:
            raise failure

    async def _keep_open(self, path: Path) -> None:
        """Work on one store while it is there, waiting while somebody else has it."""
        session = await self._obtain(path)
        self.sessions[path] = session
        try:
            await self._work(session)
        finally:
            del self.sessions[path]
            await self._shielded(session)
        self._started.discard(path)  # What lies there next is found like any other store.

    async def _obtain(self, path: Path) -> Session:
        while True:
            if path in self.sessions:
                return self.sessions[path]
            try:
                return await self._in_thread(partial(self._open, path))
            except (BusyError, OSError) as exc:
                if path not in self._busy_said:
                    log.warning("%s", explain(exc))
                self._busy_said.add(path)
                await trio.sleep(self._pace.busy_retry_s)

    async def _work(self, session: Session) -> None:
        pace = self._pace
        active_until_s = -math.inf
        while not session.is_gone and not await self._is_wanted(session):
            if await self._in_thread(session.round):
                active_until_s = trio.current_time() + pace.idle_after_s
                continue
            if session.failures:
                await trio.sleep(pace.retry_s(session.failures))
                continue
            active = trio.current_time() < active_until_s
            await trio.sleep(pace.active_s if active else pace.idle_s)

    async def _shielded(self, session: Session) -> None:
        """Write the last ack and let go; bounded, since rounds are."""
        with trio.CancelScope(shield=True):
            await self._in_thread(session.close)

    async def _is_wanted(self, session: Session) -> bool:
        try:
            return await self._in_thread(partial(is_wanted, self._disk, session.store.path))
        except OSError as exc:  # One store's disk must not end the work on the others.
            log.debug("%s: %s", session.store.path, exc)
            return False

    def _open(self, path: Path) -> Session:
        if is_wanted(self._disk, path):
            raise BusyError(f"{path} is in the hands of a command", hint="Wait for it.")
        session = Session(self._disk, path, self._look, read_ahead=True)
        session.store.lock()
        return session

    async def _find_again(self) -> list[Path]:
        """Find stores in a directory that was there once and may be moved away meanwhile."""
        try:
            found = await self._in_thread(self._find)
        except UsageError as exc:
            self._say({f"{exc}; it will be looked for"})
            return []
        return found

    def _find(self) -> list[Path]:
        """Return the stores: the directory itself, or those right beneath it."""
        look, problems = self._look, set[str]()
        if _is_store(look, self.directory, problems):
            return [self.directory]
        try:
            names = list(islice(look.scan(self.directory), STORES_MAX + 1))
        except OSError as exc:
            hint = f"Run `mkdir {self.directory}` first, or look at its permissions."
            message = f"{self.directory} cannot be read: {exc.strerror}"
            raise UsageError(message, hint=hint) from exc
        if len(names) > STORES_MAX:
            problems.add(
                f"{self.directory} has more names than the {STORES_MAX} that are looked at"
            )
        beneath = [self.directory / name for name in sorted(names[:STORES_MAX])]
        found = [path for path in beneath if _is_store(look, path, problems)]
        self._say(problems)
        return found

    def _say(self, problems: set[str]) -> None:
        """Log what was not said the last time."""
        for problem in sorted(problems - self._said):
            log.warning("%s", problem)
        self._said = problems

    async def _in_thread(self, work: Callable[[], T]) -> T:
        async with self._places:
            token = object()
            self._begun_s[token] = trio.current_time()
            try:
                return await trio.to_thread.run_sync(work, limiter=self._threads)
            finally:
                del self._begun_s[token]

    async def _make_up_for_hung(self) -> None:
        """Give stores that work the places of those whose disk does not answer: one each."""
        pace, hung = self._pace, 0
        while True:
            await trio.sleep(pace.hung_s / 4)
            since_s = trio.current_time() - pace.hung_s
            before, hung = hung, sum(one <= since_s for one in self._begun_s.values())
            self._places.total_tokens = pace.threads + hung
            if hung > before:
                log.warning("%d rounds take longer than %.0f s: a disk hangs?", hung, pace.hung_s)


def _is_store(look: Look, path: Path, problems: set[str]) -> bool:
    """Tell whether *path* is a directory with an inbox; add to *problems* why nobody can tell."""
    try:
        for directory in (path, path / INBOX):
            entry = look.entry(directory)
            if entry is None or entry.kind != "directory":
                return False
    except OSError as exc:
        problems.add(f"{path} cannot be looked into, so it is not replayed: {exc.strerror}")
        return False
    return True
