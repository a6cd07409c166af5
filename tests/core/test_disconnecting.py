"""disconnect(): handlers finish, everything ends, whenever and from wherever it is called."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest
from waiting import eventually, running_tasks

from rosey import ConnectError, Event, EventBus, NotConnectedError, State, WrongEventLoopError
from rosey.server import LocalServer
from rosey.testing import FaultProxy


async def test_what_runs_and_what_waits_is_handled_and_may_still_publish(
    bus: EventBus, other_bus: EventBus
) -> None:
    reports: list[Event] = []
    await other_bus.subscribe("done", reports.append)
    started = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(event: Event) -> None:
        started.set()
        await go_on.wait()
        await bus.publish("done", event.data)

    subscription = await bus.subscribe("work", slow)
    for n in range(5):
        await other_bus.publish("work", {"n": n})
    await other_bus.flush()
    await started.wait()
    leaving = asyncio.create_task(bus.disconnect())
    await eventually(lambda: bus.state is State.CLOSING)
    go_on.set()
    await leaving
    await eventually(lambda: len(reports) == 5)
    assert subscription.stats.handled == 5
    assert bus.state is State.CLOSED


async def test_a_handler_that_hangs_is_cancelled_at_the_deadline_and_reported(url: str) -> None:
    told: list[Exception] = []
    bus = EventBus([url], on_error=lambda error, event: told.append(error))
    await bus.connect()
    started, ended = asyncio.Event(), asyncio.Event()

    async def hang(event: Event) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await bus.subscribe("a", hang)
    await bus.publish("a", {})
    await bus.publish("a", {})
    await started.wait()
    began = time.monotonic()
    await bus.disconnect(timeout=0.2)
    assert time.monotonic() - began < 5
    assert ended.is_set()
    assert "1 message(s) dropped" in str(told)


async def test_during_an_outage_it_ends_and_leaves_no_client(server: LocalServer) -> None:
    before = running_tasks()
    bus = EventBus([server.url])
    await bus.connect()
    await bus.subscribe("a", lambda event: None)
    await server.kill()
    await eventually(lambda: bus.state is State.RECONNECTING)
    waiting = asyncio.create_task(bus.publish("a", {}, timeout=3600))
    await asyncio.sleep(0)
    await bus.disconnect()
    with pytest.raises(NotConnectedError):
        await waiting
    assert bus.state is State.CLOSED
    assert bus.nc is None
    await server.start()
    await eventually(lambda: running_tasks() <= before, "tasks end")


async def test_right_after_the_server_died_it_does_not_wait_for_it(server: LocalServer) -> None:
    bus = EventBus([server.url])
    await bus.connect()
    await bus.subscribe("a", lambda event: None)
    await server.kill()
    began = time.monotonic()
    await bus.disconnect(timeout=30)
    assert time.monotonic() - began < 10
    assert bus.state is State.CLOSED


async def test_twice_at_once_and_again_is_harmless(bus: EventBus) -> None:
    await asyncio.gather(bus.disconnect(), bus.disconnect())
    await bus.disconnect()
    assert bus.state is State.CLOSED


async def test_before_connecting_it_does_nothing() -> None:
    await EventBus().disconnect()


async def test_from_a_handler_it_ends_well(bus: EventBus) -> None:
    async def leave(event: Event) -> None:
        await bus.disconnect()

    await bus.subscribe("leave", leave)
    await bus.publish("leave", {})
    await eventually(lambda: bus.state is State.CLOSED)


async def test_cancelled_half_way_it_still_closes(bus: EventBus) -> None:
    started = asyncio.Event()

    async def hang(event: Event) -> None:
        started.set()
        await asyncio.Event().wait()

    await bus.subscribe("a", hang)
    await bus.publish("a", {})
    await started.wait()
    leaving = asyncio.create_task(bus.disconnect())
    await eventually(lambda: bus.state is State.CLOSING)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert bus.state is State.CLOSED
    await bus.disconnect()


async def test_cancelled_at_once_it_still_ends_every_subscription(url: str) -> None:
    before = running_tasks()
    for steps in range(6):
        bus = EventBus([url], streams=())
        await bus.connect()
        for n in range(3):
            await bus.subscribe(f"a.{n}", lambda event: None)
        leaving = asyncio.create_task(bus.disconnect())
        for _ in range(steps):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        await bus.disconnect()
        assert bus.subscriptions == ()
        await eventually(lambda: running_tasks() <= before, "tasks end")


async def test_no_subscription_is_made_any_more_while_it_closes(bus: EventBus) -> None:
    refused = asyncio.Event()

    async def handler(event: Event) -> None:
        await eventually(lambda: bus.state is State.CLOSING)
        with pytest.raises(NotConnectedError, match="being disconnected"):
            await bus.subscribe("b", lambda event: None)
        refused.set()

    await bus.subscribe("a", handler)
    await bus.publish("a", {})
    await bus.flush()
    await bus.disconnect()
    assert refused.is_set()


async def test_every_call_after_it_raises_at_once(bus: EventBus) -> None:
    event = Event("a", "b", "c", {})
    await bus.disconnect()
    for call in (
        bus.publish("a", {}),
        bus.publish(event),
        bus.publish_js("a", {}),
        bus.subscribe("a", lambda event: None),
        bus.request("a", {}),
        bus.flush(),
    ):
        with pytest.raises(NotConnectedError, match="connect"):
            await call
    assert not (await bus.health()).ok
    assert bus.js is None
    assert bus.subscriptions == ()


async def test_it_can_connect_again(bus: EventBus) -> None:
    await bus.disconnect()
    await bus.connect()
    assert (await bus.health()).ok


async def test_many_connections_leave_nothing(url: str) -> None:
    before = running_tasks()
    for _ in range(30):
        async with EventBus([url], streams=()) as bus:
            await bus.subscribe("a", lambda event: None)
    await eventually(lambda: running_tasks() <= before, "tasks end")


def test_another_event_loop_is_told_what_to_do(unstarted_server: LocalServer) -> None:
    async def scenario() -> None:
        async with unstarted_server as server, EventBus([server.url]) as bus:

            async def elsewhere() -> None:
                with pytest.raises(WrongEventLoopError, match="run_coroutine_threadsafe"):
                    await bus.publish("a", {})

            await asyncio.to_thread(asyncio.run, elsewhere())

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ended_without_disconnect_does_not_end_the_bus(
    unstarted_server: LocalServer,
) -> None:
    async def scenario() -> None:
        async with unstarted_server as server:
            bus = EventBus([server.url])
            # The first loop runs in a thread, because this one keeps the server.
            await asyncio.to_thread(asyncio.run, bus.connect())
            with pytest.raises(NotConnectedError):
                await bus.publish("a", {})
            await bus.connect()
            assert (await bus.health()).ok
            await bus.disconnect()

    asyncio.run(scenario())
    gc.collect()  # the forgotten sockets warn here, and not in another test


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_program_that_ends_in_a_handler_ends(unstarted_server: LocalServer) -> None:
    """asyncio.run cancels all tasks: a worker must not take that for its handler's own doing."""

    async def forgetful() -> None:
        await unstarted_server.start()
        bus = EventBus([unstarted_server.url], streams=())
        await bus.connect()
        running = asyncio.Event()

        async def hang(event: Event) -> None:
            running.set()
            await asyncio.Event().wait()

        await bus.subscribe("a", hang)
        await bus.publish("a", {})
        await running.wait()

    asyncio.run(forgetful())
    asyncio.run(unstarted_server.stop())
    gc.collect()  # the forgotten sockets warn here, and not in another test


