"""Small facts in a file that is only appended to: ``CRC {"key":…}``, one a line.

The CRC-32C of the JSON object comes first, in eight hex digits. A line that a crash has cut short
is the last one, and is written over; a damaged one costs itself.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from crc32c import crc32c

LABELS_NAME = "labels"
"""A source's labels, in its state directory; a store that becomes a source writes it, too."""

Fact = dict[str, Any]

_CRC_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Lines:
    """The facts of a file, where the next line goes, and how many lines are damaged."""

    facts: list[Fact]
    end_at: int
    damaged: int


def encode_lines(facts: Iterable[Fact]) -> bytes:
    """Return the lines of *facts*."""
    lines = []
    for fact in facts:
        body = json.dumps(fact, separators=(",", ":")).encode()
        lines.append(b"%08x %s\n" % (crc32c(body), body))
    return b"".join(lines)


def decode_lines(data: bytes) -> Lines:
    """Return what *data* holds, whatever has become of it."""
    facts: list[Fact] = []
    end_at = damaged = 0
    for line in data.splitlines(keepends=True):
        body = line[_CRC_CHARACTERS + 1 :].removesuffix(b"\n")
        if not line.endswith(b"\n"):
            break
        if line[:_CRC_CHARACTERS] == b"%08x" % crc32c(body):
            facts.append(json.loads(body))
        else:
            damaged += 1
        end_at += len(line)
    return Lines(facts, end_at, damaged)
