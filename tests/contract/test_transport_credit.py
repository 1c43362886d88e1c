"""How much leave to send is asked for at once."""

from aimfuse.transport.credit import CREDIT_BYTES_MAX, Credit
from aimfuse.units import KIB, MIB

BLOCK = 64 * KIB


async def spend(credit: Credit, total: int, step_s: float) -> None:
    """Send *total* bytes in blocks, one every *step_s*."""
    for number, at in enumerate(range(0, total, BLOCK)):
        await credit.take(min(BLOCK, total - at), total - at, number * step_s)


async def test_where_leave_is_quick_it_is_asked_for_seldom_and_for_each_byte_once() -> None:
    asked: list[int] = []

    async def ask(count_bytes: int) -> None:
        asked.append(count_bytes)

    total = 64 * MIB + 1
    await spend(Credit(ask, CREDIT_BYTES_MAX), total, 0.0)
    assert sum(asked) == total
    assert max(asked) == CREDIT_BYTES_MAX
    assert len(asked) < 32


async def test_where_it_is_slow_it_is_asked_for_block_by_block() -> None:
    asked: list[int] = []

    async def ask(count_bytes: int) -> None:
        asked.append(count_bytes)

    await spend(Credit(ask, CREDIT_BYTES_MAX), MIB, 0.2)
    assert asked == [BLOCK] * 16


async def test_a_limit_for_even_pacing_holds() -> None:
    asked: list[int] = []

    async def ask(count_bytes: int) -> None:
        asked.append(count_bytes)

    await spend(Credit(ask, BLOCK), MIB, 0.0)
    assert asked == [BLOCK] * 16