async def test_two_handlers_disconnect_at_once(bus: EventBus) -> None:
    """Neither waits for the other, nor for itself in a task of its own."""

    async def leave(event: Event) -> None:
        await asyncio.wait_for(bus.disconnect(5), 10)

    await bus.subscribe("quit", leave)
    await bus.subscribe("quit", leave)
    began = time.perf_counter()
    await bus.publish("quit", {})
    await eventually(lambda: bus.state is State.CLOSED)
    assert time.perf_counter() - began < 2


async def test_what_waits_behind_a_handler_that_disconnects_is_dropped_and_reported(
    url: str,
) -> None:
    told: list[Exception] = []
    handled: list[int] = []
    bus = EventBus([url], streams=(), on_error=lambda error, event: told.append(error))
    await bus.connect()
    all_there = asyncio.Event()

    async def leave(event: Event) -> None:
        handled.append(event.data["n"])
        await all_there.wait()
        await bus.disconnect()

    subscription = await bus.subscribe("quit", leave)
    for n in range(5):
        await bus.publish("quit", {"n": n})
    await eventually(lambda: subscription.pending == 4)
    all_there.set()
    await eventually(lambda: bus.state is State.CLOSED)
    assert handled == [0]
    assert subscription.stats.dropped == 4
    assert "4 message(s) dropped" in str(told[0])


async def test_disconnect_ends_a_connect_under_way(server: LocalServer) -> None:
    async with FaultProxy(server.port) as proxy:
        proxy.stall()
        bus = EventBus([proxy.url], streams=(), connect_timeout=20)
        connecting = asyncio.ensure_future(bus.connect())
        await eventually(lambda: bus.state is State.CONNECTING)
        began = time.perf_counter()
        await bus.disconnect(1)
        assert time.perf_counter() - began < 3
        with pytest.raises(ConnectError, match="while it connected"):
            await connecting
