"""A program of many clients: says when all are connected, and when each is back after an outage.

Run as `python many_clients.py URL COUNT`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time

from rosey import EventBus, State


async def come_back(bus: EventBus) -> float:
    """When, in seconds since the epoch, `bus` was connected again."""
    async for state in bus.states():
        if state is State.CONNECTED:
            break
    return time.time()


async def main(url: str, count: int) -> None:
    buses = [EventBus([url], streams=(), connect_timeout=30) for _ in range(count)]
    await asyncio.gather(*(bus.connect() for bus in buses))
    back = [asyncio.ensure_future(come_back(bus)) for bus in buses]
    await asyncio.sleep(0)
    print("connected", flush=True)
    print(*await asyncio.gather(*back), flush=True)
    await asyncio.gather(*(bus.disconnect() for bus in buses))


logging.disable()
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
