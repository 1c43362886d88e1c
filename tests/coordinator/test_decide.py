"""What to do with a store: one table of ack, cursor and history."""

from dataclasses import replace

import pytest

from aimfuse.coordinator.acks import Ack, AckHead, AckSync
from aimfuse.coordinator.cursor import Cursor, SyncState
from aimfuse.coordinator.decide import (
    AwaitStore,
    BeginSync,
    ContinueSync,
    Halt,
    History,
    Ship,
    decide,
)
from aimfuse.journal.header import NO_DIGEST
from aimfuse.journal.journal import Head
from aimfuse.units import Epoch, FileNumber, Seq
from tests.coordinator.samples import GROUP


def digest(number: int) -> bytes:
    return bytes([number]) * 32 if number else NO_DIGEST


def head(number: int) -> Head:
    return Head(Epoch(1), FileNumber(number), Seq(number), digest(number))


def history(oldest: int = 3, newest: int = 9) -> History:
    def read(number: int) -> tuple[bytes, bytes] | None:
        here = oldest <= number <= newest
        return (digest(number), digest(number - 1)) if here else None

    return History(GROUP, newest, oldest, (head(newest),), read)


def ack(number: int, received: int = 0, **more: object) -> Ack:
    applied = AckHead(1, number, number, digest(number), 0)
    base = Ack(GROUP, 1, "consistent", applied, received)
    return replace(base, **more)  # type: ignore[arg-type]


EMPTY = Ack(None, 1, "empty")
NEW = Cursor("u")
SYNC = SyncState(7, head(4), (), 2)
SYNCING = Cursor("u", GROUP, 4, 1, 4, digest(4), 4, SYNC)
SHIPPING = Cursor("u", GROUP, 5, 1, 5, digest(5), 5)
MID_SYNC = replace(SYNCING, sync=replace(SYNC, next_index=3, next=(1, 300)))


def sync_ack(sync_id: int, index: int) -> Ack:
    return ack(4, phase="syncing", sync=AckSync(sync_id, index, (1, index * 100), done=False))


@pytest.mark.parametrize(
    ("said", "cursor", "action"),
    [
        pytest.param(EMPTY, SYNCING, ContinueSync(0, (0, 0)), id="pinned, nothing sent"),
        pytest.param(sync_ack(7, 5), MID_SYNC, ContinueSync(5, (1, 500)), id="resumed"),
        pytest.param(sync_ack(7, 2), MID_SYNC, ContinueSync(2, (1, 200)), id="resumed earlier"),
        pytest.param(sync_ack(8, 2), SYNCING, ContinueSync(0, (0, 0)), id="over another sync"),
        pytest.param(ack(5), SHIPPING, Ship(6), id="on from the applied"),
        pytest.param(ack(5, 7), SHIPPING, Ship(8), id="on from the received"),
        pytest.param(ack(9), SHIPPING, Ship(10), id="nothing to ship"),
        pytest.param(ack(2), SHIPPING, Ship(3), id="behind, but all is here"),
        pytest.param(ack(4, phase="catching_up"), SYNCING, Ship(5), id="the sync is done"),
        pytest.param(ack(5), NEW, Ship(6), id="the cursor was lost, the store knows us"),
    ],
)
def test_the_work_goes_on_where_the_store_is(
    said: Ack, cursor: Cursor, action: ContinueSync | Ship
) -> None:
    assert decide(said, cursor, history()) == action


@pytest.mark.parametrize(
    ("said", "cursor"),
    [
        pytest.param(EMPTY, NEW, id="new"),
        pytest.param(EMPTY, SHIPPING, id="emptied later"),
        pytest.param(EMPTY, MID_SYNC, id="emptied during the copy"),
        pytest.param(sync_ack(8, 2), MID_SYNC, id="another copy half done"),
        pytest.param(sync_ack(8, 2), NEW, id="a copy that nobody remembers"),
        pytest.param(sync_ack(8, 2), SHIPPING, id="a store gone back into its copy"),
    ],
)
def test_a_copy_begins_where_no_mirror_can_be_hurt(said: Ack, cursor: Cursor) -> None:
    assert isinstance(decide(said, cursor, history()), BeginSync)


def test_a_store_that_says_nothing_is_waited_for() -> None:
    assert isinstance(decide(None, SHIPPING, history()), AwaitStore)
    assert isinstance(decide(None, NEW, history()), AwaitStore)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        pytest.param(ack(5, group=b"x" * 16), "another group", id="another group"),
        pytest.param(ack(5, phase="halted", error="gap"), "gap", id="halted"),
        pytest.param(ack(10), "back in time", id="ahead"),
        pytest.param(ack(5, 10), "back in time", id="received ahead"),
        pytest.param(
            ack(5, applied=AckHead(1, 5, 5, digest(6), 0)), "not the one", id="another file"
        ),
        pytest.param(
            ack(2, applied=AckHead(1, 2, 2, digest(6), 0)), "not the one", id="by its successor"
        ),
        pytest.param(ack(1), "lost files 2 to 5", id="lost what it had confirmed"),
    ],
)
def test_a_store_that_contradicts_us_halts(said: Ack, reason: str) -> None:
    with pytest.raises(Halt, match=reason):
        decide(said, SHIPPING, history())


def test_a_file_that_has_left_the_spool_is_named() -> None:
    with pytest.raises(Halt, match="file 2 is needed"):
        decide(ack(1), NEW, history())
