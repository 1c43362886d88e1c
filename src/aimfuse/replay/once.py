"""Replay what has arrived and say how far that went: `aimfuse replay --once`, for scripts."""

from collections.abc import Sequence
from dataclasses import dataclass

from aimfuse.errors import AimfuseError, BusyError, NotCaughtUp, StoreError
from aimfuse.replay.session import Session
from aimfuse.replay.state import Json
from aimfuse.units import counted

UNKNOWN = "unknown"
"""The phase of a store that was not opened."""


@dataclass(frozen=True, slots=True)
class Caught:
    """How one store stands: *waiting* files have come and are not applied, and *problem* says why.

    *held* of them wait on purpose, for a delay or a pause; they are no problem.
    """

    store: str
    phase: str
    position: str
    file: int
    applied: int
    waiting: int
    held: int
    problem: AimfuseError | None

    def to_json(self) -> Json:
        """Return the form for programs."""
        return {
            "store": self.store,
            "phase": self.phase,
            "position": self.position,
            "file": self.file,
            "applied_files": self.applied,
            "waiting_files": self.waiting,
            "held_files": self.held,
            "caught_up": self.problem is None,
            "problem": str(self.problem) if self.problem else None,
            "exit_code": self.problem.exit_code if self.problem else 0,
        }

    def describe(self) -> str:
        """Return it as a line for people."""
        if self.phase == UNKNOWN:
            return f"{self.store}: not looked into"
        held = f", {counted(self.held, 'file')} held back on purpose" if self.held else ""
        where = f"at {self.position} in file {self.file}" if self.file else "nothing applied yet"
        return f"{self.store}: {self.phase}, {where}{held}"


def caught(session: Session) -> Caught:
    """Return how a store stands after a run; *session* is at rest."""
    path, said = session.store.path, session.report()
    if said is None:
        return unopened(str(path), AimfuseError(session.error or session.halted or "not opened"))
    head = said["applied"] or {"epoch": 0, "number": 0, "seq": 0}
    held = (said["held"] or {}).get("files", 0)
    waiting = said["queue"]["files"]
    if "receive" in (said["paused"] or {}):
        held = waiting
    problem: AimfuseError | None = None
    if session.halted:
        problem = StoreError(f"{path} has halted: {session.halted}")
    elif session.error:
        problem = AimfuseError(f"{path}: {session.error}")
    elif said["damaged"]:
        problem = NotCaughtUp(f"{path}: damaged, has to come again: {', '.join(said['damaged'])}")
    elif waiting > held:
        what = counted(waiting - held, "file")
        problem = NotCaughtUp(f"{path}: {what} came and cannot be applied yet: {_why(said)}")
    return Caught(
        str(path), said["phase"], f"{head['epoch']}:{head['seq']}", head["number"],
        session.applied_files, waiting, held, problem,
    )  # fmt: skip


def unopened(store: str, problem: AimfuseError) -> Caught:
    """Return how a store stands that could not be looked into."""
    return Caught(store, UNKNOWN, "0:0", 0, 0, 0, 0, problem)


def gravest(all_of: Sequence[Caught]) -> AimfuseError | None:
    """Return what is worst, with what is wrong elsewhere in its message; None if all is well."""
    problems = [one.problem for one in all_of if one.problem is not None]
    if not problems:
        return None
    worst, said = min(problems, key=_rank), "; ".join(map(str, problems))
    return type(worst)(said, hint=worst.hint)


def _rank(problem: AimfuseError) -> int:
    """Return how much it wants to be looked at, the least first."""
    ranked = (StoreError, AimfuseError, BusyError, NotCaughtUp)
    return ranked.index(type(problem)) if type(problem) in ranked else 0


def _why(said: Json) -> str:
    if said["needs_sync"]:
        return str(said["needs_sync"])
    if said["missing"]:
        return f"file {said['missing'][0]} has not come"
    if said["phase"] in {"empty", "syncing"}:
        return "the first copy is not complete"
    return "what comes before has not come, or is still being written"
