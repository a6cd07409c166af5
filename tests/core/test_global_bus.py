"""The global bus: one for all who ask, gone with the last of them, never half there."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from waiting import eventually, running_tasks

from rosey import (
    ConnectError,
    EventBus,
    NotConnectedError,
    NotInitializedError,
    WrongEventLoopError,
    event_bus_context,
    get_event_bus,
    initialize_event_bus,
    shutdown_event_bus,
)
from rosey.server import LocalServer

DOWN = "nats://127.0.0.1:1"


@pytest.fixture(autouse=True)
async def none_is_left() -> AsyncIterator[None]:
    yield
    await shutdown_event_bus()


async def test_initialize_get_shutdown(url: str) -> None:
    bus = await initialize_event_bus([url], name="mine", max_reconnect_attempts=3)
    assert bus.connected
    assert (bus.name, bus.max_reconnect_attempts) == ("mine", 3)
    assert await get_event_bus() is bus
    await shutdown_event_bus()
    assert not bus.connected
    with pytest.raises(NotInitializedError, match="initialize_event_bus"):
        await get_event_bus()
    await shutdown_event_bus()


async def test_a_second_initialize_returns_the_first_with_a_warning(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await initialize_event_bus([url])
    assert await initialize_event_bus([DOWN]) is bus
    assert "already initialized" in caplog.text


async def test_two_at_once_get_one_connected_bus(url: str) -> None:
    first, second = await asyncio.gather(initialize_event_bus([url]), initialize_event_bus([url]))
    assert first is second
    assert first.connected


async def test_a_failed_initialize_leaves_none_and_can_be_repeated(url: str) -> None:
    both = (initialize_event_bus([DOWN], connect_timeout=0.2) for _ in range(2))
    results = await asyncio.gather(*both, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectError, ConnectError]
    with pytest.raises(RuntimeError):
        await get_event_bus()
    assert (await initialize_event_bus([url])).connected


async def test_while_it_connects_there_is_none_yet(server: LocalServer) -> None:
    await server.stop()
    initializing = asyncio.create_task(initialize_event_bus([server.url]))
    await asyncio.sleep(0)
    with pytest.raises(NotInitializedError):
        await get_event_bus()
    await server.start()
    assert (await initializing).connected


async def test_a_cancelled_initialize_leaves_none(url: str) -> None:
    before = running_tasks()
    initializing = asyncio.create_task(initialize_event_bus([DOWN]))
    await asyncio.sleep(0.01)
    initializing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await initializing
    with pytest.raises(NotInitializedError):
        await get_event_bus()
    await eventually(lambda: running_tasks() <= before, "tasks end")


async def test_one_cancelled_caller_does_not_end_it_for_the_other(server: LocalServer) -> None:
    await server.stop()
    first = asyncio.create_task(initialize_event_bus([server.url]))
    second = asyncio.create_task(initialize_event_bus([server.url]))
    await asyncio.sleep(0.01)
    first.cancel()
    await server.start()
    assert (await second).connected


async def test_shutdown_while_it_connects_ends_the_waiting(server: LocalServer) -> None:
    await server.stop()
    initializing = asyncio.create_task(initialize_event_bus([server.url]))
    await asyncio.sleep(0.01)
    await shutdown_event_bus()
    with pytest.raises(NotConnectedError, match="while it connected"):
        await initializing


async def test_a_context_inside_another_does_not_end_it(url: str) -> None:
    async with event_bus_context([url]) as outer:
        async with event_bus_context() as inner:
            assert inner is outer
        assert outer.connected
    assert not outer.connected


async def test_the_last_of_two_contexts_ends_it_whichever_came_first(url: str) -> None:
    first, second = event_bus_context([url]), event_bus_context([url])
    bus = await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    assert bus.connected
    await second.__aexit__(None, None, None)
    assert not bus.connected


async def test_a_context_leaves_an_initialized_bus_alone(url: str) -> None:
    bus = await initialize_event_bus([url])
    async with event_bus_context():
        pass
    assert bus.connected
    assert await get_event_bus() is bus


async def test_initialize_inside_a_context_outlives_it(url: str) -> None:
    async with event_bus_context([url]) as bus:
        assert await initialize_event_bus() is bus
    assert bus.connected


async def test_shutdown_inside_a_context_is_meant(url: str) -> None:
    async with event_bus_context([url]) as bus:
        await shutdown_event_bus()
        assert not bus.connected


async def test_an_error_in_a_context_passes_through_and_ends_the_bus(url: str) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with event_bus_context([url], name="mine") as bus:
            raise ValueError(bus.name)
    assert not bus.connected


async def test_from_another_running_loop_it_is_refused(url: str) -> None:
    await initialize_event_bus([url])

    async def elsewhere() -> None:
        for call in (get_event_bus(), initialize_event_bus(), shutdown_event_bus()):
            with pytest.raises(WrongEventLoopError):
                await call

    await asyncio.to_thread(asyncio.run, elsewhere())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ended_took_its_bus_along(unstarted_server: LocalServer) -> None:
    async def scenario() -> None:
        async with unstarted_server as server:

            async def forget_to_shut_down() -> EventBus:
                return await initialize_event_bus([server.url])

            old = await asyncio.to_thread(asyncio.run, forget_to_shut_down())
            with pytest.raises(NotInitializedError):
                await get_event_bus()
            new = await initialize_event_bus([server.url])
            assert new is not old
            assert new.connected
            await shutdown_event_bus()

    asyncio.run(scenario())
    gc.collect()  # the forgotten sockets warn here, and not in another test
