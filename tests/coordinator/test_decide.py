"""What to do with a store: one table of ack, cursor and history."""

from dataclasses import replace

import pytest

from aimfuse.coordinator.acks import Ack, AckHead, AckSync
from aimfuse.coordinator.cursor import Cursor, SyncState
from aimfuse.coordinator.decide import (
    AwaitStore,
    BeginResync,
    BeginSync,
    ContinueSync,
    Halt,
    History,
    Ship,
    decide,
)
from aimfuse.journal.fold import Fold
from aimfuse.journal.header import NO_DIGEST
from aimfuse.journal.journal import Head
from aimfuse.units import Epoch, FileNumber, Seq
from tests.coordinator.samples import GROUP


def digest(number: int) -> bytes:
    return bytes([number]) * 32 if number else NO_DIGEST


def head(number: int) -> Head:
    return Head(Epoch(1), FileNumber(number), Seq(number), digest(number))


def history(oldest: int = 3) -> History:
    newest = 9

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
    ],
)
def test_a_store_that_contradicts_us_halts(said: Ack, reason: str) -> None:
    with pytest.raises(Halt, match=reason):
        decide(said, SHIPPING, history())


RESYNC = replace(SYNC, head=head(6), staged=True, why="full")
RESYNCING = Cursor("u", GROUP, 6, 1, 6, digest(6), 3, RESYNC)
BEGUN = replace(RESYNCING, sync=replace(RESYNC, next_index=2))


def folded(since: int, through: int) -> Fold:
    return Fold(FileNumber(since), FileNumber(since), FileNumber(through), head(through))


def staged(index: int, round_number: int = 0, received: int = 0, *, done: bool = False) -> Ack:
    theirs = AckSync(7, index, (1, index * 100), done, round_number, staged=True, received=received)
    return ack(2, sync=theirs)


@pytest.mark.parametrize(
    ("said", "cursor", "fold", "lost", "action"),
    [
        pytest.param(ack(4), SHIPPING, folded(3, 6), 0, (False, "files 5 to 6"), id="folded"),
        pytest.param(ack(2), SHIPPING, folded(3, 6), 0, (True, "files 3 to 6"), id="not covered"),
        pytest.param(ack(6), SHIPPING, folded(3, 6), 0, Ship(7), id="it had them after all"),
        pytest.param(ack(4), SHIPPING, Fold(), 5, (True, "file 5 cannot"), id="a damaged file"),
        pytest.param(ack(6), SHIPPING, Fold(), 5, Ship(7), id="damaged since"),
        pytest.param(ack(1), SHIPPING, Fold(), 0, (True, "lost files 2 to 5"), id="went back"),
        pytest.param(ack(1), NEW, Fold(), 0, (True, "file 2 is needed"), id="left the spool"),
        pytest.param(ack(5, needs_sync="gap"), SHIPPING, Fold(), 0, (True, "gap"), id="a gap"),
        pytest.param(ack(2), RESYNCING, Fold(), 0, ContinueSync(0, (0, 0)), id="nothing sent"),
        pytest.param(ack(2, needs_sync="doubt"), RESYNCING, folded(2, 6), 0, (True, "doubt"),
                     id="a part does not help"),
        pytest.param(ack(2, needs_sync="full"), RESYNCING, folded(2, 6), 0,
                     ContinueSync(0, (0, 0)), id="it is the one that is needed"),
        pytest.param(ack(2, needs_sync="full"), BEGUN, folded(2, 6), 0, (True, "full"),
                     id="given up there, and all of it is needed"),
        pytest.param(ack(7), RESYNCING, Fold(), 0, (False, "full"), id="the mirror went beyond it"),
        pytest.param(ack(2), BEGUN, folded(2, 6), 0, (False, "full"), id="given up there"),
        pytest.param(ack(2), BEGUN, folded(3, 6), 0, (True, "full"), id="given up, no map"),
        pytest.param(staged(3), BEGUN, folded(2, 6), 0, ContinueSync(3, (1, 300)), id="goes on"),
        pytest.param(staged(3, 0), replace(BEGUN, sync=replace(RESYNC, round=1)), Fold(), 0,
                     ContinueSync(3, (0, 0)), id="a new round"),
        pytest.param(staged(3, done=True), BEGUN, folded(2, 6), 0, Ship(7, behind_copy=True),
                     id="its journal"),
        pytest.param(staged(3, received=8, done=True), BEGUN, folded(2, 6), 0,
                     Ship(9, behind_copy=True), id="the rest of its journal"),
        pytest.param(staged(3, received=8, done=True), BEGUN, folded(2, 7), 0,
                     ContinueSync(3, (1, 300)), id="overtaken"),
        pytest.param(staged(3), BEGUN, Fold(), 8, (True, "file 8"), id="its journal is damaged"),
        pytest.param(ack(8, sync=AckSync(7, 4, (1, 9), done=True)), BEGUN, folded(2, 6), 0,
                     Ship(9), id="switched in"),
        pytest.param(ack(7, sync=AckSync(7, 4, (1, 9), done=True)), BEGUN, folded(2, 9), 0,
                     (False, "files 8 to 9"), id="switched in and behind again"),
        pytest.param(ack(2, phase="switching"), SHIPPING, Fold(), 0, AwaitStore(""), id="another"),
        pytest.param(EMPTY, BEGUN, Fold(), 0, BeginSync("the store is empty"), id="emptied"),
    ],
)  # fmt: skip
def test_where_the_journal_has_gaps_a_staged_copy_takes_its_place(
    said: Ack, cursor: Cursor, fold: Fold, lost: int, action: object
) -> None:
    found = decide(said, cursor, replace(history(), fold=fold, lost=lost))
    if isinstance(action, tuple):
        assert isinstance(found, BeginResync)
        assert found.whole == action[0]
        assert action[1] in found.reason
    elif isinstance(action, AwaitStore):
        assert isinstance(found, AwaitStore)
    else:
        assert found == action
