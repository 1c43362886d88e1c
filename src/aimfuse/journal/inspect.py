"""Say what is in an AIM file, also when it is damaged, unfinished or hostile.

The result is a plain dictionary that can be printed as JSON. Nothing is believed: what does
not check out ends up in the verdict, never in an exception.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crc32c import crc32c

from aimfuse.errors import JournalError
from aimfuse.journal.header import (
    HEADER_BYTES,
    BadHeader,
    Identity,
    Seal,
    decode_identity,
    decode_seal,
    identity_seed,
)
from aimfuse.journal.reader import FILE_BYTES_MAX, check_sealed, scan_open
from aimfuse.journal.records import (
    IOCB_BYTES,
    BadIocb,
    Iocb,
    RecordType,
    decode_iocb,
    decode_table,
)
from aimfuse.units import Seq

TEXT_BYTES_MAX = 4096
"""No more of a label, name or reason is shown."""

LEVELS_MAX = 32
"""JSON that is nested deeper is shown as text, or not believed."""

Description = dict[str, Any]

_TEXTS = {RecordType.CREATE: "name", RecordType.RENAME: "name", RecordType.BOOKMARK: "label"}


def describe(path: Path, data: bytes, limit: int | None = None) -> Description:
    """Return what the AIM file *data* holds; *path* is for messages only.

    Args:
        path: the name to report.
        data: the whole file, at most `FILE_BYTES_MAX` bytes; what is beyond is damage.
        limit: list no more than this many IOCBs; None lists all. The counts cover all.

    Returns:
        ``verdict`` is ``sound``, ``unsealed`` or ``damaged``, and ``summary`` says it in one
        line. ``damage`` names byte and reason. ``identity`` and ``seal`` are None where they
        are missing or do not check out. ``iocbs`` lists records and marks up to the first
        unsound byte, ``end_at``.
    """
    view = memoryview(data)
    identity, identity_problem = _identity(view)
    seal, seal_problem = _seal(view)
    iocbs, end_at, problem = _walk(view, identity)
    found: Description = {
        "file": str(path),
        "bytes": len(data),
        "verdict": "damaged",
        "summary": "",
        "damage": None,
        "identity": _identity_fields(identity),
        "seal": _seal_fields(seal),
        "records": sum(not iocb.is_mark for iocb in iocbs),
        "marks": sum(iocb.is_mark for iocb in iocbs),
        "types": dict(Counter(iocb.type.name for iocb in iocbs)),
        "payload_bytes": sum(iocb.payload_bytes for iocb in iocbs if not iocb.is_mark),
        "committed_seq": None,
        "end_at": end_at,
        "iocbs": [_iocb_fields(view, i, iocb) for i, iocb in enumerate(iocbs[:limit])],
    }
    if identity is None:
        return _damaged(found, 0, identity_problem)
    if seal_problem:
        return _damaged(found, 0, seal_problem)
    if len(data) > FILE_BYTES_MAX:
        return _damaged(found, FILE_BYTES_MAX, "larger than any AIM file may be")
    if seal is None:
        return _judge_open(found, path, data, iocbs, problem)
    return _judge_sealed(found, path, data, problem if end_at < seal.iocb_at else "")


def _judge_sealed(found: Description, path: Path, data: bytes, problem: str) -> Description:
    try:
        check_sealed(path, data)
    except JournalError as exc:
        # The digest covers everything, so it fails first; the walk knows the place.
        if problem:
            return _damaged(found, found["end_at"], problem)
        return _damaged(found, exc.offset_bytes, exc.reason)
    return found | {"verdict": "sound", "summary": f"sound, {_records(found['records'])}"}


def _judge_open(
    found: Description, path: Path, data: bytes, iocbs: list[Iocb], problem: str
) -> Description:
    before = iocbs[0].seq - (not iocbs[0].is_mark) if iocbs else 0
    scan = scan_open(path, data, Seq(before))
    found |= {"committed_seq": scan.committed_seq}
    # Without a sound frame it is unknown which records this file should have held.
    if iocbs and scan.committed_seq > scan.last_seq:
        reason = f"{problem}, yet record {scan.committed_seq} had been declared durable"
        return _damaged(found, scan.end_at, reason)
    rest = len(data.rstrip(b"\0")) - scan.end_at
    tail = f", {rest} bytes of tail behind byte {scan.end_at} do not count" if rest > 0 else ""
    summary = f"unsealed, {_records(found['records'])}{tail}"
    return found | {"verdict": "unsealed", "summary": summary}


def is_shallow(value: Any, levels: int = LEVELS_MAX) -> bool:  # noqa: ANN401 - any JSON
    """Tell whether a JSON value is nested so little that every program can print it."""
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(is_shallow(one, levels - 1) for one in inner)


def _damaged(found: Description, at: int, reason: str) -> Description:
    return found | {
        "verdict": "damaged",
        "summary": f"damaged at byte {at}: {reason}",
        "damage": {"byte": at, "reason": reason},
    }


def _records(count: int) -> str:
    return f"{count} record" if count == 1 else f"{count} records"


def _identity(view: memoryview) -> tuple[Identity | None, str]:
    try:
        return decode_identity(view), ""
    except BadHeader as exc:
        return None, str(exc)


def _seal(view: memoryview) -> tuple[Seal | None, str]:
    if len(view) < HEADER_BYTES:
        return None, "header cut short"
    try:
        return decode_seal(view), ""
    except BadHeader as exc:
        return None, str(exc)


def _walk(view: memoryview, identity: Identity | None) -> tuple[list[Iocb], int, str]:
    """Return the sound frames in a row, the first byte that is not one, and why it is not."""
    iocbs: list[Iocb] = []
    at = HEADER_BYTES
    if identity is None:
        return iocbs, 0, ""
    seed = identity_seed(view)
    end = min(len(view), FILE_BYTES_MAX)
    last_seq: int | None = None
    while at < end:
        try:
            iocb = decode_iocb(seed, view[at : at + IOCB_BYTES])
        except BadIocb as exc:
            return iocbs, at, f"IOCB: {exc}"
        problem = _frame_problem(view, at, iocb, last_seq)
        if problem:
            return iocbs, at, problem
        iocbs.append(iocb)
        last_seq = iocb.seq
        at = iocb.end_at
    return iocbs, at, "cut short"


def _frame_problem(view: memoryview, at: int, iocb: Iocb, last_seq: int | None) -> str:
    if iocb.data_at != at + IOCB_BYTES:
        return "IOCB out of its place"
    if iocb.end_at > len(view):
        return "payload cut short"
    if crc32c(_payload(view, iocb)) != iocb.payload_crc:
        return "payload checksum mismatch"
    if last_seq is not None and iocb.seq != last_seq + (not iocb.is_mark):
        return f"record {iocb.seq} behind record {last_seq}"
    return ""


def _payload(view: memoryview, iocb: Iocb) -> memoryview:
    return view[iocb.data_at : iocb.data_at + iocb.payload_bytes]


def _identity_fields(identity: Identity | None) -> Description | None:
    if identity is None:
        return None
    parent = identity.parent
    fields: Description = {
        "kind": identity.kind.name,
        "group": identity.group.hex(),
        "epoch": identity.epoch,
        "number": identity.number,
        "created_ns": identity.created_ns,
        "parent": {"epoch": parent.epoch, "seq": parent.seq, "digest": parent.digest.hex()},
        "sync_id": f"{identity.sync_id:016x}" if identity.kind else None,
    }
    return fields


def _seal_fields(seal: Seal | None) -> Description | None:
    if seal is None:
        return None
    names = (
        "total_bytes", "iocb_at", "data_bytes", "iocb_count", "record_count", "first_seq",
        "last_seq", "first_time_ns", "last_time_ns", "payload_bytes", "next_epoch", "next_number",
    )  # fmt: skip
    sums = {"prev_digest": seal.prev_digest.hex(), "digest": seal.digest.hex()}
    return {name: getattr(seal, name) for name in names} | sums


def _iocb_fields(view: memoryview, index: int, iocb: Iocb) -> Description:
    fields: Description = {
        "index": index,
        "type": iocb.type.name,
        "mark": iocb.is_mark,
        "seq": iocb.seq,
        "volume": iocb.volume,
        "offset": iocb.offset,
        "length": iocb.length,
        "payload_bytes": iocb.payload_bytes,
        "data_at": iocb.data_at,
        "time_ns": iocb.time_ns,
    }
    meaning = _meaning(iocb, bytes(_payload(view, iocb)))
    return fields | {"says": meaning} if meaning is not None else fields


def _meaning(iocb: Iocb, payload: bytes) -> Any:  # noqa: ANN401 - whatever the JSON holds
    if name := _TEXTS.get(iocb.type):
        return {name: _text(payload)}
    if iocb.type is RecordType.COMMIT:
        return {"durable_seq": iocb.offset}
    if iocb.type is RecordType.TABLE:
        return _table(payload)
    if iocb.type in {RecordType.GAP, RecordType.SYNC, RecordType.UNDO, RecordType.VERIFY}:
        return _json(payload)
    return None


def _json(payload: bytes) -> Any:  # noqa: ANN401 - as above
    try:
        meaning = json.loads(payload[: 16 * TEXT_BYTES_MAX])
    except (ValueError, RecursionError):
        meaning = None
    if meaning is None or not is_shallow(meaning):
        return {"text": _text(payload)} if payload else None
    return meaning


def _table(payload: bytes) -> Description:
    try:
        entries: Iterable[Any] = decode_table(payload)
    except ValueError as exc:
        return {"problem": str(exc)}
    return {
        "volumes": [
            {"id": entry.volume, "name": entry.name, "size": entry.size_bytes} for entry in entries
        ]
    }


def _text(payload: bytes) -> str:
    return payload[:TEXT_BYTES_MAX].decode(errors="replace")
