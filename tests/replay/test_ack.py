"""How often ``ack.json`` is written, and that it never seems to go back."""

import json
import time
from pathlib import Path

from aimfuse.disk import Disk
from aimfuse.replay.session import Session
from aimfuse.units import SECOND_NS
from tests.replay.source import Source, deliver
from tests.replay.stores import exhaust, opened


def next_file(source: Source) -> Path:
    source.write(1, 0, b"data")
    return source.roll()


def test_the_ack_is_written_after_every_advance_but_not_ten_times_a_second(
    source: Source, store: Path
) -> None:
    now_ns = time.time_ns()
    session = Session(Disk(), store, clock=lambda: now_ns)
    exhaust(session)
    generation = json.loads((store / "ack.json").read_text())["generation"]
    for _number in range(5):
        deliver(store, next_file(source))
        session._again = True  # noqa: SLF001 - all within one tick of the clock
        session.round()
    said = json.loads((store / "ack.json").read_text())
    assert said["generation"] == generation
    now_ns += SECOND_NS // 10
    session.round()
    said = json.loads((store / "ack.json").read_text())
    assert said["generation"] == generation + 1
    assert said["applied"]["number"] == source.number
    session.close()


def test_the_generation_of_the_ack_rises_over_restarts_even_if_it_was_lost(store: Path) -> None:
    before = json.loads((store / "ack.json").read_text())["generation"]
    (store / "ack.json").write_text("")
    with opened(store) as session:
        exhaust(session)
    assert json.loads((store / "ack.json").read_text())["generation"] > before
