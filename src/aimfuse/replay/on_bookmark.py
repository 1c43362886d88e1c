"""Run a command of the store's operator when a bookmark has been applied.

What is run for which labels is in ``[on_bookmark]`` of ``store.toml``, and nowhere else; a file
that somebody could have written who sends files here is not believed. The label reaches the
command in its environment, never by a shell. It runs in a process of its own, one at a time, in
the order of the bookmarks, once the bookmark's file is applied and durable; the mirror goes on
meanwhile.

At least once: ``STORE/on-bookmark.0, .1`` says up to which bookmark all is done, and is written
when a command has ended, however that was. Whoever is killed before runs it again. What was
applied while no command was set is not made up for.
"""

import contextlib
import logging
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from fnmatch import fnmatchcase

from aimfuse.config.store import (
    CONFIG_BYTES_MAX,
    STORE_CONFIG_NAME,
    StoreConfig,
    parse_store,
)
from aimfuse.errors import ConfigError, StateLost, explain
from aimfuse.journal.slots import Slots
from aimfuse.replay.marks import Bookmark, Marks
from aimfuse.replay.state import Json, Phase
from aimfuse.replay.store import Store

log = logging.getLogger(__name__)

BASE = "on-bookmark"
STDERR = 2
END_S = 5.0
"""How long a command that is told to end may take to do so."""

Place = tuple[int, int]
"""Number of a file and of a record in it."""


