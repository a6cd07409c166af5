"""Wait for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from nats.aio.client import Client

LONGEST = 20.0
"""Seconds; far more than anything takes, so that only a real failure reaches it."""


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Return as soon as `condition` holds; fail the test if it never does."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what or condition}"
        await asyncio.sleep(0.002)


def running_tasks() -> set[asyncio.Task[object]]:
    """The event loop's tasks but for the one that asks."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def server_knows(client: Client) -> None:
    """Return when the server knows what a raw nats-py client subscribed to.

    nats-py sends a flush's PING ahead of what waits to be sent, so that alone proves nothing.
    """
    await asyncio.sleep(0)
    await client.flush()
