"""The network between: reset, cut inside a message, swallowing, eating acknowledgements."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

from fault_table import Row
from ledger import Ledger, publish_forever
from waiting import eventually

from rosey import Event, EventBus, State
from rosey.server import LocalServer
from rosey.testing import FaultProxy


async def test_reset_and_cut_inside_messages(
    server: LocalServer, cycles: int, rng: random.Random, row: Row
) -> None:
    ledger, stop = Ledger(), asyncio.Event()
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url]) as bus:
        publishing = [asyncio.create_task(publish_forever(bus, ledger, stop)) for _ in range(16)]
        for cycle in range(cycles):
            before = len(ledger.acknowledged)
            await eventually(lambda before=before: len(ledger.acknowledged) > before + 20)  # type: ignore[misc]
            if cycle % 2:
                proxy.reset()
            else:
                proxy.cut_after(rng.randint(1, 2000))
        stop.set()
        await asyncio.gather(*publishing)
        await ledger.read(server.url)
    row("TCP reset, cut inside a message", "P1 P2 P3", str(ledger))
    assert ledger.lost == ledger.duplicated == ledger.unexpected == set()
    assert ledger.unknown == {}


async def test_eaten_acknowledgements(server: LocalServer, cycles: int, row: Row) -> None:
    """The stream stores the event, and its answer never arrives."""
    ledger = Ledger()
    eaten = 0

    def eat(data: bytes) -> bytes:
        # Of the same length, so that the protocol around it still holds.
        nonlocal eaten
        marker = b'{"stream":"PLATFORM'
        if marker in data and eaten < count:
            eaten += data.count(marker)
            return data.replace(marker, b'{"nobody":"PLATFORM')
        return data

    async with FaultProxy(server.port) as proxy, EventBus([proxy.url]) as bus:
        proxy.filter(eat)
        for number in range(cycles):
            count = number + 1
            ledger.attempted.add(number)
            await bus.publish_js("rosey.platform.x", {"n": number}, timeout=15)
            ledger.acknowledged.add(number)
        proxy.heal()
        await ledger.read(server.url)
    row("acknowledgement eaten", "P2", f"{eaten} eaten; {ledger}")
    assert eaten == cycles
    assert ledger.lost == ledger.duplicated == ledger.unexpected == set()


async def test_a_network_that_swallows(server: LocalServer, row: Row) -> None:
    """No reset, no end: only our own heartbeat can tell, with its defaults."""
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url], streams=()) as bus:
        received: list[Event] = []
        await bus.subscribe("a", received.append)
        proxy.stall()
        began = time.perf_counter()
        await eventually(lambda: bus.state is State.RECONNECTING)
        noticed = time.perf_counter() - began
        proxy.heal()
        healed = time.perf_counter()
        await eventually(lambda: bus.connected)
        await bus.publish("a", {})
        await eventually(lambda: received)
        recovered = time.perf_counter() - healed
    row(
        "network swallows everything",
        "P3 ≤ 15 s, P4",
        f"noticed after {noticed:.1f} s, works {recovered:.2f} s after it heals",
    )
    assert noticed < 15


async def test_many_reconnect_at_once(server: LocalServer, row: Row) -> None:
    """Not all in the same moment: they spread out by chance."""
    programs, each = 8, 25
    script = Path(__file__).with_name("many_clients.py")
    running = [
        await asyncio.create_subprocess_exec(
            sys.executable, str(script), server.url, str(each), stdout=subprocess.PIPE
        )
        for _ in range(programs)
    ]
    try:
        lines = [program.stdout for program in running if program.stdout is not None]
        for line in lines:
            assert await line.readline() == b"connected\n"
        await server.kill()
        await asyncio.sleep(2)  # an outage long enough for everybody's pauses to have grown
        began = time.time()
        await server.start()
        back = [float(at) - began for line in lines for at in (await line.readline()).split()]
        for program in running:
            assert await program.wait() == 0
    finally:
        for program in running:
            if program.returncode is None:
                program.kill()
                await program.wait()
    assert len(back) == programs * each
    busiest = max(sum(start <= at < start + 0.1 for at in back) for start in back)
    row(
        f"{len(back)} clients reconnect at once",
        "P4",
        f"all back after {max(back):.2f} s, {busiest * 100 // len(back)} % in the busiest 100 ms",
    )
