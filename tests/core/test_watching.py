"""What the bus says of itself: its states in order, its health, and how late its loop is."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from waiting import eventually

from rosey import EventBus, NoRespondersError, PermissionDeniedError, RequestTimeoutError, State
from rosey.core import connection as connection_module
from rosey.core import loop_lag
from rosey.server import LocalServer


async def test_every_state_is_seen_in_order_by_everybody_at_their_own_pace(
    server: LocalServer,
) -> None:
    bus = EventBus([server.url], streams=())
    quick: list[State] = []
    slow: list[State] = []
    release = asyncio.Event()

    async def watch(seen: list[State], pause: asyncio.Event | None) -> None:
        async for state in bus.states():
            seen.append(state)
            if pause is not None:
                await pause.wait()

    async def break_off() -> None:
        async for _ in bus.states():
            raise ValueError("a listener's own failure")

    watching = [asyncio.create_task(watch(quick, None)), asyncio.create_task(watch(slow, release))]
    failing = asyncio.create_task(break_off())
    await asyncio.sleep(0)
    await bus.connect()
    await server.kill()
    await eventually(lambda: bus.state is State.RECONNECTING)
    await server.start()
    await eventually(lambda: bus.connected)
    await bus.disconnect()
    assert len(slow) == 1
    release.set()
    await asyncio.gather(*watching)
    assert isinstance((await asyncio.gather(failing, return_exceptions=True))[0], ValueError)
    assert quick == slow
    assert [state.value for state in quick] == [
        "connecting",
        "connected",
        "reconnecting",
        "connected",
        "closing",
        "closed",
    ]


async def test_health_tells_of_jetstream_pending_bytes_and_lag(url: str) -> None:
    async with EventBus([url]) as bus, EventBus([url], streams=()) as plain:
        assert bus.nc is not None
        await bus.nc.publish("a", b"x" * 1000)
        health = await bus.health()
        assert health.jetstream is True
        assert health.pending_bytes >= 0
        assert 0 <= health.loop_lag < 5
        assert (await plain.health()).jetstream is None


async def test_a_blocked_loop_is_measured_and_logged_and_does_not_cost_the_connection(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_lag, "WARN_AFTER", 0.3)
    client = bus.nc
    await asyncio.sleep(0)
    time.sleep(0.7)  # noqa: ASYNC251 - what a handler must not do
    await eventually(lambda: "was blocked" in caplog.text)
    assert (await bus.health()).loop_lag > 0.2
    assert bus.nc is client


async def test_a_blocked_loop_during_a_heartbeat_is_not_taken_for_a_dead_server(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(connection_module, "ROUND_TRIP_TIMEOUT", 0.2)
    monkeypatch.setattr(loop_lag, "INTERVAL", 0.01)
    monkeypatch.setattr(loop_lag, "WARN_AFTER", 0.1)
    async with EventBus([server.url], streams=()) as bus:
        client = bus.nc
        for _ in range(10):
            await asyncio.sleep(0.03)
            time.sleep(0.3)  # noqa: ASYNC251 - what a handler must not do
        assert (await bus.health()).ok
        assert bus.nc is client


async def test_a_publish_that_was_denied_is_reported_and_the_next_one_is_refused() -> None:
    config = """authorization { users: [ { user: bot, password: pw, permissions: {
        publish: ["open.>", "_INBOX.>"], subscribe: ">" } } ] }"""
    told: list[Exception] = []
    async with (
        LocalServer(config=config) as server,
        EventBus(
            [server.url],
            user="bot",
            password="pw",
            streams=(),
            on_error=lambda error, event: told.append(error),
        ) as bus,
    ):
        await bus.publish("closed.room", {})
        await eventually(lambda: told)
        assert isinstance(told[0], PermissionDeniedError)
        with pytest.raises(PermissionDeniedError, match=r"closed\.room"):
            await bus.publish("closed.room", {})
        await bus.publish("open.room", {})


RUNS_UNTIL_SIGNAL = """
import asyncio, sys
from rosey import EventBus

async def main():
    bus = EventBus([sys.argv[1]])
    await bus.connect()

    async def slow(event):
        print("started", flush=True)
        await asyncio.sleep(event.data["seconds"])
        await bus.publish("done", event.data)

    await bus.subscribe("work", slow)
    print("ready", flush=True)
    await bus.run_until_signal(grace=float(sys.argv[2]))
    print(bus.state.value, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def program(url: str) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        [sys.executable, "-c", RUNS_UNTIL_SIGNAL, url, "20"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield running
    running.kill()
    running.communicate()


async def said(program: subprocess.Popen[str], word: str) -> None:
    assert program.stdout is not None
    line = await asyncio.to_thread(program.stdout.readline)
    assert line.strip() == word


async def test_a_signal_lets_handlers_finish(program: subprocess.Popen[str], bus: EventBus) -> None:
    done: list[object] = []
    await bus.subscribe("done", done.append)
    await said(program, "ready")
    await bus.publish("work", {"seconds": 0.2})
    await said(program, "started")
    program.send_signal(signal.SIGTERM)
    await said(program, "closed")
    assert await asyncio.to_thread(program.wait, 20) == 0
    await eventually(lambda: done)


async def test_a_second_signal_ends_at_once(program: subprocess.Popen[str], bus: EventBus) -> None:
    await said(program, "ready")
    await bus.publish("work", {"seconds": 60})
    await said(program, "started")
    program.send_signal(signal.SIGTERM)
    # The first one was taken when the program's subscription is gone.
    for _ in range(1000):
        program.send_signal(0)
        if not await is_served(bus):
            break
    program.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(program.wait, 15) == -signal.SIGTERM


async def is_served(bus: EventBus) -> bool:
    try:
        await bus.request("work", {"seconds": 0}, timeout=0.02)
    except NoRespondersError:
        return False
    except RequestTimeoutError:
        return True
    return True
