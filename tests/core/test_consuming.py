"""Durable consumption: every stored event handled, in its order, acknowledged afterwards."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig
from waiting import eventually

from rosey import (
    ConsumerGoneError,
    ConsumerMismatchError,
    DeadLetter,
    Event,
    EventBus,
    InvalidOptionError,
    NoStreamError,
    NotOnceError,
    Retry,
    RetryLater,
    StreamSpec,
    SubscriptionError,
)
from rosey.core import pulling
from rosey.server import LocalServer

CHAT = "rosey.platform.x.chat"
QUICK = Retry(attempts=3, backoff=lambda attempt: 0.05)


async def store(bus: EventBus, count: int, subject: str = CHAT) -> None:
    await bus.publish_many(
        [Event(subject, "chat", "test", {"n": n, "key": n % 3}) for n in range(count)],
        max_in_flight=1,
    )


def numbers(events: list[Event]) -> list[int]:
    return [event.data["n"] for event in events]


async def test_each_event_is_handled_in_order_and_acknowledged(bus: EventBus) -> None:
    await store(bus, 600)
    seen: list[Event] = []

    async def handle(event: Event) -> None:
        seen.append(event)

    consumer = await bus.consume("rosey.platform.>", handle, durable="log")
    await eventually(lambda: consumer.stats.handled == 600)
    assert numbers(seen) == list(range(600))
    origin = seen[-1].delivery.origin if seen[-1].delivery else None
    assert origin is not None
    assert (origin.stream, origin.consumer) == ("PLATFORM_EVENTS", "log")
    assert (origin.sequence, origin.attempt) == (600, 1)
    await bus.flush()
    info = await consumer.info()
    assert (info.pending, info.in_flight, info.acknowledged_to) == (0, 0, 600)
    assert list(bus.consumers) == [consumer]
    await consumer.stop()
    await consumer.stop()
    assert not bus.consumers


async def test_a_durable_goes_on_where_it_was(bus: EventBus) -> None:
    first: list[Event] = []
    async with await bus.consume(CHAT, first.append, durable="log") as consumer:
        await store(bus, 5)
        await eventually(lambda: consumer.stats.handled == 5)
    await store(bus, 3)
    second: list[Event] = []
    async with await bus.consume(CHAT, second.append, durable="log"):
        await eventually(lambda: len(second) == 3)
    assert numbers(second) == [0, 1, 2]


async def test_replicas_share_the_events(bus: EventBus, other_bus: EventBus) -> None:
    seen: dict[str, list[Event]] = defaultdict(list)

    async def slowly(event: Event) -> None:
        await asyncio.sleep(0.001)
        seen["here"].append(event)

    await bus.consume(CHAT, slowly, durable="log", max_in_flight=5)
    await other_bus.consume(CHAT, seen["there"].append, durable="log", max_in_flight=5)
    await store(bus, 200)
    await eventually(lambda: sum(map(len, seen.values())) == 200)
    assert sorted(numbers(seen["here"]) + numbers(seen["there"])) == list(range(200))
    assert seen["here"]
    assert seen["there"]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("all", [0, 1, 2, 3, 9]),
        ("new", [9]),
        ("last", [3, 9]),
        ("last_per_subject", [2, 3, 9]),
        (3, [2, 3, 9]),
        ("1h ago", [0, 1, 2, 3, 9]),
        (timedelta(hours=1), [0, 1, 2, 3, 9]),
        (datetime(2020, 1, 1, tzinfo=UTC), [0, 1, 2, 3, 9]),
    ],
)
async def test_where_a_replay_starts(bus: EventBus, start: object, expected: list[int]) -> None:
    for n in range(4):
        await bus.publish_js(f"rosey.platform.{n % 2}.chat", {"n": n})
    seen: list[Event] = []
    consumer = await bus.consume("rosey.platform.*.chat", seen.append, start=start)  # type: ignore[arg-type]
    await bus.publish_js("rosey.platform.5.chat", {"n": 9})
    await eventually(lambda: numbers(seen) == expected)
    await consumer.stop()
    assert bus.js is not None
    assert await bus.js.consumers_info("PLATFORM_EVENTS") == []  # without a name it is gone


async def test_several_subjects(bus: EventBus) -> None:
    seen: list[Event] = []
    await bus.consume(["rosey.platform.a.*", "rosey.platform.b.>"], seen.append, durable="two")
    for n, subject in enumerate(("a.x", "c.x", "b.x.y", "a.x.y")):
        await bus.publish_js(f"rosey.platform.{subject}", {"n": n})
    await eventually(lambda: len(seen) == 2)
    assert numbers(seen) == [0, 2]


async def test_handlers_run_at_once_only_if_asked(bus: EventBus) -> None:
    running, most = 0, 0

    async def handle(event: Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    await store(bus, 30)
    one = await bus.consume(CHAT, handle, durable="one")
    await eventually(lambda: one.stats.handled == 30)
    assert most == 1
    five = await bus.consume(CHAT, handle, durable="five", concurrency=5)
    await eventually(lambda: five.stats.handled == 30)
    assert most == 5


async def test_order_is_kept_for_each_key_also_when_one_is_tried_again(bus: EventBus) -> None:
    await store(bus, 60)
    seen: dict[int, list[int]] = defaultdict(list)
    running, most = 0, 0

    async def handle(event: Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0.002)
            if event.data["n"] in (6, 7) and not seen[-event.data["n"]]:
                seen[-event.data["n"]].append(1)
                raise ValueError("the first time")
            seen[event.data["key"]].append(event.data["n"])
        finally:
            running -= 1

    consumer = await bus.consume(
        CHAT, handle, durable="keyed", key="data.key", concurrency=8, retry=QUICK
    )
    await eventually(lambda: consumer.stats.handled == 60)
    assert [seen[key] for key in range(3)] == [list(range(key, 60, 3)) for key in range(3)]
    assert most == 3
    assert consumer.stats.failed == 2


async def test_another_replica_takes_the_keys_over(url: str) -> None:
    seen: list[int] = []
    holding = asyncio.Event()

    async def hold(event: Event) -> None:
        holding.set()
        await asyncio.Event().wait()

    async def note(event: Event) -> None:
        seen.append(event.data["n"])

    first, second = EventBus([url]), EventBus([url])
    await first.connect()
    async with second:
        await store(second, 20)
        await first.consume(CHAT, hold, durable="keyed", key="source", ack_wait=1.0)
        await holding.wait()
        consumer = await second.consume(CHAT, note, durable="keyed", key="source", ack_wait=1.0)
        await store(second, 1)
        assert seen == []
        # As a crash: nothing is given back.
        assert first.nc is not None
        first.consumers[0].abort(None)
        await first._connection.close(0.0)
        await eventually(lambda: consumer.stats.handled == 21)
        assert seen == [*range(20), 0]
    await first.disconnect()


async def test_a_handler_may_take_longer_than_ack_wait(bus: EventBus) -> None:
    await store(bus, 3)
    seen: list[int] = []

    async def slow(event: Event) -> None:
        await asyncio.sleep(1.2)
        seen.append(event.data["n"])

    consumer = await bus.consume(CHAT, slow, durable="slow", ack_wait=0.5)
    await eventually(lambda: consumer.stats.handled == 3)
    assert seen == [0, 1, 2]
    assert consumer.stats.redelivered == 0


async def test_batches(bus: EventBus) -> None:
    await store(bus, 100)
    sizes: list[int] = []
    failed = False

    async def handle(events: list[Event]) -> None:
        nonlocal failed
        if 50 in numbers(events) and not failed:
            failed = True
            raise ValueError("once")
        sizes.append(len(events))

    consumer = await bus.consume(CHAT, handle, durable="batches", batch=20, retry=QUICK)
    await eventually(lambda: consumer.stats.handled == 100)
    assert max(sizes) <= 20
    assert max(sizes) > 1
    assert sizes.count(1) >= 1  # what failed with others comes alone


async def test_a_handler_defers_an_event(bus: EventBus) -> None:
    await store(bus, 1)
    tries: list[float] = []

    async def handle(event: Event) -> None:
        tries.append(time.monotonic())
        if len(tries) < 8:
            raise RetryLater(0.02)

    consumer = await bus.consume(CHAT, handle, durable="later", retry=QUICK)
    await eventually(lambda: consumer.stats.handled == 1)
    assert consumer.stats.deferred == 7  # more than attempts: it is no failure
    assert consumer.stats.failed == 0


async def test_a_stop_finishes_what_is_here_and_gives_nothing_back(
    bus: EventBus, other_bus: EventBus
) -> None:
    await store(bus, 50)
    seen: list[int] = []

    async def handle(event: Event) -> None:
        await asyncio.sleep(0.005)
        seen.append(event.data["n"])

    consumer = await bus.consume(CHAT, handle, durable="log")
    await eventually(lambda: len(seen) > 5)
    await consumer.stop()
    later: list[Event] = []
    again = await other_bus.consume(CHAT, later.append, durable="log")
    await store(bus, 1)
    await eventually(lambda: len(later) == 51 - len(seen))
    assert again.stats.redelivered == 0


async def test_a_stop_without_drain_gives_events_back_at_once(
    bus: EventBus, other_bus: EventBus
) -> None:
    await store(bus, 20)
    started = asyncio.Event()

    async def hang(event: Event) -> None:
        started.set()
        await asyncio.Event().wait()

    consumer = await bus.consume(CHAT, hang, durable="log")
    await started.wait()
    await consumer.stop(drain=False)
    later: list[Event] = []
    await other_bus.consume(CHAT, later.append, durable="log")
    await eventually(lambda: len(later) == 20)


async def test_pause_and_resume(bus: EventBus) -> None:
    seen: list[Event] = []
    consumer = await bus.consume(CHAT, seen.append, durable="log")
    await consumer.pause(datetime.now(UTC) + timedelta(hours=1))
    assert (await consumer.info()).paused
    await store(bus, 3)
    assert (await consumer.info()).pending == 3
    await consumer.resume()
    await eventually(lambda: len(seen) == 3)
    assert not (await consumer.info()).paused


async def test_an_existing_durable_is_bound_changed_or_refused(bus: EventBus) -> None:
    seen: list[Event] = []
    for ack_wait in (30.0, 30.0, 10.0):
        consumer = await bus.consume(CHAT, seen.append, durable="log", ack_wait=ack_wait)
        await consumer.stop()
    assert bus.js is not None
    assert (await bus.js.consumer_info("PLATFORM_EVENTS", "log")).config.ack_wait == 10.0
    with pytest.raises(ConsumerMismatchError, match="deliver_policy is 'all', not 'new'") as caught:
        await bus.consume(CHAT, seen.append, durable="log", ack_wait=10.0, start="new")
    assert caught.value.differences == {"deliver_policy": ("new", "all")}
    await bus.js.add_consumer(
        "PLATFORM_EVENTS", ConsumerConfig(durable_name="push", deliver_subject="x")
    )
    with pytest.raises(ConsumerMismatchError, match="deliver_subject"):
        await bus.consume(CHAT, seen.append, durable="push")
    assert not bus.consumers


async def test_a_deleted_consumer_is_made_again(url: str) -> None:
    told: list[Exception] = []
    seen: list[Event] = []
    async with EventBus([url], on_error=lambda error, event: told.append(error)) as bus:
        await bus.consume(CHAT, seen.append, durable="log")
        assert bus.js is not None
        await store(bus, 3)
        await eventually(lambda: len(seen) == 3)
        await bus.js.delete_consumer("PLATFORM_EVENTS", "log")
        await eventually(lambda: told)
        await store(bus, 1)
        await eventually(lambda: len(seen) >= 4)
        assert isinstance(told[0], ConsumerGoneError)


async def test_a_deleted_stream_ends_a_consumer_that_asked_for_it(url: str) -> None:
    told: list[Exception] = []
    async with EventBus([url], on_error=lambda error, event: told.append(error)) as bus:
        consumer = await bus.consume(CHAT, lambda event: None, durable="log", on_deleted="fail")
        assert bus.js is not None
        await bus.js.delete_stream("PLATFORM_EVENTS")
        await eventually(lambda: consumer.ended)
        assert isinstance(consumer.failure, ConsumerGoneError)
        assert told == [consumer.failure]


async def test_it_goes_on_after_the_server_was_killed(server: LocalServer) -> None:
    seen: list[int] = []
    async with EventBus([server.url]) as bus:
        consumer = await bus.consume(
            CHAT, lambda event: seen.append(event.data["n"]), durable="log"
        )
        await store(bus, 10)
        await eventually(lambda: consumer.stats.handled == 10)
        await server.kill()
        await server.start()
        await bus.publish_js(CHAT, {"n": 10})
        began = time.monotonic()
        await eventually(lambda: 10 in seen)
        assert time.monotonic() - began < 10
        assert sorted(set(seen)) == list(range(11))


async def test_a_silent_server_side_is_asked_again(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a leader's death: requests are forgotten, and nobody says so."""
    seen: list[Event] = []
    consumer = await bus.consume(CHAT, seen.append, durable="log")
    pulls = consumer._pulls
    await eventually(lambda: pulls.outstanding)
    # Requests that nobody has any more: another subject's, which nobody answers.
    real, pulls._request_subject = pulls._request_subject, "nobody.there"
    monkeypatch.setattr(pulling, "MISSED_AFTER", 0.2)
    pulls.outstanding = 256
    pulls._request_subject = real
    await store(bus, 300)
    await eventually(lambda: len(seen) == 300)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"subject": "nobody.stores.this"}, NoStreamError, "no stream stores"),
        ({"subject": []}, InvalidOptionError, "at least one"),
        ({"durable": "a.b"}, SubscriptionError, "no durable name"),
        ({"handler": None}, SubscriptionError, "callable"),
        ({"start": "yesterday"}, InvalidOptionError, "1h ago"),
        ({"start": datetime(2020, 1, 1)}, InvalidOptionError, "time zone"),
        ({"start": 0}, InvalidOptionError, "is 1"),
        ({"concurrency": 0}, InvalidOptionError, "concurrency"),
        ({"batch": 5, "key": "source"}, InvalidOptionError, "batch"),
        ({"key": "colour"}, InvalidOptionError, "no field"),
        ({"ack_wait": 0}, InvalidOptionError, "ack_wait"),
        ({"on_deleted": "ignore"}, InvalidOptionError, "recreate"),
    ],
)
async def test_what_cannot_work_is_said_at_once(
    bus: EventBus, arguments: dict[str, object], error: type[Exception], text: str
) -> None:
    given = {"subject": CHAT, "handler": lambda event: None, "durable": "log", **arguments}
    with pytest.raises(error, match=text):
        await bus.consume(**given)  # type: ignore[arg-type]
    assert not bus.consumers


