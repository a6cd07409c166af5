"""The fault proxy itself: it passes everything on until it is told to break it."""

from __future__ import annotations

import asyncio

import pytest
from waiting import eventually, running_tasks

from rosey import ConnectError, Event, EventBus, State
from rosey.server import LocalServer
from rosey.testing import FaultProxy


async def test_it_passes_everything_on_and_leaves_nothing(server: LocalServer) -> None:
    before = running_tasks()
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url]) as bus:
        received: list[Event] = []
        await bus.subscribe("a", received.append)
        await bus.publish("a", {"text": "x" * 500_000})
        await eventually(lambda: received)
        assert proxy.connections == 1
    await eventually(lambda: running_tasks() <= before, "tasks end")


async def test_reset_ends_what_is_and_refuse_what_comes(server: LocalServer) -> None:
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url], streams=()) as bus:
        proxy.reset()
        await eventually(lambda: bus.state is State.RECONNECTING)
        await eventually(lambda: bus.connected)
        proxy.refuse()
        await eventually(lambda: bus.state is State.RECONNECTING)
        with pytest.raises(ConnectError):
            await EventBus([proxy.url], connect_timeout=0.3).connect()
        proxy.heal()
        await eventually(lambda: bus.connected)


async def test_stall_holds_and_heal_lets_go(server: LocalServer) -> None:
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url], streams=()) as bus:
        proxy.stall()
        assert not (await bus.health(timeout=0.1)).ok
        proxy.heal()
        assert (await bus.health()).ok


async def test_cut_after_lets_only_so_much_through(server: LocalServer) -> None:
    arrived = bytearray()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            arrived.extend(data)
        writer.close()

    listening = await asyncio.start_server(keep, "127.0.0.1", 0)
    async with listening, FaultProxy(listening.sockets[0].getsockname()[1]) as proxy:
        proxy.cut_after(3)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        # A reset may overtake what was sent before it.
        assert b"hel".startswith(bytes(arrived))


async def test_a_filter_changes_what_the_server_said(server: LocalServer) -> None:
    async with FaultProxy(server.port) as proxy:
        proxy.filter(lambda data: data.replace(b"PONG", b"GNOP"))
        with pytest.raises(ConnectError):
            await EventBus([proxy.url], connect_timeout=0.5).connect()


async def test_without_a_server_behind_it_refuses(server: LocalServer) -> None:
    port = server.port
    await server.stop()
    async with FaultProxy(port) as proxy:
        with pytest.raises(ConnectError):
            await EventBus([proxy.url], connect_timeout=0.3).connect()
