"""Which file goes next: each once, again when lacking, never more than there is room for."""

from pathlib import Path

import pytest

from aimfuse.coordinator.acks import Ack, AckHead
from aimfuse.coordinator.backlog import Backlog
from aimfuse.coordinator.delivery import Delivery
from aimfuse.coordinator.lag import Stage, seconds_behind
from aimfuse.disk import Disk
from aimfuse.journal.names import JournalName
from aimfuse.units import SECOND_NS, Epoch, FileNumber
from tests.coordinator.samples import GROUP

SIZE = 100
PLENTY = 1 << 40


@pytest.fixture
def delivery(tmp_path: Path) -> Delivery:
    """Return the books of a destination with nine files of 100 bytes in the spool."""
    for number in range(1, 10):
        name = JournalName(Epoch(1), FileNumber(number))
        (tmp_path / name.sealed).write_bytes(bytes(SIZE))
    backlog = Backlog(Disk(), tmp_path)
    backlog.load()
    return Delivery(backlog)


def ack(received: int, applied: int = 0, missing: tuple[int, ...] = (), damaged: str = "") -> Ack:
    head = AckHead(1, applied, applied, bytes(32), 0)
    return Ack(
        GROUP, 1, "consistent", head, received, missing, (damaged,) if damaged else ()
    )  # fmt: skip


def send(delivery: Delivery, now: float, count: int = 100) -> list[int]:
    """Deliver what is due, up to *count* files, and return their numbers."""
    sent: list[int] = []
    while len(sent) < count and (picked := delivery.pick(4, PLENTY)):
        delivery.land(picked[0], now, delivered=True)
        sent.append(picked[0])
    return sent


def test_files_go_in_order_and_once(delivery: Delivery) -> None:
    assert send(delivery, 0) == list(range(1, 10))
    assert send(delivery, 0) == []


def test_no_more_are_in_flight_than_allowed(delivery: Delivery) -> None:
    picked = [delivery.pick(3, PLENTY) for _ in range(5)]
    assert [one[0] for one in picked if one] == [1, 2, 3]
    assert delivery.in_flight() == Stage(3, 3 * SIZE)
    assert delivery.queued() == Stage(6, 6 * SIZE)


def test_what_failed_on_the_way_goes_first(delivery: Delivery) -> None:
    delivery.pick(2, PLENTY)
    delivery.pick(2, PLENTY)
    delivery.land(2, 0, delivered=True)
    delivery.land(1, 0, delivered=False)
    assert delivery.queued() == Stage(8, 8 * SIZE)
    assert delivery.received(0) == Stage(1, SIZE)
    assert send(delivery, 0, 2) == [1, 3]


def test_unconfirmed_bytes_are_bounded_but_one_file_always_goes(delivery: Delivery) -> None:
    sent = []
    while picked := delivery.pick(4, 250):
        delivery.land(picked[0], 0, delivered=True)
        sent.append(picked[0])
    assert sent == [1, 2]
    delivery.take_ack(ack(2), 0)
    assert delivery.pick(4, 50) is not None


def test_a_missing_file_goes_again_after_a_grace_time_that_doubles(delivery: Delivery) -> None:
    send(delivery, 0)
    lacking = ack(3, missing=(4,))
    sent_at = []
    for now in range(100):
        delivery.take_ack(lacking, now)
        if send(delivery, now):
            sent_at.append(now)
    assert sent_at[:4] == [5, 15, 35, 75]


def test_a_damaged_file_goes_again_from_nothing(delivery: Delivery) -> None:
    send(delivery, 0)
    name = delivery.backlog.name(4)
    assert name
    delivery.take_ack(ack(3, damaged=name.sealed), 1)
    assert delivery.pick(4, PLENTY) is None
    delivery.take_ack(ack(3, damaged=name.sealed), 3)
    picked = delivery.pick(4, PLENTY)
    assert picked
    assert picked[0] == 4
    assert picked[1].fresh


@pytest.mark.parametrize("name", ["../x", "00000009-000000000004.aim", "sync-1.aim", ""])
def test_names_that_are_not_ours_change_nothing(delivery: Delivery, name: str) -> None:
    send(delivery, 0)
    for now in range(20):
        delivery.take_ack(ack(3, damaged=name), now)
    assert delivery.pick(4, PLENTY) is None


def test_a_lost_end_of_the_row_goes_again_after_a_long_silence(delivery: Delivery) -> None:
    send(delivery, 0)
    delivery.take_ack(ack(7), 1)
    for now in range(2, 31):
        delivery.take_ack(ack(7), now)
        assert send(delivery, now) == []
    delivery.take_ack(ack(7), 31)
    assert send(delivery, 31) == [8, 9]


def test_a_store_that_has_everything_is_left_alone(delivery: Delivery) -> None:
    send(delivery, 0)
    for now in range(1000):
        delivery.take_ack(ack(9, 9), now)
        assert send(delivery, now) == []
    assert delivery.queued() == delivery.in_flight() == delivery.received(0) == Stage(0, 0)


def test_stages_add_up_to_what_is_not_applied(delivery: Delivery) -> None:
    send(delivery, 0, 6)
    delivery.pick(4, PLENTY)
    delivery.take_ack(ack(5, 2), 1)
    assert delivery.received(0) == Stage(4, 4 * SIZE)
    assert delivery.in_flight() == Stage(1, SIZE)
    assert delivery.queued() == Stage(2, 2 * SIZE)


def test_a_clock_that_stepped_back_makes_no_negative_lag() -> None:
    assert seconds_behind(5 * SECOND_NS, 2 * SECOND_NS) == 3.0
    assert seconds_behind(2 * SECOND_NS, 5 * SECOND_NS) == 0.0
