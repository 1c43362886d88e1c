from array import array
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

def write_buffers(fd: int, offsets: tuple[int, ...], buffers: tuple[Buffer, ...], /) -> None: ...
def write_places(
    fd: int, memory: Buffer, ats: array[int], offsets: array[int], lengths: array[int], /
) -> None: ...
def read_places(
    fd: int, memory: Buffer, ats: array[int], offsets: array[int], lengths: array[int], /
) -> int: ...
