"""How much of a long history is looked at for a point of it: counted, by calls."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from aimfuse.disk import Disk
from aimfuse.journal.names import GoneName, JournalName, UndoName
from aimfuse.replay.afar import FarLook
from aimfuse.replay.kept import KeptSet, list_kept, list_names, measured
from aimfuse.replay.look import Entry, Look
from aimfuse.replay.restore import Request, restore
from aimfuse.units import Epoch, FileNumber
from tests.replay.many_files import Counting, many_files
from tests.replay.recorder import at, recorded, silent

pytestmark = pytest.mark.expects_warnings


class CountingLook(Look):
    """Counts what is asked of names in a history."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def entry(self, path: Path) -> Entry | None:
        self.asked[path.parent.name] += 1
        return super().entry(path)


def name(number: int, epoch: int = 1) -> JournalName:
    return JournalName(Epoch(epoch), FileNumber(number))


def test_names_alone_say_what_is_kept(tmp_path: Path) -> None:
    one, two, old = name(1), name(2, 2), name(2)
    texts = [
        one.sealed, str(UndoName(one)), str(UndoName(one, 1)), str(GoneName(one, 7)),
        str(UndoName(two)), old.sealed, str(UndoName(old)), name(3).sealed,
        "floor.0", "pin-12", f"{one}.aimless", f"{one}-1.undo", f"{name(4)}.part", "x" * 21,
    ]  # fmt: skip
    for size, text in enumerate(texts, 1):
        (tmp_path / text).write_bytes(bytes(size))
    kept = list_kept(Look(), tmp_path)
    assert kept[1] == KeptSet(one, 10, True, True, (str(UndoName(one, 1)), str(GoneName(one, 7))))
    assert list(kept) == [1, 2, 3]
    named = list_names(Look(), tmp_path)
    assert named == {number: one._replace(size_bytes=0) for number, one in kept.items()}
    assert list_names(Look(), tmp_path, 1) == {n: named[n] for n in (2, 3)}
    assert list_names(Look(), tmp_path, 3) == {}
    assert measured(Look(), tmp_path, named.values()) == list(kept.values())


def test_a_restore_asks_only_for_the_files_that_it_takes_back(tmp_path: Path) -> None:
    opened: list[int] = []
    for count in (16, 64):
        root = tmp_path / f"{count}"
        source, store = many_files(root, count)
        disk, look = Counting(), CountingLook()
        back = (1, source.seq - 5)
        request = Request(root / "out", at(back), "v.img")
        restore(disk, store, request, silent, look=look)
        assert (root / "out").read_bytes() == source.states[back]["v.img"]
        assert look.asked["history"] == 3 * 2  # Of three files: what goes back, what goes on.
        opened.append(disk.opened.total())
    assert opened[1] <= opened[0] + 4  # By halves: a few more among four times as many.


def test_a_dry_run_still_says_how_much_would_be_read(tmp_path: Path) -> None:
    _source, store, _waiting = recorded(tmp_path)
    request = Request(tmp_path / "out", at((1, 12)), as_directory=True)
    said = restore(Disk(), store, request, silent, dry_run=True)
    kept = sorted((store / "history").glob("0*"))
    behind = [path for path in kept if path.name[:21] >= kept[0].name[:20] + "3"]
    assert said["reads"]["undo_files"] == 2
    assert said["reads"]["undo_bytes"] == sum(path.stat().st_size for path in behind)


def test_from_afar_the_sizes_come_with_the_names(tmp_path: Path) -> None:
    one, two = name(1), name(2)
    texts = [one.sealed, str(UndoName(one)), str(UndoName(one, 1)), str(UndoName(two)), "floor.0"]
    for size, text in enumerate(texts, 1):
        (tmp_path / text).write_bytes(bytes(size))

    class Files:
        calls: ClassVar[Counter[str]] = Counter()

        def names(self, _path: str) -> Iterable[tuple[str, Any]]:
            self.calls["names"] += 1
            sizes = ((text, (tmp_path / text).stat().st_size) for text in texts)
            return [(text, SimpleNamespace(mode=0o100600, size=size)) for text, size in sizes]

    files: Any = Files()
    look = FarLook(files, Path("/far"))
    kept = list_names(look, Path("/far/history"))
    assert kept == list_kept(Look(), tmp_path)
    assert measured(look, Path("/far/history"), kept.values()) == list(kept.values())
    assert list_names(look, Path("/far/history"), 1) == {2: kept[2]}
    assert Files.calls == {"names": 2}
