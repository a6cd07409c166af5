"""Outages: the bus notices, waits, comes back with all subscriptions, or says that it gave up."""

from __future__ import annotations

import asyncio
import logging
import signal

import pytest
from waiting import eventually

from rosey import (
    ConnectionLostError,
    Event,
    EventBus,
    NotConnectedError,
    PermissionDeniedError,
    State,
)
from rosey.core import connection as connection_module
from rosey.server import LocalServer
from rosey.testing import FaultProxy


async def test_subscriptions_and_queue_groups_are_made_again(server: LocalServer) -> None:
    seen: list[str] = []
    async with EventBus([server.url], streams=()) as bus:
        first, second = bus.nc, None
        await bus.subscribe("a.*", lambda event: seen.append("plain"))
        await bus.subscribe("a.*", lambda event: seen.append("plain"))
        for _ in range(2):
            await bus.subscribe("a.*", lambda event: seen.append("queue"), "q")
        await server.kill()
        await eventually(lambda: bus.state is State.RECONNECTING)
        await server.start()
        await eventually(lambda: bus.connected)
        second = bus.nc
        await bus.publish("a.b", {})
        await eventually(lambda: len(seen) == 3)
        await bus.flush()
    assert first is not second
    assert sorted(seen) == ["plain", "plain", "queue"]


async def test_publish_waits_for_the_connection_and_nothing_is_reported_sent_that_was_not(
    server: LocalServer,
) -> None:
    async with EventBus([server.url]) as bus:
        received: list[Event] = []
        await bus.subscribe("a", received.append)
        await server.kill()
        await eventually(lambda: not bus.connected)
        with pytest.raises(NotConnectedError, match="did not come back"):
            await bus.publish("a", {"n": 1}, timeout=0.1)
        waiting = asyncio.create_task(bus.publish("a", {"n": 2}))
        await server.start()
        await waiting
        await eventually(lambda: received)
        await bus.flush()
    assert [event.data for event in received] == [{"n": 2}]


async def test_a_stored_event_survives_an_outage_once(server: LocalServer) -> None:
    async with EventBus([server.url]) as bus:
        await server.kill()
        publishing = asyncio.create_task(bus.publish_js("rosey.events.x", {}))
        publishing.cancel()
        stored = asyncio.create_task(bus.publish_js("rosey.platform.x", {"n": 1}))
        await server.start()
        ack = await stored
        assert (ack.stream, ack.seq) == ("PLATFORM_EVENTS", 1)
        assert bus.js is not None
        assert (await bus.js.stream_info("PLATFORM_EVENTS")).state.messages == 1


async def test_a_request_in_flight_fails_at_once_when_the_connection_goes(
    server: LocalServer,
) -> None:
    asked = asyncio.Event()

    async def never(event: Event) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with EventBus([server.url], streams=()) as bus:
        subscription = await bus.subscribe("a", never)
        asking = asyncio.create_task(bus.request("a", {}, timeout=3600))
        await asked.wait()
        await server.kill()
        with pytest.raises(ConnectionLostError):
            await asking
        await bus.disconnect(timeout=0.1)
    assert subscription.ended


