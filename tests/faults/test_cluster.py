"""A cluster of three: its leader dies, a minority is cut off, a server retires."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator

import pytest
from cluster import Cluster
from fault_table import Row
from ledger import Ledger, publish_forever
from waiting import LONGEST, eventually

from rosey import Event, EventBus, EventBusError, PublishTimeoutError, StreamSpec

SPEC = StreamSpec("R3", ("rosey.platform.>",))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as formed:
        async with EventBus(formed.urls, streams=()) as bus:
            await formed.make_stream(bus, SPEC.name, SPEC.subjects[0])
        yield formed


async def progress(ledger: Ledger, count: int = 10) -> float:
    """Wait until so many more are acknowledged; return the longest that took, in seconds."""
    wanted = len(ledger.acknowledged) + count
    began = time.perf_counter()
    deadline = began + 3 * LONGEST
    while len(ledger.acknowledged) < wanted:
        assert time.perf_counter() < deadline, "publishing never went on"
        await asyncio.sleep(0.01)
    return time.perf_counter() - began


@pytest.mark.timeout(1800)
async def test_a_leader_dies(cluster: Cluster, cycles: int, rng: random.Random, row: Row) -> None:
    """publish_js with 15 s hides the election; a server that is announced is used."""
    ledger, stop = Ledger(), asyncio.Event()
    outages: list[float] = []
    # Only one server is named: the others are known because it announces them.
    async with EventBus([cluster.urls[0]], streams=[SPEC]) as bus:
        publishing = [asyncio.create_task(publish_forever(bus, ledger, stop)) for _ in range(4)]
        for _ in range(max(1, cycles // 5)):
            await progress(ledger)
            await cluster.whole(bus, SPEC.name)
            leader = await cluster.leader(bus, SPEC.name)
            await cluster.servers[leader].kill()
            outages.append(await progress(ledger))
            await cluster.servers[leader].start()
        stop.set()
        await asyncio.gather(*publishing)
        await ledger.read(bus.servers[0], SPEC.name)
    row(
        "leader of three killed, 15 s to publish",
        "P1 P2 P3",
        f"{ledger}; stored again after {max(outages):.1f} s at the most",
    )
    assert ledger.lost == ledger.duplicated == ledger.unexpected == set()
    assert ledger.unknown == {}


async def test_a_minority_is_left(cluster: Cluster, row: Row) -> None:
    """The server that is cut off goes on answering, and stores nothing any more."""
    async with EventBus(cluster.urls, streams=[SPEC]) as bus:
        await bus.publish_js("rosey.platform.x", {"n": 0}, timeout=15)
        received: list[Event] = []
        await bus.subscribe("a", received.append)
        old = (await bus.health()).server
        cluster.isolate(cluster.index(old))
        began = time.perf_counter()
        while (await bus.health()).jetstream:
            assert time.perf_counter() < began + LONGEST
            await asyncio.sleep(0.1)
        degraded = time.perf_counter() - began
        await eventually(lambda: bus.connected and bus._connection.server != old)
        moved = time.perf_counter() - began
        await bus.publish_js("rosey.platform.x", {"n": 1}, timeout=30)
        stored = time.perf_counter() - began
        await bus.publish("a", {})
        await eventually(lambda: received)
        cluster.heal()
    row(
        "minority cut off, default heartbeat",
        "P3 P4",
        f"health() says so after {degraded:.1f} s, left after {moved:.1f} s, "
        f"stored again after {stored:.1f} s",
    )


async def test_the_majority_is_lost(cluster: Cluster, row: Row) -> None:
    async with EventBus(cluster.urls, streams=[SPEC]) as bus:
        here = cluster.index((await bus.health()).server)
        others = [server for n, server in enumerate(cluster.servers) if n != here]
        for server in others:
            server.send_signal(signal.SIGSTOP)
        try:
            began = time.perf_counter()
            with pytest.raises(EventBusError) as caught:
                await bus.publish_js("rosey.platform.x", {"n": 0}, timeout=3)
            took = time.perf_counter() - began
        finally:
            for server in others:
                server.send_signal(signal.SIGCONT)
        healed = time.perf_counter()
        await bus.publish_js("rosey.platform.x", {"n": 1}, timeout=60)
        recovered = time.perf_counter() - healed
    row(
        "majority frozen, 3 s to publish",
        "P3 P4",
        f"{type(caught.value).__name__} after {took:.1f} s; "
        f"stored {recovered:.1f} s after it is back",
    )
    assert isinstance(caught.value, PublishTimeoutError)
    assert took < 10


async def test_a_server_that_retires_is_left_before_it_goes(cluster: Cluster, row: Row) -> None:
    ledger, stop = Ledger(), asyncio.Event()
    told: list[Exception] = []
    async with EventBus(
        cluster.urls, streams=[SPEC], on_error=lambda error, event: told.append(error)
    ) as bus:
        received: list[Event] = []
        await bus.subscribe("rosey.platform.x", received.append)
        publishing = [asyncio.create_task(publish_forever(bus, ledger, stop)) for _ in range(4)]
        await progress(ledger)
        old = (await bus.health()).server
        retiring = cluster.servers[cluster.index(old)]
        pid = retiring.pid
        retiring.send_signal(signal.SIGUSR2)
        began = time.perf_counter()
        await eventually(lambda: bus.connected and bus._connection.server != old)
        moved = time.perf_counter() - began
        assert retiring.pid == pid  # it still runs: we left first
        await progress(ledger)
        stop.set()
        await asyncio.gather(*publishing)
        await ledger.read(bus._connection.server, SPEC.name)
        await bus.flush()
        heard = {event.data["n"] for event in received}
    await retiring.kill()  # it would take its 30 s
    row(
        "lame duck",
        "P1 P2",
        f"left after {moved:.2f} s, it closes connections after 3 s; {ledger}; "
        f"{len(ledger.acknowledged - heard)} of them not heard by a plain subscription",
    )
    assert ledger.lost == ledger.duplicated == set()
    assert ledger.unknown == {}
    assert told == []
