"""Which file goes next to one store: sent once each, again when the store lacks or spoils it.

`next` separates what was started from what was not. What failed on the way waits in `again`;
what the store names as missing or damaged joins it after a grace time that doubles, because an
ack may be older than the delivery that it misses.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from aimfuse.coordinator.acks import Ack
from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.lag import Stage
from aimfuse.journal.names import JournalName, parse

MISSING_GRACE_S = 5.0
DAMAGED_GRACE_S = 2.0
SILENCE_S = 30.0
SILENCE_FILES = 8
GRACE_S_MAX = 600.0


@dataclass(slots=True)
class Flight:
    """One file on its way; `sent` counts the bytes that the destination took."""

    name: str
    bytes: int
    fresh: bool = False
    sent: int = 0


@dataclass(slots=True)
class Grace:
    """When to believe that a delivered file is really lacking, and how often that was so."""

    since: float
    tries: int = 0

    def is_over(self, now: float, grace_s: float) -> bool:
        """Tell whether the wait has lasted long enough."""
        return now - self.since >= min(GRACE_S_MAX, grace_s * 2.0 ** min(self.tries, 16))


@dataclass(slots=True)
class Delivery:
    """The books of one destination, kept over reconnections; bounded, whatever is queued."""

    backlog: Backlog
    confirmed: int = 0
    applied: int = 0
    next: int = 1
    flights: dict[int, Flight] = field(default_factory=dict)
    again: dict[int, bool] = field(default_factory=dict)
    lacking: dict[int, Grace] = field(default_factory=dict)
    silence: Grace = field(default_factory=lambda: Grace(0.0))
    unconfirmed_bytes: int = 0

    def start(self, first: int, now: float) -> None:
        """Begin a session: everything below *first* is with the store."""
        self.next = max(self.next, first)
        self.silence = Grace(now, self.silence.tries)
        self._forget_below(first)

    def rewind(self, confirmed: int, applied: int) -> None:
        """Forget what was sent above *confirmed*: the store does not have it."""
        assert not self.flights
        self.next = confirmed + 1
        self.confirmed = confirmed
        self.applied = applied
        self.unconfirmed_bytes = 0
        self.again.clear()
        self.lacking.clear()

    def take_ack(self, ack: Ack, now: float) -> bool:
        """Note what the store has; tell whether it moved on."""
        moved = ack.confirmed > self.confirmed or ack.applied_number > self.applied
        self.applied = max(self.applied, ack.applied_number)
        self.confirmed = max(self.confirmed, ack.confirmed)
        self.next = max(self.next, self.confirmed + 1)
        self._forget_below(self.confirmed + 1)
        if moved or self.confirmed + 1 >= self.next:
            self.silence = Grace(now)
        self._note_lacking(ack, now)
        self._note_silence(ack, now)
        self.unconfirmed_bytes = self.backlog.bytes_between(self.confirmed, self.next - 1)
        return moved

    def pick(self, in_flight_max: int, inbox_bytes_max: int) -> tuple[int, Flight] | None:
        """Take the next file to send, None if there is none or no room for it now."""
        if len(self.flights) >= in_flight_max:
            return None
        if self.again:
            number = min(self.again)
            return number, self._take_off(number, fresh=self.again.pop(number))
        if self.next > self.backlog.newest:
            return None
        size = self.backlog.bytes_of(self.next)
        if self.unconfirmed_bytes and self.unconfirmed_bytes + size > inbox_bytes_max:
            return None
        number = self.next
        self.next += 1
        self.unconfirmed_bytes += size
        return number, self._take_off(number, fresh=False)

    def land(self, number: int, now: float, *, delivered: bool) -> None:
        """Note how a flight ended."""
        flight = self.flights.pop(number)
        if not delivered:
            self.again[number] = flight.fresh
        elif number in self.lacking:
            self.lacking[number].since = now
        self.silence.since = max(self.silence.since, now)

    def queued(self) -> Stage:
        """Return what was not started."""
        newest = self.backlog.newest
        size = self.backlog.bytes_between(self.next - 1, newest)
        waiting = sum(self.backlog.bytes_of(number) for number in self.again)
        return Stage(max(0, newest - self.next + 1) + len(self.again), size + waiting)

    def in_flight(self) -> Stage:
        """Return what is on its way."""
        return Stage(len(self.flights), sum(one.bytes for one in self.flights.values()))

    def received(self, store_queue_bytes: int) -> Stage:
        """Return what was delivered and is not applied; files long gone count as the store says."""
        files = max(0, self.next - 1 - self.applied)
        size = self.backlog.bytes_between(self.applied, self.next - 1)
        if self.applied + 1 < self.backlog.oldest and files:
            size = max(size, store_queue_bytes)
        for number in (*self.flights, *self.again):
            if self.applied < number < self.next:
                files -= 1
                size -= self.backlog.bytes_of(number)
        return Stage(max(0, files), max(0, size))

    def _take_off(self, number: int, *, fresh: bool) -> Flight:
        name = self.backlog.name(number)
        flight = Flight(name.sealed if name else str(number), self.backlog.bytes_of(number), fresh)
        self.flights[number] = flight
        return flight

    def _forget_below(self, first: int) -> None:
        """Drop what the store has by now, unless it says that it is damaged there."""
        for number in [one for one in self.again if one < first and one not in self.lacking]:
            del self.again[number]

    def _note_lacking(self, ack: Ack, now: float) -> None:
        damaged = set(self._journal_numbers(ack.damaged))
        listed = {one for one in ack.missing if self.confirmed < one < self.next} | damaged
        for number in [one for one in self.lacking if one not in listed]:
            del self.lacking[number]
        for number in sorted(listed):
            if number in self.flights or number in self.again:
                continue
            grace = self.lacking.setdefault(number, Grace(now))
            if grace.is_over(now, DAMAGED_GRACE_S if number in damaged else MISSING_GRACE_S):
                grace.tries += 1
                grace.since = now
                self.again[number] = True

    def _note_silence(self, ack: Ack, now: float) -> None:
        """Send the first unconfirmed files again after a long silence.

        The end of a row that got lost leaves no gap that the store could name.
        """
        first = self.confirmed + 1
        if first >= self.next or self.flights or self.again or self.lacking:
            return
        if ack.takes_nothing:
            self.silence = Grace(now)
            return
        if self.silence.is_over(now, SILENCE_S):
            self.silence = Grace(now, self.silence.tries + 1)
            for number in range(first, min(self.next, first + SILENCE_FILES)):
                self.again[number] = False

    def _journal_numbers(self, names: Iterable[str]) -> Iterable[int]:
        for text in names:
            name = parse(text)
            if isinstance(name, JournalName) and self.backlog.name(name.number) == name:
                yield int(name.number)
