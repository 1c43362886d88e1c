"""A source whose mirror needs a staged copy: of several volumes, and with much behind it."""

from pathlib import Path

from tests.replay.source import Source

BLOCK = 4096


def make_source(spool: Path) -> Source:
    source = Source(spool)
    source.create("v.img", 6 * BLOCK)
    source.write(1, 0, b"\x11" * 6 * BLOCK)
    source.create("goes", 100)
    source.create("shrinks", 5 * BLOCK)
    source.write(3, 0, b"\x33" * 5 * BLOCK)
    source.roll()
    return source


def do_much(source: Source) -> list[Path]:
    """Write journal files that will leave the spool unsent."""
    source.write(1, 2 * BLOCK, b"\x22" * 100)
    source.zero(1, 5 * BLOCK, BLOCK)
    source.unlink(2)
    source.truncate(3, BLOCK)
    first = source.roll()
    source.truncate(3, 3 * BLOCK)
    source.write(1, 7 * BLOCK, b"grown")
    new = source.create("new", 2 * BLOCK)
    source.write(new, BLOCK + 5, b"fresh")
    source.rename(3, "renamed")
    return [first, source.roll()]


def do_more(source: Source) -> list[Path]:
    """Write journal files behind the copy's origin."""
    source.write(1, 100, b"behind the copy")
    source.write(3, 2 * BLOCK, b"again")
    return [source.roll()]
