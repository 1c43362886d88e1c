"""What a store's ack says of it: the position, the queue, a copy under way, what is wrong."""

from collections.abc import Callable

from aimfuse.replay.ack import LIST_MAX
from aimfuse.replay.applier import Applier
from aimfuse.replay.doubt import DIFFERS, REJOINED
from aimfuse.replay.findings import Findings
from aimfuse.replay.intake import Intake
from aimfuse.replay.on_bookmark import OnBookmark
from aimfuse.replay.state import Json, Phase, StoreState
from aimfuse.replay.store import Store
from aimfuse.replay.switch import Switch
from aimfuse.replay.work import Work


class Report:
    """The report of one open store."""

    def __init__(
        self,
        store: Store,
        applier: Applier,
        intake: Intake,
        findings: Findings,
        on_bookmark: OnBookmark,
        clock: Callable[[], int],
    ) -> None:
        """Name whom to ask. *clock* gives Unix ns."""
        self._store = store
        self._applier = applier
        self._work = applier.work
        self._intake = intake
        self._findings = findings
        self._on_bookmark = on_bookmark
        self._clock = clock

    def key(self, error: str) -> object:
        """Return something that differs whenever the ack would say something else."""
        findings = self._findings
        return (self._store.state, self._work.files, self._intake.files,
                findings.quarantine.count, self._shown_error(error), findings.damaged,
                findings.stale_count, str(self._applier.switch.progress()),
                self._applier.brake.key(), self._on_bookmark.key(),
                self._applier.history.readers_key())  # fmt: skip

    def build(self, error: str) -> Json:
        """Return what the ack says; *error* is why the last round failed, "" if it did not."""
        state, head = self._store.state, self._store.state.head
        findings, work = self._findings, self._work
        after = head.number if head else 0
        phase = Phase.HALTED if findings.halted else state.phase
        behind = max(after, state.staging.progress.origin.number) if state.staging else after
        return {
            "group": state.group.hex() if state.group else None,
            "time_ns": self._clock(),
            "phase": phase.value,
            "applied": head.to_json() if head else None,
            "received": {"number": work.received(after)},
            "missing": work.missing(behind, LIST_MAX),
            "damaged": findings.still_needed(after),
            "promoted": _report_promoted(state),
            "sync": _report_sync(state, work, self._applier.switch),
            "needs_sync": self._applier.needs_sync(),
            "differs": self._differs(),
            **self._applier.brake.report(),
            "history": self._applier.history.summary(),
            "readers": self._applier.history.readers(),
            "on_bookmark": self._on_bookmark.report(),
            "queue": {
                "files": work.files + max(0, self._intake.files),
                "bytes": work.size_bytes + self._intake.size_bytes,
            },
            "oldest_waiting_ns": work.oldest_ns(),
            "mirror_time_ns": head.time_ns if head else 0,
            "progress_ns": self._applier.progress_ns,
            "free_bytes": self._store.disk.free_bytes(self._store.home),
            "error": self._shown_error(error),
            "quarantined": findings.quarantine.count,
            "stale": findings.stale_count,
            "verified": _report_verified(state),
        }

    def _differs(self) -> str | None:
        store = self._store
        is_rejoined = store.state.doubt == REJOINED
        return DIFFERS if is_rejoined and store.disk.exists(store.home / DIFFERS) else None

    def _shown_error(self, error: str) -> str | None:
        findings = self._findings
        problem = findings.notice() or self._applier.history.problem
        return findings.halted or error or problem or self._applier.needs_sync()


def _report_promoted(state: StoreState) -> Json | None:
    """Return at which point the store has become a source, None while it is none."""
    if state.phase is not Phase.PROMOTED or state.promoted is None:
        return None
    return state.promoted.to_json()


def _report_verified(state: StoreState) -> Json:
    """Return what the ack says of how the mirror compares; volumes bear their names there."""
    names = {int(entry.volume): entry.name for entry in state.volumes}
    verified = state.verified
    found = [{**one.to_json(), "name": names.get(one.volume)} for one in verified.mismatches]
    return {**verified.to_json(), "mismatches": found}


def _report_sync(state: StoreState, work: Work, switch: Switch) -> Json | None:
    """Return what the ack says of the sync under way, or of the last one."""
    sync, staging = state.under_way, state.staging
    if sync is None:
        return None
    report: Json = {
        "id": f"{sync.sync_id:016x}",
        "next_index": sync.next_index,
        "next": list(sync.next_at),
        "round": sync.round,
        "done": sync.done,
        "staged": staging is not None,
    }
    if staging is not None:
        report["received"] = work.received(sync.origin.number)
        report["bytes"] = staging.size_bytes
        report["reason"] = staging.reason
        report["switch"] = switch.progress()
    return report
