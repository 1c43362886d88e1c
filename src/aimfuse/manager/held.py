"""What a store holds back on purpose: what its operator has paused, and a delay."""

from dataclasses import dataclass

from aimfuse.manager.fields import Fields
from aimfuse.units import format_seconds

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

    @property
    def is_closed(self) -> bool:
        """Tell whether not even what arrives is taken."""
        return any(one.kind == "receive" for one in self.paused)

    def describe(self) -> str:
        """Return what the store holds back for, for people; empty if for nothing."""
        parts = [
            f"{one.kind} is paused there{f' ({one.reason})' if one.reason else ''}"
            for one in self.paused
        ]
        if self.delay_s:
            parts.append(f"its delay is {format_seconds(self.delay_s)}")
        return f"held back on purpose: {', '.join(parts)}" if parts else ""

    @property
    def remedy(self) -> str:
        """Return what lets it go on; empty if it goes on anyway."""
        parts = [f"`aimfuse resume STORE {one.kind}`" for one in self.paused]
        if self.delay_s:
            parts.append("`delay = 0` in STORE/store.toml")
        return f"To let it through, on its host: {', '.join(parts)}." if parts else ""


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
