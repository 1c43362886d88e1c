"""What survives a power cut: the units that may be lost, and ways to choose among them.

A unit is one thing that was not made durable: a 4 KiB page (or, for torn pages, a 512-byte
sector), a file's size, or a change of names. A page that was written three times since its
last sync has four states that the disk may hold, and any of them may be there, whatever the
other units have: the kernel writes back when and in the order that it likes.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SINGLES_MAX = 16


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing with `states` possible states: 0 is the durable one, the last the newest."""

    kind: str
    where: str
    states: int


Choose = Callable[[Unit], int]


def keep_none(_unit: Unit) -> int:
    """Lose everything that was not made durable."""
    return 0


def keep_all(unit: Unit) -> int:
    """Lose nothing: the kernel had just written everything back."""
    return unit.states - 1


def keep_kinds(*kinds: str) -> Choose:
    """Keep the units of these kinds (page, sector, size, name), lose the others."""
    return lambda unit: unit.states - 1 if unit.kind in kinds else 0


def keep_random(seed: int) -> Choose:
    """Put each unit into any of its states; the same seed gives the same choice."""
    rng = random.Random(seed)
    return lambda unit: rng.randrange(unit.states)


def keep_only(index: int) -> Choose:
    """Keep the newest state of unit *index* (from 0) and lose the others."""
    return _by_index(lambda at, unit: unit.states - 1 if at == index else 0)


def lose_only(index: int) -> Choose:
    """Lose unit *index* (from 0) and keep the newest state of the others."""
    return _by_index(lambda at, unit: 0 if at == index else unit.states - 1)


def keep_digits(combination: int) -> Choose:
    """Read *combination* as a number whose digits are the states, the first unit's lowest."""
    rest = combination

    def choose(unit: Unit) -> int:
        nonlocal rest
        rest, state = divmod(rest, unit.states)
        return state

    return choose


def _by_index(state: Callable[[int, Unit], int]) -> Choose:
    at = -1

    def choose(unit: Unit) -> int:
        nonlocal at
        at += 1
        return state(at, unit)

    return choose


def mixtures(
    units: list[Unit],
    *,
    every_up_to: int = 64,
    random_count: int = 4,
    seed: int = 0,
) -> Iterator[tuple[str, Choose]]:
    """Yield named choices: every one while there are few, else the telling ones.

    Above *every_up_to* combinations: nothing, everything, each unit alone kept, each unit
    alone lost (of more than `SINGLES_MAX` units some, others with another *seed*), each kind
    alone kept, and *random_count* random ones.
    """
    total = 1
    for unit in units:
        total *= unit.states
    if total <= every_up_to:
        for combination in range(total):
            yield f"combination {combination}", keep_digits(combination)
        return
    yield "nothing kept", keep_none
    yield "everything kept", keep_all
    step = -(-len(units) // SINGLES_MAX)
    for index in range(seed % step, len(units), step):
        unit = units[index]
        yield f"only {unit} kept", keep_only(index)
        yield f"only {unit} lost", lose_only(index)
    for kind in sorted({unit.kind for unit in units}):
        yield f"only {kind} kept", keep_kinds(kind)
    for extra in range(random_count):
        yield f"random {seed + extra}", keep_random(seed + extra)