async def test_what_is_forged_is_dropped_and_counted(bus: EventBus, raw: Client) -> None:
    seen: list[Event] = []
    consumer = await bus.consume(CHAT, seen.append, durable="log")
    inbox = consumer._pulls._reply_to
    await raw.publish(inbox, b"{}", reply="x.y")
    await eventually(lambda: consumer.stats.mismatched == 1)
    assert seen == []


async def test_effects_happen_once_although_events_come_twice(server: LocalServer) -> None:
    streams = [
        StreamSpec("IN", ("in.>",)),
        StreamSpec("LEDGER", ("ledger.>",), once=True),
    ]
    async with EventBus([server.url], streams=streams) as bus:
        await bus.publish_many([Event("in.x", "t", "s", {"n": n}) for n in range(20)])
        handled: list[Event] = []

        async def credit(event: Event) -> None:
            handled.append(event)
            event.publish("ledger.credited", {"n": event.data["n"]})
            event.publish("ledger.noted", {"n": event.data["n"]})
            if len(handled) == 3:
                raise ValueError("after publishing: then nothing was")

        for durable_start in ("first", "second"):
            consumer = await bus.consume("in.>", credit, durable="bank", once=True, retry=QUICK)
            await eventually(lambda consumer=consumer: consumer.stats.handled == 20)  # type: ignore[misc]
            await consumer.stop()
            if durable_start == "first":  # everything is delivered again
                assert bus.js is not None
                await bus.js.delete_consumer("IN", "bank")
        assert len(handled) == 41
        assert bus.js is not None
        for subject in ("ledger.credited", "ledger.noted"):
            seen: list[Event] = []
            reader = await bus.consume(subject, seen.append)
            await eventually(lambda seen=seen: len(seen) == 20)  # type: ignore[misc]
            await reader.stop()
            assert sorted(numbers(seen)) == list(range(20))


async def test_once_says_what_its_stream_lacks(bus: EventBus) -> None:
    await store(bus, 1)

    async def credit(event: Event) -> None:
        event.publish("rosey.commands.x.y", {})

    await bus.consume(CHAT, credit, durable="bank", once=True, retry=Retry(attempts=1))
    letters: list[DeadLetter] = []
    while not letters:
        letters = [letter async for letter in bus.dead_letters]
        await asyncio.sleep(0.01)
    assert letters[0].error_type == "NotAllowedByStreamError"
    assert "once=True" in letters[0].error


async def test_publishing_through_an_event_that_is_not_handled_once(bus: EventBus) -> None:
    with pytest.raises(NotOnceError, match=r"use bus\.publish"):
        Event("a", "b", "c", {}).publish("x.y", {})
