"""A restore that reads of undo files only what it needs gives what one gives that reads all."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.replay.access import Access
from aimfuse.replay.restore import Request, restore_from
from aimfuse.units import KIB
from tests.dice import LONG, draw_seed
from tests.replay.recorder import Recorder, at, silent
from tests.replay.source import deliver
from tests.replay.stores import begin, catch_up

RECORDS = 12
POINTS = 40 if LONG else 6


def lived(scratch: Path, dice: random.Random) -> tuple[Recorder, Path]:
    """Return a source and its store, with files that change volumes that come, go and shrink."""
    source, store = Recorder(scratch / "spool"), scratch / "store"
    for index in range(3):
        source.write(source.create(f"first-{index}"), 0, dice.randbytes(300 * KIB))
    source.roll()
    begin(store, source)
    source.states.clear()
    for index in range(4):
        for _ in range(RECORDS):
            change(source, dice, f"{index}-{dice.getrandbits(32):x}")
        deliver(store, source.roll())
    catch_up(store)
    return source, store


def change(source: Recorder, dice: random.Random, name: str) -> None:
    there = sorted(source.volumes)
    what, volume = dice.choice((*["write"] * 8, "zero", "zero", "cut", "new", "gone")), 0
    if there:
        volume = dice.choice(there)
    if what == "new" or not there:
        source.create(name, dice.randrange(200 * KIB))
    elif what == "gone" and len(there) > 2:
        source.unlink(volume)
    elif what == "cut":
        source.truncate(volume, dice.randrange(400 * KIB))
    elif what == "zero":
        source.zero(volume, dice.randrange(300 * KIB), dice.randrange(1, 60 * KIB))
    else:
        data = dice.randbytes(dice.randrange(1, 90 * KIB))
        source.write(volume, dice.randrange(300 * KIB), data)


@pytest.mark.parametrize("_round", range(10 if LONG else 1))
def test_any_volume_at_any_point(tmp_path: Path, _round: int) -> None:
    dice = random.Random(draw_seed())
    source, store = lived(tmp_path, dice)
    access = replace(Access.here(store), is_far=True)
    known = [one for one, state in source.states.items() if state]
    for index, where in enumerate(dice.sample(known, POINTS)):
        for name, content in source.states[where].items():
            request = Request(tmp_path / f"{index}-{name}", at(where), name)
            restore_from(access, request, silent)
            assert request.output.read_bytes() == content, (where, name)
