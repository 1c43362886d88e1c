"""Histories of all kinds for hypothesis to draw, and a source that plays them."""

from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from aimfuse.journal.records import RecordType
from tests.replay.source import Source

SPAN_BYTES = 20_000
NAMES = ["a", "b", "v.img", "v.img-wal", "x" * 255, "déjà vu"]
offsets = st.integers(0, SPAN_BYTES)
picks = st.integers(0, 7)
actions = st.one_of(
    st.tuples(st.just("write"), picks, offsets, st.integers(1, 9000)),
    st.tuples(st.just("zero"), picks, offsets, st.integers(1, 9000)),
    st.tuples(st.just("truncate"), picks, offsets, st.just(0)),
    st.tuples(st.just("create"), picks, offsets, st.just(0)),
    st.tuples(st.just("rename"), picks, picks, st.just(0)),
    st.tuples(st.just("unlink"), picks, st.just(0), st.just(0)),
    st.tuples(st.just("late_write"), picks, offsets, st.integers(1, 100)),
    st.tuples(st.just("mark"), picks, st.just(0), st.just(0)),
    st.tuples(st.just("verify"), picks, st.just(0), st.just(0)),
)
files = st.lists(actions, max_size=8)
_MARKS = [RecordType.FLUSH, RecordType.BOOKMARK, RecordType.VERIFY]


class Driver:
    """Turns abstract actions into those of a source; the fill tells each write from others."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.fill = 0
        self.dead: list[int] = []

    def play(
        self, history: list[list[tuple[str, int, int, int]]], epochs: set[int]
    ) -> Iterator[Path]:
        """Make a file of each list of actions; those of *epochs* begin an epoch."""
        for index, file in enumerate(history):
            if index in epochs:
                self.source.branch()
            for action in file:
                self.act(action)
            yield self.source.roll()

    def act(self, action: tuple[str, int, int, int]) -> None:
        what, pick, offset, length = action
        source = self.source
        living = sorted(source.volumes)
        if what == "create":
            name = NAMES[pick % len(NAMES)]
            if name not in source.snapshot():
                source.create(name, offset)
        elif what == "mark":
            source.mark(_MARKS[pick % 3], b"label")
        elif what == "late_write":
            if self.dead:
                source.write(self.dead[pick % len(self.dead)], offset, bytes(length))
        elif living:
            self._change(what, living[pick % len(living)], offset, length)

    def _change(self, what: str, volume: int, offset: int, length: int) -> None:
        source = self.source
        self.fill = self.fill % 255 + 1
        if what == "write":
            source.write(volume, offset, bytes([self.fill]) * length)
        elif what == "zero":
            source.zero(volume, offset, length)
        elif what == "truncate":
            source.truncate(volume, offset)
        elif what == "verify":
            source.verify(volume)
        elif what == "unlink":
            source.unlink(volume)
            self.dead.append(volume)
        else:
            before = set(source.volumes)
            source.rename(volume, NAMES[offset % len(NAMES)])
            self.dead.extend(before - set(source.volumes))