async def test_a_frozen_server_is_noticed_and_the_bus_works_again(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HEARTBEAT", 0.1)
    monkeypatch.setattr(connection_module, "ROUND_TRIP_TIMEOUT", 0.2)
    async with EventBus([server.url], streams=()) as bus:
        received: list[Event] = []
        await bus.subscribe("a", received.append)
        server.send_signal(signal.SIGSTOP)
        try:
            await eventually(lambda: bus.state is State.RECONNECTING)
            assert not (await bus.health(timeout=0.05)).ok
        finally:
            server.send_signal(signal.SIGCONT)
        await eventually(lambda: bus.connected)
        await bus.publish("a", {})
        await eventually(lambda: received)


@pytest.mark.parametrize(("watched", "heartbeat"), [(True, 3600.0), (False, 0.1)])
async def test_a_deaf_client_is_replaced(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, watched: bool, heartbeat: float
) -> None:
    """nats-py's reader dies of a cancelled flush, while it says that it is connected.

    That is seen at once; and should its task not be found, the heartbeat tells.
    """
    if not watched:
        monkeypatch.setattr("rosey.core.dialing._watch_reader", lambda client, callbacks: None)
    monkeypatch.setattr(connection_module, "HEARTBEAT", heartbeat)
    monkeypatch.setattr(connection_module, "ROUND_TRIP_TIMEOUT", 0.2)
    async with EventBus([server.url], streams=()) as bus:
        deaf = bus.nc
        assert deaf is not None
        reader = deaf._reading_task
        assert reader is not None
        reader.cancel()
        assert deaf.is_connected
        await eventually(lambda: bus.connected and bus.nc is not deaf)
        assert (await bus.health()).ok


async def test_it_gives_up_after_the_attempts_it_was_given_and_can_connect_again(
    server: LocalServer,
) -> None:
    told: list[Exception] = []
    bus = EventBus(
        [server.url],
        max_reconnect_attempts=2,
        streams=(),
        on_error=lambda error, event: told.append(error),
    )
    await bus.connect()
    received: list[Event] = []
    await bus.subscribe("a", received.append)
    await server.kill()
    await eventually(lambda: bus.state is State.CLOSED)
    assert [type(error).__name__ for error in told] == ["ConnectError"]
    with pytest.raises(NotConnectedError, match="gave up"):
        await bus.publish("a", {})
    await server.start()
    await bus.connect()
    await bus.publish("a", {})
    await eventually(lambda: received)
    await bus.disconnect()


async def test_zero_attempts_means_none(server: LocalServer) -> None:
    bus = EventBus([server.url], max_reconnect_attempts=0, streams=())
    await bus.connect()
    await server.kill()
    await server.start()
    await eventually(lambda: bus.state is State.CLOSED)
    await bus.disconnect()


async def test_credentials_that_are_no_longer_taken_end_the_bus() -> None:
    server = LocalServer(token="first")
    async with server:
        told: list[Exception] = []
        bus = EventBus(
            [server.url],
            token="first",
            streams=(),
            on_error=lambda error, event: told.append(error),
        )
        await bus.connect()
        await server.stop()
        async with LocalServer(port=server.port, token="second"):
            await eventually(lambda: bus.state is State.CLOSED)
            assert [type(error).__name__ for error in told] == ["AuthenticationError"]
            with pytest.raises(NotConnectedError, match="credentials"):
                await bus.publish("a", {})
        await bus.disconnect()


async def test_a_subscription_made_during_an_outage_waits_for_its_end(
    server: LocalServer,
) -> None:
    async with EventBus([server.url], streams=()) as bus:
        await server.kill()
        await eventually(lambda: not bus.connected)
        with pytest.raises(NotConnectedError):
            await bus.subscribe("a", lambda event: None, timeout=0.05)
        assert bus.subscriptions == ()
        received: list[Event] = []
        subscribing = asyncio.create_task(bus.subscribe("a", received.append))
        await asyncio.sleep(0)
        await server.start()
        await subscribing
        await bus.publish("a", {})
        await eventually(lambda: received)


async def test_outages_while_subscribing_leave_one_subscription(server: LocalServer) -> None:
    async with EventBus([server.url], streams=()) as bus, EventBus([server.url]) as other:
        for n in range(5):
            received: list[Event] = []
            subscribing = asyncio.create_task(bus.subscribe("a", received.append, timeout=20))
            for _ in range(n):
                await asyncio.sleep(0)
            await server.kill()
            await server.start()
            subscription = await subscribing
            await bus.flush()  # it may have been made before the server was killed
            await other.publish("a", {})
            await other.flush()
            await bus.flush()
            await eventually(lambda found=received: found)  # type: ignore[misc]
            assert len(received) == 1
            await subscription.unsubscribe()


async def test_a_permission_that_is_gone_after_an_outage_is_reported() -> None:
    rules = """authorization {{ users: [ {{ user: bot, password: pw, permissions: {{
        publish: ">", subscribe: {} }} }} ] }}"""
    told: list[Exception] = []
    async with LocalServer(config=rules.format('">"')) as server:
        bus = EventBus(
            [server.url],
            user="bot",
            password="pw",
            streams=(),
            on_error=lambda error, event: told.append(error),
        )
        async with bus:
            await bus.subscribe("a", lambda event: None)
            await server.stop()
            async with LocalServer(port=server.port, config=rules.format('"_INBOX.>"')):
                await eventually(lambda: told)
    assert isinstance(told[0], PermissionDeniedError)


async def test_many_publishers_at_once_are_bounded_too(bus: EventBus) -> None:
    text = "x" * 50_000
    largest = 0

    async def publish() -> None:
        nonlocal largest
        for _ in range(10):
            await bus.publish("a", {"text": text})
            assert bus.nc is not None
            largest = max(largest, bus.nc.pending_data_size)

    await asyncio.gather(*(publish() for _ in range(50)))
    assert largest < 2 * connection_module.MAX_UNCONFIRMED + 50 * len(text)


async def test_a_publish_loop_does_not_outrun_the_server(bus: EventBus) -> None:
    """Unconfirmed bytes stay bounded, so the loop gives others their turn."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    text = "x" * 10_000
    largest = 0
    for _ in range(500):
        await bus.publish("a", {"text": text})
        assert bus.nc is not None
        largest = max(largest, bus.nc.pending_data_size)
    counting.cancel()
    assert turns > 5
    assert largest < 2 * connection_module.MAX_UNCONFIRMED


async def test_health_says_what_is_wrong(server: LocalServer) -> None:
    bus = EventBus([server.url])
    before = await bus.health()
    await bus.connect()
    during = await bus.health()
    await server.kill()
    await eventually(lambda: not bus.connected)
    outage = await bus.health(timeout=0.05)
    await bus.disconnect()
    assert (before.ok, before.state, before.server) == (False, "closed", "")
    assert "connect()" in before.error
    assert (during.ok, during.state, during.server) == (True, "connected", server.url)
    assert during.round_trip is not None
    assert 0 < during.round_trip < 2
    assert (outage.ok, outage.state, outage.round_trip) == (False, "reconnecting", None)
    assert outage.error


async def test_state_changes_are_logged(
    server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rosey")
    async with EventBus([server.url], streams=()):
        pass
    said = [r.getMessage() for r in caplog.records if r.name == "rosey.connection"]
    assert said == ["connecting", f"connected to {server.url}", "closing", "closed"]


async def test_a_request_that_waits_for_the_connection_is_not_failed_before_it_is_sent(
    server: LocalServer,
) -> None:
    """A reconnection that dies on the way must not fail what would be sent by the next one."""
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url], streams=()) as bus:
        handled: list[Event] = []
        resets: list[bytes] = []

        async def answer(event: Event) -> dict[str, int]:
            handled.append(event)
            return {"n": 1}

        def reset_at_the_first_message(data: bytes) -> bytes:
            if b"MSG " not in data or resets:
                return data
            resets.append(data)
            proxy.reset()
            return b""

        await bus.subscribe("ask", answer)
        proxy.refuse()
        await eventually(lambda: not bus.connected)
        asking = asyncio.ensure_future(bus.request("ask", {}, timeout=15))
        await asyncio.sleep(0)
        proxy.heal()
        proxy.filter(reset_at_the_first_message)
        assert (await asking).data == {"n": 1}
        assert len(handled) == 1
        assert resets


async def test_flush_tells_once_that_something_may_be_lost(server: LocalServer) -> None:
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url], streams=()) as bus:
        await bus.publish("a", {})
        await bus.flush()
        await bus.publish("a", {})
        proxy.reset()
        await eventually(lambda: not bus.connected)
        with pytest.raises(ConnectionLostError, match="may not have arrived"):
            await bus.flush()
        await bus.flush()


async def test_outbound_bytes_that_vanish_are_noticed_although_others_arrive(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HEARTBEAT", 0.2)
    monkeypatch.setattr(connection_module, "ROUND_TRIP_TIMEOUT", 0.3)
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url], streams=()) as bus:
        await bus.subscribe("feed", lambda event: None)
        async with EventBus([server.url], streams=()) as other:
            proxy.swallow()
            while bus.connected:
                await other.publish("feed", {})
                await asyncio.sleep(0.02)
            proxy.heal()
        await eventually(lambda: bus.connected)


async def test_connecting_again_during_an_outage_waits_for_its_end(server: LocalServer) -> None:
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url], streams=()) as bus:
        proxy.refuse()
        await eventually(lambda: not bus.connected)
        again = asyncio.ensure_future(bus.connect())
        await asyncio.sleep(0)
        assert not again.done()
        proxy.heal()
        await again
        assert bus.connected


async def test_credentials_that_come_late_are_no_wrong_credentials(server: LocalServer) -> None:
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url], streams=()) as bus:
        late = [b"-ERR 'Authentication Timeout'\r\n"]
        proxy.filter(lambda data: (late.pop() if late else b"") + data)
        proxy.reset()
        await eventually(lambda: not late and bus.connected)
