"""What a store's report says of who reads from afar holds, whatever they claim."""

import json
from collections import deque
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.journal.names import JournalName
from aimfuse.replay.audience import COUNT_EVERY_NS, Audience, read_audience
from aimfuse.replay.kept import KeptSet
from aimfuse.replay.readers import WHO_CHARACTERS_MAX, Known
from aimfuse.replay.store import ACK
from aimfuse.units import Epoch, FileNumber


def kept(first: int, last: int) -> deque[KeptSet]:
    names = (JournalName(Epoch(1), FileNumber(one)) for one in range(first, last + 1))
    return deque(KeptSet(name, 10, has_undo=True, has_redo=True) for name in names)


def reader(behind: int) -> Known:
    return Known("somebody", 1000, 5, 6, behind)


def test_each_reader_is_said_with_what_is_kept_for_him() -> None:
    behinds = (6, 0, 9, 6, 4, 1 << 60)
    said = Audience(lambda: 7).report(map(reader, behinds), kept(5, 9), 9)
    assert [one["bytes"] for one in said] == [30, 50, 0, 30, 50, 0]
    assert [one["first"] for one in said] == [7, 5, 10, 7, 5, 10]


def test_what_is_kept_is_counted_again_only_after_a_while() -> None:
    now = [100]
    audience = Audience(lambda: now[0])
    for at_ns, held in ((100, 20), (99 + COUNT_EVERY_NS, 20), (100 + COUNT_EVERY_NS, 40)):
        now[0] = at_ns
        last = 9 if at_ns == 100 else 11
        (said,) = audience.report([reader(7)], kept(5, last), last)
        assert said["bytes"] == held


def test_a_reader_that_claims_too_much_hides_no_other(tmp_path: Path) -> None:
    known = [reader((1 << 64) - 1), reader(6)]
    said = Audience(lambda: 7).report(known, kept(5, 9), 9)
    said[1]["who"] = "x\x1b[2J" + "y" * 100_000
    (tmp_path / ACK).write_text(json.dumps({"readers": said}))
    first, second = read_audience(Disk(), tmp_path)
    assert (first["first"], first["bytes"]) == (10, 0)
    assert second["who"] == ("x?[2J" + "y" * 100_000)[:WHO_CHARACTERS_MAX]
