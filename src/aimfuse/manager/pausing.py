"""Pause and resume a store: write what is wanted, wait until its replayer has obeyed."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimfuse.config.pauses import REASON_CHARACTERS_MAX, Pause, load_pauses, save_pauses
from aimfuse.disk import Disk
from aimfuse.errors import BusyError, UsageError
from aimfuse.journal.locks import STORE_LOCK
from aimfuse.manager.far import INBOX
from aimfuse.manager.fields import Fields
from aimfuse.manager.files import lock_holder, read_json, read_slots

POLL_S = 0.05
_UNFINISHED = frozenset({"catching_up", "switching"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is paused in a store now, and whether a replayer is there to know."""

    paused: dict[str, dict[str, Any]]
    replayer: bool


def pause(store: Path, kinds: Iterable[str], reason: str, timeout_s: float) -> Outcome:
    """Pause *kinds*, durably; what is paused already keeps its time, and its reason without one.

    Raises:
        UsageError: *store* is none, or was promoted.
        BusyError: it is noted, and the replayer has not obeyed in time.
    """
    disk, reason = Disk(), reason.strip()[:REASON_CHARACTERS_MAX]
    _check_store(store)
    if Fields(read_slots(store / "state")[0]).text("phase") == "promoted":
        hint = "To send nothing to one of its mirrors: aimfuse destination pause STORE NAME."
        raise UsageError(f"{store} was promoted: it is a source, and applies nothing", hint=hint)
    pauses, now_ns = load_pauses(store, disk), time.time_ns()
    for kind in kinds:
        before = pauses.get(kind)
        pauses[kind] = Pause(
            before.since_ns if before else now_ns, reason or (before.reason if before else "")
        )
    save_pauses(store, pauses, disk)
    return _obeyed(store, timeout_s)


def resume(store: Path, kinds: Iterable[str], timeout_s: float) -> Outcome:
    """Let *kinds* go on; errors as for `pause`."""
    disk, over = Disk(), set(kinds)
    _check_store(store)
    pauses = load_pauses(store, disk)
    save_pauses(store, {kind: pauses[kind] for kind in pauses if kind not in over}, disk)
    return _obeyed(store, timeout_s)


def _check_store(store: Path) -> None:
    if not (store / INBOX).is_dir():
        hint = (
            "Name the directory of one store, the one with inbox/ in it. To stop sending to a "
            "destination: aimfuse destination pause IMAGE NAME."
        )
        raise UsageError(f"{store} is no store", hint=hint)


def _obeyed(store: Path, timeout_s: float) -> Outcome:
    """Wait until the replayer says that it does as the file says."""
    wanted = {kind: one.to_json() for kind, one in load_pauses(store, Disk()).items()}
    end_s = time.monotonic() + timeout_s
    while lock_holder(store / STORE_LOCK) is not None:
        said = read_json(store / "ack.json") or {}
        phase = Fields(said).text("phase")
        is_told = (said.get("paused") or {}) == wanted
        if phase == "halted" or (is_told and not ("apply" in wanted and phase in _UNFINISHED)):
            return Outcome(wanted, replayer=True)
        if time.monotonic() >= end_s:
            raise BusyError(
                f"{store}: noted, but its replayer has not obeyed yet (it is {phase})",
                hint="It obeys when the mirror is consistent, and once its disk answers.",
            )
        time.sleep(POLL_S)
    return Outcome(wanted, replayer=False)
