"""The judge of the crash tests is itself judged: it finds the prefix, and nothing else passes."""

import pytest

from tests.e2e.crash.writes import BLOCK, History, Write

WRITES = [
    Write(1, 0, 2, zero=False),
    Write(2, 2, 1, zero=False),
    Write(3, 2, 2, zero=True),
    Write(4, 1, 1, zero=False),
]


def image_after(writes: list[Write]) -> bytes:
    image = bytearray(4 * BLOCK)
    for write in writes:
        at = write.first * BLOCK
        image[at : at + write.count * BLOCK] = write.payload()
    return bytes(image)


def history() -> History:
    made = History(4, seed=0)
    made.writes = list(WRITES)
    return made


@pytest.mark.parametrize(("count", "found"), [(0, 0), (1, 3), (2, 2), (3, 3), (4, 4)])
def test_the_longest_prefix_is_found_also_when_zeros_hide_a_write(count: int, found: int) -> None:
    assert history().prefix(image_after(WRITES[:count])) == found


def test_the_shortest_prefix_is_where_the_state_was_for_the_first_time() -> None:
    back = Write(5, 1, 1, zero=True)
    again = [*WRITES[:1], Write(2, 3, 1, zero=False), Write(3, 3, 1, zero=True)]
    made = history()
    made.writes = again
    assert (made.least_prefix(image_after(again[:1])), made.prefix(image_after(again))) == (1, 3)
    made.writes = [*again, back]
    assert made.least_prefix(image_after(made.writes)) == 4


def test_a_hole_in_the_order_a_torn_and_a_misplaced_block_are_no_prefix() -> None:
    whole = image_after(WRITES)
    for wrong in (
        image_after([WRITES[1], WRITES[3]]),
        whole[: BLOCK // 2] + bytes(BLOCK // 2) + whole[BLOCK:],
        whole[BLOCK : 2 * BLOCK] + whole[:BLOCK] + whole[2 * BLOCK :],
    ):
        with pytest.raises(AssertionError, match="no prefix"):
            history().prefix(wrong)


def test_losing_what_was_promised_is_noticed() -> None:
    made = history()
    made.acked = 4
    with pytest.raises(AssertionError, match="4 were promised"):
        made.recovered(image_after(WRITES[:2]))
