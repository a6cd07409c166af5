"""Workers and servers die while events are consumed: all are handled, effects happen once."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
from fault_table import CYCLES, Row
from waiting import LONGEST, eventually

from rosey import Event, EventBus, Retry, StreamSpec
from rosey.server import LocalServer

STREAMS = [StreamSpec("IN", ("in.>",)), StreamSpec("LEDGER", ("ledger.>",), once=True)]
FULL = CYCLES >= 20
EVENTS = 10_000 if FULL else 1_000
KEYS = 50

Worker = asyncio.subprocess.Process


async def worker(server: LocalServer, what: str) -> Worker:
    script = Path(__file__).with_name("worker.py")
    return await asyncio.create_subprocess_exec(
        sys.executable, str(script), server.url, what, stdout=PIPE, stderr=DEVNULL
    )


@asynccontextmanager
async def ending(workers: list[Worker]) -> AsyncIterator[None]:
    """Leave none of them behind."""
    try:
        yield
    finally:
        for one in workers:
            if one.returncode is None:
                one.kill()
            await one.wait()


async def effects(bus: EventBus, count: int) -> list[Event]:
    """What the ledger holds, as soon as it has that many, and a moment later."""
    seen: list[Event] = []
    reader = await bus.consume("ledger.credited", seen.append)
    deadline = time.monotonic() + 30 * LONGEST
    while len(seen) < count:
        assert time.monotonic() < deadline, f"only {len(seen)} effects of {count}"
        await asyncio.sleep(0.1)
    while (await reader.info()).pending:
        await asyncio.sleep(0.1)
    await reader.stop()
    return seen


@pytest.mark.timeout(1200)
async def test_workers_and_server_are_killed(
    server: LocalServer, rng: random.Random, row: Row
) -> None:
    async with EventBus([server.url], streams=STREAMS) as bus:
        await bus.publish_many(
            [Event(f"in.{n % KEYS}", "t", "s", {"n": n, "key": n % KEYS}) for n in range(EVENTS)],
            max_in_flight=1,
            timeout=15,
        )
        workers = [await worker(server, "ledger") for _ in range(3)]
        killed = restarted = 0
        async with ending(workers):
            began = time.perf_counter()
            finished = asyncio.ensure_future(effects(bus, EVENTS))
            while not finished.done() and time.perf_counter() - began < (40 if FULL else 6):
                await asyncio.sleep(rng.uniform(0.3, 1.5))
                if rng.random() < 0.25:
                    await server.kill()
                    await server.start()
                    restarted += 1
                else:
                    victim = rng.randrange(len(workers))
                    workers[victim].kill()
                    await workers[victim].wait()
                    workers[victim] = await worker(server, "ledger")
                    killed += 1
            found = await finished
            took = time.perf_counter() - began
        dead = [letter async for letter in bus.dead_letters]
    counts = Counter(event.data["n"] for event in found)
    by_key: dict[int, list[int]] = defaultdict(list)
    for event in found:
        by_key[event.data["key"]].append(event.data["n"])
    disordered = [key for key, numbers in by_key.items() if numbers != sorted(numbers)]
    row(
        f"{EVENTS:,} events, 3 workers of one durable, killed {killed} times, server {restarted}",
        "P1 P2",
        f"{EVENTS - len(counts)} lost, {sum(counts.values()) - len(counts)} effects twice, "
        f"{len(disordered)} of {KEYS} keys out of order, {len(dead)} dead letters, "
        f"after {took:.0f} s",
    )
    assert set(counts) == set(range(EVENTS))
    assert sum(counts.values()) == EVENTS
    assert disordered == []
    assert dead == []


@pytest.mark.timeout(300)
async def test_an_event_that_kills_its_worker(server: LocalServer, row: Row) -> None:
    async with EventBus([server.url], streams=STREAMS) as bus:
        await bus.publish_many([Event("in.x", "t", "s", {"n": n}) for n in range(20)])
        deaths = 0
        workers: list[Worker] = []
        async with ending(workers):
            while True:
                workers.append(await worker(server, "suicide"))
                dies = asyncio.ensure_future(workers[-1].wait())
                done = asyncio.ensure_future(letter_count(bus, 1))
                await asyncio.wait([dies, done], return_when=asyncio.FIRST_COMPLETED)
                if done.done():
                    break
                done.cancel()
                await asyncio.wait([done])
                deaths += 1
            found = await effects(bus, 19)
        (letter,) = [letter async for letter in bus.dead_letters]
    row(
        "an event kills its worker each time",
        "P1 P2",
        f"a dead letter after {deaths} deaths, the {len(found)} others are done",
    )
    assert Event.from_json(letter.payload).data == {"n": 7}
    assert deaths == 5
    assert sorted(event.data["n"] for event in found) == [n for n in range(20) if n != 7]


async def letter_count(bus: EventBus, count: int) -> None:
    while len([letter async for letter in bus.dead_letters]) < count:
        await asyncio.sleep(0.05)


@pytest.mark.timeout(600)
async def test_poison_delays_nobody(server: LocalServer, row: Row) -> None:
    """The same events with and without poison; what is compared is when the good ones are done."""
    poison = EVENTS // 100

    async def good_ones_after(bus: EventBus, durable: str, *, poisoned: bool) -> float:
        good = 0

        async def handle(event: Event) -> None:
            nonlocal good
            if poisoned and event.data["n"] % 100 == 50:
                raise ValueError("poison")
            good += 1

        began = time.perf_counter()
        consumer = await bus.consume(
            "in.>", handle, durable=durable, retry=Retry(5, backoff=lambda attempt: 0.1)
        )
        await eventually(lambda: good >= EVENTS - (poison if poisoned else 0))
        took = time.perf_counter() - began
        if poisoned:
            await eventually(lambda: consumer.stats.dead == poison)
        await consumer.stop()
        return took

    async with EventBus([server.url], streams=STREAMS) as bus:
        await bus.publish_many(
            [Event(f"in.{n % KEYS}", "t", "s", {"n": n}) for n in range(EVENTS)], timeout=15
        )
        plain = await good_ones_after(bus, "plain", poisoned=False)
        poisoned = await good_ones_after(bus, "poisoned", poisoned=True)
        letters = [letter async for letter in bus.dead_letters]
    row(
        f"{poison} poison events among {EVENTS:,}",
        "P1 P2",
        f"the others are done after {poisoned:.2f} s, without poison {plain:.2f} s; "
        f"{len(letters)} dead letters",
    )
    assert len({letter.stream_sequence for letter in letters}) == len(letters) == poison
    assert all("raise ValueError" in letter.traceback for letter in letters)
