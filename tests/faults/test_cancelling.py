"""Any call cancelled at any moment: the bus goes on, on the same connection, and leaks nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fault_table import Row
from waiting import eventually, running_tasks

from rosey import Event, EventBus

Call = Callable[[EventBus], Awaitable[Any]]


async def subscribe_and_leave(bus: EventBus) -> None:
    subscription = await bus.subscribe("cancelled.sub", lambda event: None)
    await subscription.unsubscribe()


async def subscribe_and_drain(bus: EventBus) -> None:
    subscription = await bus.subscribe("cancelled.drained", lambda event: None)
    await subscription.drain()


async def connect_and_leave(bus: EventBus) -> None:
    async with EventBus(bus.servers):
        pass


async def answer_late(bus: EventBus) -> None:
    answered = asyncio.Event()

    async def answer(event: Event) -> None:
        await bus.reply(event, {})
        answered.set()

    subscription = await bus.subscribe("cancelled.replied", answer)
    try:
        await bus.request("cancelled.replied", {})
        await answered.wait()
    finally:
        await subscription.unsubscribe()


async def watch_states(bus: EventBus) -> None:
    async for _ in bus.states():
        pass


CALLS: dict[str, Call] = {
    "publish": lambda bus: bus.publish("cancelled.x", {"text": "x" * 100_000}),
    "publish_js": lambda bus: bus.publish_js("rosey.platform.x", {}),
    "request": lambda bus: bus.request("echo", {}),
    "subscribe, unsubscribe": subscribe_and_leave,
    "subscribe, drain": subscribe_and_drain,
    "flush": lambda bus: bus.flush(),
    "health": lambda bus: bus.health(),
    "reply": answer_late,
    "states": watch_states,
    "run_until_signal": lambda bus: bus.run_until_signal(),
    "connect, disconnect": connect_and_leave,
}


@pytest.mark.parametrize("name", CALLS)
async def test_cancelled_at_any_moment(
    bus: EventBus, name: str, cycles: int, rng: random.Random, row: Row
) -> None:
    await bus.subscribe("echo", lambda event: {"ok": True})
    before = running_tasks()
    subscriptions = len(bus.subscriptions)
    client, cancelled = bus.nc, 0
    tries = max(30, cycles)
    for _ in range(tries):
        call = asyncio.ensure_future(CALLS[name](bus))
        if rng.random() < 0.5:
            for _ in range(rng.randint(0, 20)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(rng.uniform(0.0, 0.004))
        call.cancel()
        await asyncio.wait([call])
        cancelled += call.cancelled()
        assert call.cancelled() or call.exception() is None
    health = await bus.health()
    assert health.ok
    assert bus.nc is client  # nothing died and was replaced in silence
    received: list[Event] = []
    subscription = await bus.subscribe("after", received.append)
    await bus.publish("after", {})
    await eventually(lambda: received)
    await subscription.unsubscribe()
    assert (await bus.request("echo", {})).data == {"ok": True}
    await eventually(lambda: len(bus.subscriptions) == subscriptions)
    await eventually(lambda: running_tasks() <= before, "tasks end")
    row(f"{name} cancelled", "P3", f"{cancelled} of {tries} cancelled, 0 deaf, 0 tasks left")
