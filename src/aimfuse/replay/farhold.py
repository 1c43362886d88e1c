"""Hold the past of a distant store while it is read, and ask where its data lies.

See readers.py for what the replayer there makes of it. An account that may write nothing holds
nothing: whatever is pruned under it is noticed, and ends the reading.
"""

import contextlib
import json
import logging
import os
import pwd
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from aimfuse.disk import Disk
from aimfuse.errors import TransportError
from aimfuse.replay.afar import Files
from aimfuse.replay.pins import Movable
from aimfuse.replay.readers import Ranges, Wish, answer_name, read_answer, reader_name
from aimfuse.replay.state import Json

BEAT_S = 15.0
ANSWER_S_MAX = 3.0
"""How long a first answer is waited for: without one nobody replays there, or an older release."""

SURVEY_S_MAX = 60.0
"""The same for where the data of a file lies, once somebody has answered."""

_LOOK_S = 0.05
_ANSWER_BYTES_MAX = 64 << 20

log = logging.getLogger(__name__)


def _own_name() -> str:
    """Return who we are, for people: the account and the host."""
    try:
        account = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        account = str(os.geteuid())
    return f"{account}@{socket.gethostname()}"


class Mailbox(Files, Protocol):
    """Files of a store that has an inbox."""

    def deliver(self, data: bytes, name: str) -> None:
        """Put a small file into the inbox, whole or not at all."""


class FarHold:
    """Holds the past of one store while its block runs. `is_heard`: the replayer answers."""

    def __init__(self, files: Mailbox, answer_s_max: float = ANSWER_S_MAX) -> None:
        """Hold nothing yet."""
        self._answer_s_max = answer_s_max
        self._begun_s = time.monotonic()
        self.is_heard = False
        self._files = files
        self._token = secrets.token_hex(8)
        self._wish = Wish()
        self._lock = threading.Lock()
        self._over = threading.Event()

    @contextmanager
    def __call__(self, _disk: Disk, _store: Path) -> Iterator[Movable | None]:
        """Hold everything; in the block, what is behind the file that it is moved to."""
        try:
            self._say(Wish(ask=1))
        except OSError as exc:
            log.info("nothing can be held there: %s", exc)
            yield None
            return
        self.is_heard = self._answer(self._answer_s_max) is not None
        self._over.clear()
        beats = threading.Thread(target=self._beat, name="reader", daemon=True)
        beats.start()
        try:
            yield self
        finally:
            self._over.set()
            beats.join()
            with contextlib.suppress(OSError, TransportError):
                self._say(Wish(done=True))

    def move(self, number: int) -> None:
        """Hold only what is behind file *number*."""
        self._say(Wish(number, self._wish.ask))

    def data_of(self, path: str) -> Ranges | None:
        """Return where the data of a file of the store lies, as offset and end; None: unknown.

        Everything else in it was a hole at some time after its state was read last.
        """
        if not self.is_heard:
            return None
        self._say(Wish(self._wish.behind, self._wish.ask + 1, (path,)))
        said = self._answer(SURVEY_S_MAX)
        try:
            found = None if said is None else said["data"].get(path)
            return None if found is None else [(int(start), int(end)) for start, end in found]
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def _say(self, wish: Wish | None = None) -> None:
        """Say what is wished, or what was wished last once more."""
        age_s = int(time.monotonic() - self._begun_s)
        with self._lock:  # Else a beat could put an older wish in the place of a newer one.
            wish = replace(wish or self._wish, who=_own_name(), age_s=age_s)
            self._files.deliver(json.dumps(wish.to_json()).encode(), reader_name(self._token))
            self._wish = wish

    def _answer(self, wait_s: float) -> Json | None:
        """Return the answer to what was asked last, or None if none comes."""
        ends_s = time.monotonic() + wait_s
        while time.monotonic() < ends_s:
            try:
                file = self._files.open(answer_name(self._token))
                try:
                    said = read_answer(self._files.read(file, 0, _ANSWER_BYTES_MAX))
                finally:
                    self._files.shut(file)
                if said.get("ask") == self._wish.ask:
                    return said
            except (OSError, ValueError):  # Not there yet.
                pass
            time.sleep(_LOOK_S)
        return None

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(OSError, TransportError):  # It comes back, or the reader ends.
                self._say()
