"""How far a mirror is behind, split by stage. Pure arithmetic over what is known."""

from dataclasses import dataclass

from aimfuse.units import SECOND_NS


@dataclass(frozen=True, slots=True)
class Stage:
    """Some files and their bytes."""

    files: int
    bytes: int

    def to_json(self) -> dict[str, int]:
        """Return the form of status files."""
        return {"files": self.files, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Lag:
    """Where the files between the newest sealed and the newest applied one are.

    `seconds` is the age of the oldest record that is not applied, 0 if there is none and
    None while the destination has no mirror that could be behind.
    """

    queued: Stage
    in_flight: Stage
    received: Stage
    seconds: float | None

    @property
    def files(self) -> int:
        """Return the files that are not applied."""
        return self.queued.files + self.in_flight.files + self.received.files

    @property
    def bytes(self) -> int:
        """Return the bytes that are not applied."""
        return self.queued.bytes + self.in_flight.bytes + self.received.bytes


def seconds_behind(now_ns: int, oldest_ns: int) -> float:
    """Return how old a record of *oldest_ns* is; a clock that stepped back makes it 0."""
    return max(0, now_ns - oldest_ns) / SECOND_NS
