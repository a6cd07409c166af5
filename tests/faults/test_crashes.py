"""The server is killed, restarted, frozen: what was acknowledged is stored, and stored once."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from statistics import median

from fault_table import Row
from ledger import Ledger, publish_forever
from waiting import eventually

from rosey import Event, EventBus, State
from rosey.server import LocalServer

PUBLISHERS = 16


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


async def crash_cycles(
    server: LocalServer, cycles: int, rng: random.Random, *, kill: bool
) -> tuple[Ledger, list[float]]:
    """Publish from many tasks while the server goes and comes; how long each recovery took."""
    ledger, stop = Ledger(), asyncio.Event()
    recoveries: list[float] = []
    async with EventBus([server.url]) as bus:
        publishing = [
            asyncio.create_task(publish_forever(bus, ledger, stop)) for _ in range(PUBLISHERS)
        ]
        for _ in range(cycles):
            await asyncio.sleep(rng.uniform(0.02, 0.15))
            if kill:
                await server.kill()
            else:
                server.send_signal(signal.SIGTERM)
                assert server.pid is not None
                await asyncio.sleep(rng.uniform(0.0, 0.05))
                await server.kill()
            before = len(ledger.acknowledged)
            await server.start()
            answers = time.perf_counter()
            await eventually(lambda before=before: len(ledger.acknowledged) > before)  # type: ignore[misc]
            recoveries.append(time.perf_counter() - answers)
        stop.set()
        await asyncio.gather(*publishing)
        await ledger.read(server.url)
    return ledger, recoveries


def figures(recoveries: list[float]) -> str:
    return (
        f"recovery p50 {median(recoveries) * 1000:.0f} ms, "
        f"p99 {percentile(recoveries, 99) * 1000:.0f} ms"
    )


async def test_killed(server: LocalServer, cycles: int, rng: random.Random, row: Row) -> None:
    ledger, recoveries = await crash_cycles(server, cycles, rng, kill=True)
    row("kill -9, 16 publishers", "P1 P2 P4", f"{ledger}; {figures(recoveries)}")
    assert ledger.lost == set()
    assert ledger.duplicated == set()
    assert ledger.unexpected == set()
    assert ledger.unknown == {}


async def test_restarted(server: LocalServer, cycles: int, rng: random.Random, row: Row) -> None:
    ledger, recoveries = await crash_cycles(server, cycles, rng, kill=False)
    row("SIGTERM and start, 16 publishers", "P1 P2 P4", f"{ledger}; {figures(recoveries)}")
    assert ledger.lost == ledger.duplicated == ledger.unexpected == set()
    assert ledger.unknown == {}


async def test_frozen(server: LocalServer, cycles: int, row: Row) -> None:
    """With the default heartbeat, and with bytes that the frozen server never takes."""
    silent: list[float] = []
    async with EventBus([server.url]) as bus:
        received: list[Event] = []
        await bus.subscribe("a", received.append)
        for _ in range(max(1, cycles // 20)):
            server.send_signal(signal.SIGSTOP)
            frozen = time.perf_counter()
            pouring = asyncio.create_task(pour(bus))
            try:
                await eventually(lambda: bus.state is State.RECONNECTING)
                silent.append(time.perf_counter() - frozen)
            finally:
                server.send_signal(signal.SIGCONT)
            await eventually(lambda: bus.connected)
            pouring.cancel()
            await asyncio.wait([pouring])
            await bus.publish("a", {})
            await eventually(lambda: received)
            received.clear()
    row("SIGSTOP, default heartbeat", "P3 ≤ 15 s", f"noticed after {max(silent):.1f} s at the most")
    assert max(silent) < 15


async def pour(bus: EventBus) -> None:
    text = "x" * 100_000
    for _ in range(200):
        await bus.publish("poured", {"text": text}, timeout=30)
