"""Bytes that no server should send, and messages that no peer should: none leaves the bus deaf."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from fault_table import Row
from nats.aio.client import Client
from waiting import eventually

from rosey import Event, EventBus
from rosey.core import connection as connection_module
from rosey.server import LocalServer
from rosey.testing import FaultProxy

ERRORS = [
    "Unknown Protocol Operation",
    "Attempted To Connect To Route Port",
    "Maximum Connections Exceeded",
    "Slow Consumer",
    "Maximum Payload Violation",
    "Maximum Control Line Exceeded",
    "Maximum Subscriptions Exceeded",
    "Invalid Client Protocol",
    "Parser Error",
    "Stale Connection",
    "Secure Connection - TLS Required",
    "Invalid Publish Subject",
    "",
]


@asynccontextmanager
async def bus_through(
    server: LocalServer,
) -> AsyncIterator[tuple[FaultProxy, EventBus]]:
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url], streams=()) as bus:
        yield proxy, bus


def once(extra: bytes) -> Callable[[bytes], bytes]:
    """A filter that puts `extra` in front of the next thing the server says."""
    waiting = [extra]
    return lambda data: (waiting.pop() if waiting else b"") + data


async def works(bus: EventBus) -> None:
    received: list[Event] = []
    subscription = await bus.subscribe("works", received.append, timeout=15)
    await bus.publish("works", {}, timeout=15)
    await eventually(lambda: received)
    await subscription.unsubscribe()


async def test_an_error_of_the_server_does_not_end_the_bus(server: LocalServer, row: Row) -> None:
    async with bus_through(server) as (proxy, bus):
        for text in ERRORS:
            proxy.filter(once(f"-ERR '{text}'\r\n".encode()))
            await bus.health()
            proxy.heal()
            await works(bus)
    row("-ERR of the server", "P4", f"{len(ERRORS)} kinds: after each the bus worked again")


async def test_garbage_from_the_server(
    server: LocalServer,
    cycles: int,
    rng: random.Random,
    row: Row,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it does to nats-py's reader, the heartbeat finds out and a new client comes."""
    monkeypatch.setattr(connection_module, "HEARTBEAT", 0.2)
    monkeypatch.setattr(connection_module, "ROUND_TRIP_TIMEOUT", 0.3)
    pieces = [b"MSG ", b"HMSG ", b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR ", b"INFO {", b"\r\n"]
    pieces += [b"\x00", b"\xff\xfe", b"999999999999", b"-1", b" ", b"works", b"NATS/1.0 503", b"{}"]
    pieces += [b"\x0b2", b"A" * 5000]
    tries = max(20, cycles * 2)
    async with bus_through(server) as (proxy, bus):
        for _ in range(tries):
            garbage = b"".join(rng.choices(pieces, k=rng.randint(1, 6)))
            proxy.filter(once(garbage))
            await bus.health(timeout=0.05)
            proxy.heal()
            await works(bus)
    row("garbage from the server", "P3 P4", f"{tries} of {tries} times the bus worked again")


async def publish_raw(client: Client, line: bytes) -> None:
    """Send protocol as it is, past nats-py's checks."""
    assert client._transport is not None
    client._transport.write(line)
    await client._transport.drain()  # type: ignore[no-untyped-call]


def hpub(headers: bytes, payload: bytes) -> bytes:
    sizes = f"{len(headers)} {len(headers) + len(payload)}".encode()
    return b"HPUB a.b " + sizes + b"\r\n" + headers + payload + b"\r\n"


ATTACKS = {
    "subject not UTF-8": b"PUB a.\xff\xfe 2\r\n{}\r\n",
    "reply not UTF-8": b"PUB a.b _INBOX.\xff\xfe 2\r\n{}\r\n",
    "vertical tab in the subject": b"PUB a.b\x0b2 2\r\n{}\r\n",
    "form feed in the subject": b"PUB a.b\x0c1 2\r\n{}\r\n",
    "NUL in the subject": b"PUB a.\x00 2\r\n{}\r\n",
    "status line not UTF-8": hpub(b"NATS/1.0 \xff\xfe\xff\r\n\r\n", b"{}"),
    "headers that are none": hpub(b"NATS/1.0\r\n:::\xff\xfe\xfd\r\n\r\n", b"{}"),
    "an empty payload": b"PUB a.b 0\r\n\r\n",
    "no event": b"PUB a.b 5\r\nhello\r\n",
    "nested 100,000 deep": b"PUB a.b 100000\r\n" + b"[" * 100_000 + b"\r\n",
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_peer_cannot_make_the_bus_deaf(
    url: str, raw: Client, name: str, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HEARTBEAT", 0.2)
    monkeypatch.setattr(connection_module, "ROUND_TRIP_TIMEOUT", 0.3)
    other: list[Event] = []
    victims: list[Event] = []
    async with EventBus([url], streams=()) as bus:
        client = bus.nc
        # nats-py numbers subscriptions from 1: a forged number must not reach one of these.
        await bus.subscribe("admin.cmd", victims.append)
        await bus.subscribe("a.>", other.append)
        await publish_raw(raw, ATTACKS[name])
        await raw.publish("a.good", Event("a.good", "t", "s", {"n": 1}).to_json())
        await asyncio.sleep(0)
        deaf = False
        try:
            async with asyncio.timeout(1):
                await eventually(lambda: other)
        except TimeoutError:
            deaf = True
        await works(bus)
        await raw.publish("a.good", Event("a.good", "t", "s", {"n": 2}).to_json())
        await eventually(lambda: 2 in [event.data["n"] for event in other])
        assert victims == []
        replaced = bus.nc is not client
    assert replaced or not deaf
    said = "connection replaced" if replaced else "unharmed"
    row(f"peer sends: {name}", "P3 P4", said)
