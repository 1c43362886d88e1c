from array import array
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

def count_sound(rows: Buffer, row_bytes: int, seed: int, /) -> int: ...
def mark_blocks(
    chunks: dict[tuple[int, int], bytearray],
    chunk_bytes: int,
    volume: int,
    shift: int,
    offsets: array[int],
    lengths: array[int],
    begin: int,
    /,
) -> int: ...
