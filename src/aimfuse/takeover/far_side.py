"""Ask and tell the store at the other end of a destination's URL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from aimfuse.config import DestinationConfig, GroupConfig, destination_name
from aimfuse.coordinator.acks import ACK_BYTES_MAX, ACK_NAME, Ack, parse_ack
from aimfuse.coordinator.run import connect_as_configured
from aimfuse.errors import StoreError, Unavailable
from aimfuse.transport.base import Transport

CONNECT_S_MAX = 45.0
CLOSE_S_MAX = 5.0


def destination_at(config: GroupConfig, url: str) -> DestinationConfig:
    """Return the destination that leads to *url*: the group's own knows keys and hosts."""
    for one in config.destinations:
        if one.url == url:
            return one
    return DestinationConfig(destination_name(url), url)


@asynccontextmanager
async def connected(config: DestinationConfig) -> AsyncIterator[Transport]:
    """Give an open connection to a store that is there: none is made.

    Raises:
        Unavailable, Refused: as the transport gave it.
    """
    transport = connect_as_configured(config, makes_store=False)
    try:
        with trio.move_on_after(CONNECT_S_MAX) as scope:
            await transport.open()
        if scope.cancelled_caught:
            raise Unavailable(f"{config.url}: no connection within {CONNECT_S_MAX:.0f} s")
        yield transport
    finally:
        with trio.move_on_after(CLOSE_S_MAX) as closing:
            closing.shield = True
            await transport.aclose()


async def read_ack(transport: Transport, config: DestinationConfig, group: bytes) -> Ack | None:
    """Return what the store of *group* says of itself, None before it has said anything.

    Raises:
        Unavailable: it cannot be read now.
        StoreError: it is the store of another group.
    """
    data = await transport.get(ACK_NAME, ACK_BYTES_MAX)
    ack = parse_ack(data) if data else None
    if ack is not None and ack.group not in {None, group}:
        raise StoreError(
            f"{config.url} is a store of another group, {ack.group.hex() if ack.group else ''}",
            hint="Look at the URL: it has to lead to a mirror of this image.",
        )
    return ack
