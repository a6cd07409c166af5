"""The specification's own tests, with what they meant."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from waiting import eventually

from rosey.core.event_bus import (
    EventBus,
    NotConnectedError,
    event_bus_context,
    get_event_bus,
    initialize_event_bus,
    shutdown_event_bus,
)
from rosey.core.events import Event


@pytest.fixture
async def event_bus(url: str) -> AsyncIterator[EventBus]:
    bus = await initialize_event_bus([url])
    yield bus
    await shutdown_event_bus()


async def test_connect_disconnect(url: str) -> None:
    bus = EventBus([url])
    assert not bus.connected

    await bus.connect()
    assert bus.connected

    await bus.disconnect()
    assert not bus.connected


async def test_publish_subscribe(event_bus: EventBus) -> None:
    received: list[Event] = []

    async def handler(event: Event) -> None:
        received.append(event)

    await event_bus.subscribe("test.hello", handler)
    await event_bus.publish("test.hello", {"msg": "world"})

    await eventually(lambda: received)
    assert len(received) == 1
    assert received[0].data["msg"] == "world"
    assert received[0].event_type == "hello"


async def test_wildcard_subscription(event_bus: EventBus) -> None:
    received: list[Event] = []

    async def handler(event: Event) -> None:
        received.append(event)

    await event_bus.subscribe("test.>", handler)

    await event_bus.publish("test.one", {"id": 1})
    await event_bus.publish("other.three", {"id": 3})
    await event_bus.publish("test.two", {"id": 2})

    await eventually(lambda: len(received) == 2)
    assert [event.data["id"] for event in received] == [1, 2]


async def test_request_reply(event_bus: EventBus) -> None:
    async def handler(event: Event) -> dict[str, int]:
        return {"result": event.data["input"] * 2}

    await event_bus.subscribe("test.double", handler)
    answer = await event_bus.request("test.double", {"input": 21})

    assert answer.data == {"result": 42}


async def test_publish_not_connected() -> None:
    bus = EventBus()

    with pytest.raises(NotConnectedError):
        await bus.publish("test", {})


async def test_context_manager(url: str) -> None:
    async with event_bus_context([url]) as bus:
        assert bus.connected
        assert await get_event_bus() is bus
        await bus.publish("test", {"msg": "hello"})

    assert not bus.connected
    with pytest.raises(RuntimeError):
        await get_event_bus()


async def test_event_serialization() -> None:
    event = Event(
        subject="test.event",
        event_type="test",
        source="unit-test",
        data={"key": "value", "number": 42},
    )

    json_bytes = event.to_json()
    assert isinstance(json_bytes, bytes)

    restored = Event.from_json(json_bytes)
    assert restored == event
