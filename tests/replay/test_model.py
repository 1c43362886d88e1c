"""A mirror is at every file boundary what the source was there: random histories of all kinds."""

import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from tests.replay.histories import Driver, files
from tests.replay.source import Source, deliver, mirror_of
from tests.replay.stores import begin, exhaust, opened


@given(history=st.lists(files, max_size=5), epochs=st.sets(st.integers(0, 4)))
@example(
    history=[[("create", 0, 9000, 0), ("write", 0, 5, 100)], [("truncate", 0, 50, 0)]], epochs=set()
)
@example(
    history=[
        [("create", 0, 100, 0), ("create", 1, 100, 0)],
        [("rename", 0, 1, 0), ("late_write", 0, 0, 9), ("create", 0, 5, 0)],
    ],
    epochs={1},
)
def test_the_mirror_equals_the_model_at_every_file_boundary(
    history: list[list[tuple[str, int, int, int]]], epochs: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, store = Source(Path(scratch, "spool")), Path(scratch, "store")
        driver = Driver(source)
        volume = source.create("first", 5000)
        source.write(volume, 100, b"before the sync")
        source.roll()
        begin(store, source)
        with opened(store) as session:
            for made in driver.play(history, epochs):
                deliver(store, made)
                exhaust(session)
                assert not session.halted
                assert mirror_of(store) == source.snapshot()
                assert not session.store.state.verified.mismatches


@given(file=files, again=st.integers(1, 3))
def test_applying_a_file_again_changes_nothing(
    file: list[tuple[str, int, int, int]], again: int
) -> None:
    """A crash right before the position moves is a redo of the whole file."""
    with tempfile.TemporaryDirectory() as scratch:
        source, store = Source(Path(scratch, "spool")), Path(scratch, "store")
        driver = Driver(source)
        source.create("first", 5000)
        source.create("a", 300)
        source.write(2, 0, b"\xff" * 300)
        source.roll()
        begin(store, source)
        slots = [store / "state.0", store / "state.1"]
        before = [slot.read_bytes() for slot in slots]
        for action in file:
            driver.act(action)
        last = source.roll()
        for _again in range(again + 1):
            for slot, content in zip(slots, before, strict=True):
                slot.write_bytes(content)
            _bring_back(store, file)
            deliver(store, last)
            with opened(store) as session:
                exhaust(session)
                assert not session.halted
        assert mirror_of(store) == source.snapshot()


def _bring_back(store: Path, file: list[tuple[str, int, int, int]]) -> None:
    """Data of removed volumes goes after the position moved; here the position went back."""
    if any(action[0] in {"unlink", "rename"} for action in file):
        for volume in ("00000001", "00000002"):
            (store / "volumes" / volume).touch()