class OnBookmark:
    """The commands of one open store. None of its methods waits, but for `close`."""

    def __init__(
        self,
        store: Store,
        marks: Marks,
        settings: Callable[[], StoreConfig],
        clock: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        """Take up where the last run ended. *clock* gives Unix ns.

        Raises:
            OSError: the disk failed; try again with a new object.
        """
        self._store = store
        self._marks = marks
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._slots = Slots(store.disk, store.home / BASE, BASE)
        self._done: Place | None = None
        self._last: Json | None = None
        self._read()
        self._child: subprocess.Popen[bytes] | None = None
        self._mark: Bookmark | None = None
        self._begun_s = 0.0
        self._ended_by = ""
        self._refused = ""

    @property
    def is_busy(self) -> bool:
        """Tell whether a command is running."""
        return self._child is not None

    def step(self) -> bool:
        """Look after the command that runs, or begin the next one; tell whether anything changed.

        Raises:
            OSError: the disk failed; what has ended is run again after a restart.
        """
        if self._child is not None:
            return self._look_after(self._child)
        if not self._settings().on_bookmark:
            self._forget()
            return False
        if self._done is None:  # From here on.
            self._save(self._newest(), None)
            return False
        mark = self._next()
        if mark is None or (command := self._command(mark)) is None:
            if mark is not None:
                self._save((mark.number, mark.seq), self._last)
            return mark is not None
        self._refused = self._why_not()
        if not self._refused:
            self._begin(mark, command)
        return not self._refused

    def close(self) -> None:
        """End the command that runs; it is run again by the next start."""
        child = self._child
        if child is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            _send(child, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_S)
                break
        self._child = None

    def report(self) -> Json | None:
        """Return what the ack says of it, None where no command is set."""
        if not self._settings().on_bookmark:
            return None
        return {
            "running": self._mark.label if self._child and self._mark else None,
            "problem": self._refused or (self._last or {}).get("problem"),
            "last": self._last,
        }

    def key(self) -> object:
        """Return something that differs whenever `report` says something else."""
        running = self._mark if self._child else None
        return running, self._refused, str(self._last), self._settings().on_bookmark

    # What is next.

    def _next(self) -> Bookmark | None:
        state = self._store.state
        if state.phase is not Phase.CONSISTENT or state.head is None or self._done is None:
            return None
        for mark in self._marks.known_behind(*self._done):
            return mark if mark.number <= state.head.number else None
        return None

    def _newest(self) -> Place:
        head = self._store.state.head
        return (head.number, head.seq) if head else (0, 0)

    def _command(self, mark: Bookmark) -> tuple[str, ...] | None:
        for pattern, command in self._settings().on_bookmark:
            if fnmatchcase(mark.label, pattern):
                return command
        return None

    def _why_not(self) -> str:
        """Return why the settings are not believed: whoever sends files could have written them.

        They have to be those of the very file whose owner was looked at: it may have been put in
        the place of the one that was read.
        """
        disk, look = self._store.disk, self._store.look
        path = self._store.home / STORE_CONFIG_NAME
        inbox = look.entry(self._store.inbox)
        fd = disk.open("on_bookmark:look", path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            mode, owner, _group = disk.owner(fd)
            text = disk.pread(fd, CONFIG_BYTES_MAX, 0)
        finally:
            disk.close(fd)
        sender = inbox.owner if inbox else -1
        is_ours = owner == 0 or (owner == look.own_uid() and owner != sender)
        if is_ours and not mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "" if self._is_known(text) else f"{STORE_CONFIG_NAME} is being changed"
        return (
            f"[on_bookmark] is not followed: others than the store's operator could have written "
            f"{STORE_CONFIG_NAME}; run `chown root` and `chmod 644` on it"
        )

    def _is_known(self, text: bytes) -> bool:
        """Tell whether the commands that are set are those that *text* says."""
        try:
            said = parse_store(self._store.home / STORE_CONFIG_NAME, text)
        except ConfigError:
            return False
        return said.on_bookmark == self._settings().on_bookmark

    # A command.

    def _begin(self, mark: Bookmark, command: tuple[str, ...]) -> None:
        environment = {
            **os.environ,
            "AIMFUSE_LABEL": mark.label,
            "AIMFUSE_POSITION": f"{mark.epoch}:{mark.seq}",
            "AIMFUSE_TIME_NS": str(mark.time_ns),
            "AIMFUSE_STORE": str(self._store.path.absolute()),
        }
        self._mark, self._ended_by = mark, ""
        self._begun_s = self._monotonic()
        try:
            self._child = subprocess.Popen(
                command, env=environment, cwd=self._store.path, stdin=subprocess.DEVNULL,
                stdout=STDERR, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as exc:
            said = explain(exc)
            self._end(f"cannot be run: {said}")
        else:
            log.info("%s: bookmark %r: %s runs", self._store.path, mark.label, command[0])

    def _look_after(self, child: subprocess.Popen[bytes]) -> bool:
        code = child.poll()
        if code is not None:
            self._child = None
            if self._ended_by:
                _send(child, signal.SIGKILL)  # To what it started and has not ended with it.
            self._end(self._ended_by or (f"failed with exit code {code}" if code else ""))
            return True
        timeout_s = self._settings().on_bookmark_s_max
        late_s = self._monotonic() - self._begun_s - timeout_s
        if late_s > 0:
            _send(child, signal.SIGKILL if late_s > END_S else signal.SIGTERM)
            self._ended_by = f"took longer than {timeout_s:g} s and was ended"
        return False

    def _end(self, problem: str) -> None:
        """Note durably how a command ended."""
        mark = self._mark
        assert mark is not None
        what = f"the command for bookmark {mark.label!r} {problem}" if problem else None
        if what:
            log.warning("%s: %s", self._store.path, what)
        said = {
            "label": mark.label,
            "position": f"{mark.epoch}:{mark.seq}",
            "ended_ns": self._clock(),
            "took_s": round(self._monotonic() - self._begun_s, 3),
            "problem": what,
        }
        self._save((mark.number, mark.seq), said)

    # What is done.

    def _read(self) -> None:
        try:
            said = self._slots.read() or {}
            done = said.get("done")
            self._done = (int(done[0]), int(done[1])) if done else None
            self._last = said.get("last")
        except (StateLost, TypeError, ValueError, LookupError) as exc:
            log.warning("%s: what was run for bookmarks is lost: %s", self._store.path, exc)

    def _save(self, done: Place, last: Json | None) -> None:
        self._done, self._last = done, last
        self._slots.write({"done": done, "last": last})

    def _forget(self) -> None:
        """Note that no command is set: what is applied until one is will not be made up for."""
        if self._done is not None:
            self._slots.write({"done": None, "last": None})
        self._done, self._last, self._refused = None, None, ""


def _send(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)
