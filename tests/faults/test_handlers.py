"""Handlers and hooks that raise, hang, cancel, block: they harm nobody but themselves."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine

import pytest
from fault_table import CYCLES, Row
from waiting import LONGEST, eventually, running_tasks

from rosey import Event, EventBus, RemoteError
from rosey.server import LocalServer

BLOCKED = 12.0 if CYCLES >= 20 else 4.0
"""Seconds in which a handler keeps the event loop to itself."""


Failing = Callable[[Event], Coroutine[None, None, None]]


async def fail(event: Event) -> None:
    raise ValueError("broken")


async def cancel_itself(event: Event) -> None:
    raise asyncio.CancelledError


async def cancel_its_task(event: Event) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.get_loop().call_soon(task.cancel)
    await asyncio.sleep(10)


@pytest.mark.parametrize("handler", [fail, cancel_itself, cancel_its_task])
async def test_a_handler_that_fails_goes_on_handling(url: str, handler: Failing, row: Row) -> None:
    told: Counter[str] = Counter()

    def broken_hook(error: Exception, event: Event | None) -> None:
        told[type(error.__cause__ or error).__name__] += 1
        raise RuntimeError("the hook is broken too")

    async with EventBus([url], streams=(), on_error=broken_hook) as bus:
        client = bus.nc
        subscription = await bus.subscribe("a", handler)
        answers = await asyncio.gather(
            *(bus.request("a", {}, timeout=10) for _ in range(10)), return_exceptions=True
        )
        assert bus.nc is client
        assert subscription.stats.failed == 10
    assert all(isinstance(answer, RemoteError) for answer in answers)
    assert told.total() == 10
    row(
        f"handler: {handler.__name__.replace('_', ' ')}; the hook raises",
        "P3",
        "10 of 10 handled, reported and answered with RemoteError",
    )


async def test_a_handler_that_hangs_delays_only_its_own(url: str, row: Row) -> None:
    async def hang(event: Event) -> None:
        await asyncio.Event().wait()

    before = running_tasks()
    async with EventBus([url], streams=()) as bus:
        heard: list[Event] = []
        await bus.subscribe("a", hang)
        await bus.subscribe("a", heard.append)
        for _ in range(10):
            await bus.publish("a", {})
        await eventually(lambda: len(heard) == 10)
        began = time.perf_counter()
        await bus.disconnect(timeout=0.5)
        took = time.perf_counter() - began
    await eventually(lambda: running_tasks() <= before)
    row("handler hangs", "P3", f"others unharmed; disconnect(0.5) took {took:.1f} s, 0 tasks left")
    assert took < 5


async def test_the_loop_is_blocked(server: LocalServer, row: Row) -> None:
    """Longer than the server waits for a slow client: it ends the connection meanwhile."""
    count, text = 600, "x" * 100_000
    arrived = 0

    def block(event: Event) -> None:
        time.sleep(BLOCKED)

    def count_it(event: Event) -> None:
        nonlocal arrived
        arrived += 1

    async def flood() -> None:
        async with EventBus([server.url], streams=()) as other:
            for _ in range(count):
                await other.publish("a", {"text": text})

    async with EventBus([server.url], streams=()) as bus:
        client = bus.nc
        await bus.subscribe("block", block)
        await bus.subscribe("a", count_it)
        flooding = asyncio.ensure_future(asyncio.to_thread(asyncio.run, flood()))
        await eventually(lambda: arrived)
        await bus.publish("block", {})
        await flooding
        await eventually(lambda: bus._connection.lag.worst > BLOCKED / 2)
        began = time.perf_counter()
        while not (health := await bus.health(timeout=10)).ok:
            assert time.perf_counter() < began + LONGEST
        took = time.perf_counter() - began
        before = arrived
        await bus.publish("a", {})
        await eventually(lambda: arrived > before)
        lost, replaced = count + 1 - arrived, bus.nc is not client
    row(
        f"event loop blocked for {BLOCKED:g} s under {count * len(text) // 2**20} MiB",
        "P3 P4",
        f"lag of {health.loop_lag:.1f} s in the log and in health(), works {took:.2f} s later, "
        f"{lost} of {count + 1} lost, {'with' if replaced else 'without'} "
        "a reconnection that states() tells",
    )
