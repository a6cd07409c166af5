"""Nothing grows: not with connections made and closed, not with a million events."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

from fault_table import Row
from waiting import eventually, running_tasks

from rosey import Event, EventBus


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def futures() -> int:
    gc.collect()
    return sum(isinstance(found, asyncio.Future) for found in gc.get_objects())


async def connect_and_use(url: str) -> None:
    async with EventBus([url], streams=()) as bus:
        await bus.subscribe("a", lambda event: {"ok": True})
        await bus.request("a", {})


async def test_connections_leave_nothing(url: str, cycles: int, row: Row) -> None:
    for _ in range(5):
        await connect_and_use(url)
    tasks, files, pending = running_tasks(), open_files(), futures()
    count = cycles * 10
    for _ in range(count):
        await connect_and_use(url)
    await eventually(lambda: running_tasks() <= tasks, "tasks end")
    await eventually(lambda: open_files() <= files, "sockets close")
    left = futures() - pending
    row("connect and disconnect", "", f"{count} times: 0 tasks, 0 sockets, {left} futures left")
    assert left <= 2


async def test_memory_is_flat_over_many_events(url: str, cycles: int, row: Row) -> None:
    seen = 0

    def count_it(event: Event) -> None:
        nonlocal seen
        seen += 1

    async def send(count: int) -> None:
        before = seen
        for n in range(count):
            await bus.publish("a", {"n": n, "text": "x" * 100})
        await eventually(lambda: seen == before + count)

    async with EventBus([url], streams=()) as bus:
        await bus.subscribe("a", count_it)
        await send(20_000)
        gc.collect()
        before = resident_bytes()
        events = cycles * 10_000
        for _ in range(cycles):
            await send(10_000)
        gc.collect()
        grown = (resident_bytes() - before) / 2**20
    row("events published and handled", "", f"{events:,}: memory grew by {grown:.1f} MiB")
    assert grown < 20
