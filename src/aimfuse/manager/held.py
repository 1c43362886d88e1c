"""What a store holds back on purpose: what its operator has paused, and a delay."""

from dataclasses import dataclass

from aimfuse.manager.fields import Fields

KINDS = ("receive", "apply")


@dataclass(frozen=True, slots=True)
class Paused:
    """What is paused, since when in Unix ns, and why."""

    kind: str
    since_ns: int
    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """What is held back, and why; *next_ns* is when the next file is old enough, if one waits."""

    paused: tuple[Paused, ...] = ()
    delay_s: float = 0.0
    files: int = 0
    next_ns: int | None = None

    def __bool__(self) -> bool:
        """Tell whether anything is held back, or would be."""
        return bool(self.paused or self.delay_s)


def read_held(ack: Fields) -> Held:
    """Return what a store's report says of it."""
    paused, held = ack.part("paused"), ack.part("held")
    found = [(kind, paused.part(kind)) for kind in KINDS]
    return Held(
        tuple(
            Paused(kind, one.count("since_ns"), one.text("reason")) for kind, one in found if one
        ),
        ack.seconds("delay_s") or 0.0,
        held.count("files"),
        held.maybe("next_ns"),
    )
