"""The parts of a store's report that say how a copy is coming along."""

from aimfuse.journal.names import JournalName, parse
from aimfuse.replay.quarantine import safe_name
from aimfuse.replay.state import Json, StoreState
from aimfuse.replay.switch import Switch
from aimfuse.replay.work import Work


def report_sync(state: StoreState, work: Work, switch: Switch) -> Json | None:
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


def is_needed(text: str, applied: int) -> bool:
    """Tell whether a damaged file of this name still has to come again."""
    name = parse(safe_name(text))
    return not isinstance(name, JournalName) or name.number > applied
