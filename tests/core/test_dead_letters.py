"""Dead letters: nothing that fails is dropped, blocks others, or is kept twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig
from waiting import LONGEST, eventually

from rosey import (
    DeadLetter,
    Event,
    EventBus,
    InvalidOptionError,
    NoSuchDeadLetterError,
    Reject,
    Retry,
    StreamSpec,
)
from rosey.core import consumers
from rosey.core import dead_letters as dead_letters_module
from rosey.server import LocalServer

CHAT = "rosey.platform.x.chat"
QUICK = Retry(attempts=3, backoff=lambda attempt: 0.02)


async def letters_of(bus: EventBus, count: int) -> list[DeadLetter]:
    """The dead letters, as soon as there are so many."""
    async with asyncio.timeout(LONGEST):
        while True:
            found = [letter async for letter in bus.dead_letters]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)


async def fail(event: Event) -> None:
    raise ValueError(f"cannot handle\nthis: {event.data['n']} \u00e9\x00")


async def test_what_fails_each_time_is_kept_whole_with_the_reason(bus: EventBus) -> None:
    before = datetime.now(UTC)
    await bus.publish_js(CHAT, {"n": 1}, headers={"Trace": "abc"})
    consumer = await bus.consume(CHAT, fail, durable="log", retry=QUICK)
    (letter,) = await letters_of(bus, 1)
    assert (letter.subject, letter.stream, letter.stream_sequence) == (CHAT, "PLATFORM_EVENTS", 1)
    assert (letter.consumer, letter.attempts, letter.redriven) == ("log", 3, False)
    assert letter.error_type == "ValueError"
    assert letter.error == "cannot handle\nthis: 1 \u00e9\x00"
    assert "in fail" in letter.traceback
    assert "raise ValueError" in letter.traceback
    assert letter.headers == {"Trace": "abc"}
    assert Event.from_json(letter.payload).data == {"n": 1}
    assert before <= letter.first <= letter.last <= datetime.now(UTC)
    assert (await bus.dead_letters.get(letter.sequence)) == letter
    await eventually(lambda: consumer.stats.dead == 1)
    assert consumer.stats.failed == 3
    await bus.flush()
    assert (await consumer.info()).in_flight == 0


async def test_a_rejected_event_is_not_tried_again(bus: EventBus) -> None:
    tries = 0

    async def reject(event: Event) -> None:
        nonlocal tries
        tries += 1
        raise Reject("no such user")

    await bus.publish_js(CHAT, {})
    await bus.consume(CHAT, reject, durable="log", retry=QUICK)
    (letter,) = await letters_of(bus, 1)
    assert (letter.error_type, letter.error) == ("Reject", "no such user")
    assert tries == 1


async def test_bytes_that_are_no_event(bus: EventBus, raw: Client) -> None:
    await raw.jetstream().publish(CHAT, b"\xff\x00 not json", headers={"Nats-Msg-Id": "1"})
    seen: list[Event] = []
    await bus.consume(CHAT, seen.append, durable="log")
    (letter,) = await letters_of(bus, 1)
    assert letter.payload == b"\xff\x00 not json"
    assert letter.error_type == "EventDecodeError"
    assert letter.headers == {}


async def test_poison_delays_nobody(bus: EventBus) -> None:
    handled: list[int] = []

    async def handle(event: Event) -> None:
        if event.data["n"] % 100 == 50:
            raise ValueError("poison")
        handled.append(event.data["n"])

    await bus.publish_many([Event(CHAT, "t", "s", {"n": n}) for n in range(1000)])
    consumer = await bus.consume(CHAT, handle, durable="log", retry=QUICK)
    await eventually(lambda: consumer.stats.dead == 10)
    assert len(handled) == len(set(handled)) == 990
    assert len(await letters_of(bus, 10)) == 10


async def test_an_event_that_is_as_large_as_the_server_takes(bus: EventBus) -> None:
    """With why it failed it would be larger: its own stream keeps the bytes."""
    text = "x" * (1024 * 1024 - 400)
    await bus.publish_js(CHAT, {"text": text})
    await bus.consume(CHAT, fail, durable="log", retry=Retry(attempts=1))
    (letter,) = await letters_of(bus, 1)
    assert Event.from_json(letter.payload).data == {"text": text}


async def test_letters_wait_for_their_stream(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full or missing: the event is kept here and tried again, never dropped."""
    monkeypatch.setattr(consumers, "DEAD_LETTER_PAUSE", 0.05)
    told: list[Exception] = []
    async with EventBus([url], on_error=lambda error, event: told.append(error)) as bus:
        consumer = await bus.consume(CHAT, fail, durable="log", retry=QUICK, ack_wait=0.5)
        assert bus.js is not None
        await bus.js.delete_stream("DEAD_LETTERS")
        await bus.publish_js(CHAT, {"n": 1})
        await eventually(lambda: any("dead.letter" in str(error) for error in told))
        assert consumer.stats.dead == 0
        await bus.js.add_stream(StreamConfig(name="DEAD_LETTERS", subjects=["rosey.dead.>"]))
        await eventually(lambda: consumer.stats.dead == 1)
        await letters_of(bus, 1)


async def test_what_the_server_gave_up_is_found_by_whichever_bus_is_alive(
    bus: EventBus, raw: Client
) -> None:
    """A consumer of somebody else, whose worker never answers."""
    await bus.consume("rosey.commands.>", lambda event: None, durable="mine")
    js = raw.jetstream()
    await bus.publish_js(CHAT, {"n": 7})
    await js.add_consumer(
        "PLATFORM_EVENTS",
        ConsumerConfig(
            durable_name="theirs", ack_policy=AckPolicy.EXPLICIT, ack_wait=0.1, max_deliver=2
        ),
    )
    worker = await js.pull_subscribe_bind("theirs", "PLATFORM_EVENTS")
    for _ in range(2):
        await worker.fetch(1, timeout=5)
    waiting = asyncio.ensure_future(worker.fetch(1, timeout=20))
    (letter,) = await letters_of(bus, 1)
    assert letter.consumer == "theirs"
    assert letter.attempts == 2
    assert Event.from_json(letter.payload).data == {"n": 7}
    waiting.cancel()
    await asyncio.wait([waiting])


async def some_letters(bus: EventBus, raw: Client) -> list[DeadLetter]:
    for n in range(3):
        await bus.publish_js(CHAT, {"n": n})
    await bus.publish_js("rosey.platform.y.chat", {"n": 3})
    await raw.jetstream().publish(CHAT, b"no event")
    consumer = await bus.consume("rosey.platform.>", fail, durable="log", retry=Retry(attempts=1))
    found = await letters_of(bus, 5)
    await consumer.stop()
    return found


async def test_no_letters_before_anything_failed(bus: EventBus) -> None:
    assert [letter async for letter in bus.dead_letters] == []


async def test_finding_letters(bus: EventBus, raw: Client) -> None:
    await some_letters(bus, raw)
    find = bus.dead_letters.find
    assert len([letter async for letter in find(subject=CHAT)]) == 4
    assert len([letter async for letter in find(error_type="EventDecodeError")]) == 1
    assert len([letter async for letter in find(stream="COMMANDS")]) == 0
    assert len([letter async for letter in find(consumer="log", redriven=False)]) == 5
    with pytest.raises(NoSuchDeadLetterError, match="no dead letter 999"):
        await bus.dead_letters.get(999)


async def test_redriving_sends_again_once(bus: EventBus, raw: Client) -> None:
    found = await some_letters(bus, raw)
    seen: list[Event] = []
    await bus.consume("rosey.platform.>", seen.append, durable="fixed", start="new")
    planned = await bus.dead_letters.redrive(dry_run=True, error_type="ValueError")
    assert [letter.sequence for letter in planned] == [letter.sequence for letter in found[:4]]
    assert seen == []
    sent = await bus.dead_letters.redrive(rate=1000, error_type="ValueError")
    assert [letter.sequence for letter in sent] == [letter.sequence for letter in found[:4]]
    assert await bus.dead_letters.redrive(rate=1000, error_type="ValueError") == []
    assert await bus.dead_letters.redrive(found[0].sequence) == []
    await eventually(lambda: len(seen) == 4)
    assert sorted(event.data["n"] for event in seen) == [0, 1, 2, 3]
    assert seen[0].delivery is not None
    assert seen[0].delivery.headers["Rosey-Redriven-From"] == str(found[0].sequence)
    assert (await bus.dead_letters.get(found[0].sequence)).redriven


async def test_redriving_is_paced(bus: EventBus, raw: Client) -> None:
    await some_letters(bus, raw)
    began = asyncio.get_running_loop().time()
    await bus.dead_letters.redrive(rate=20)
    assert asyncio.get_running_loop().time() - began >= 4 / 20
    with pytest.raises(InvalidOptionError, match="rate"):
        await bus.dead_letters.redrive(rate=0)


async def test_purging(bus: EventBus, raw: Client) -> None:
    found = await some_letters(bus, raw)
    with pytest.raises(InvalidOptionError, match="say which"):
        await bus.dead_letters.purge()
    assert await bus.dead_letters.purge(found[0].sequence) == 1
    assert await bus.dead_letters.purge(error_type="EventDecodeError") == 1
    assert len([letter async for letter in bus.dead_letters]) == 3


async def test_one_letter_however_often_it_is_written(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies between storing the letter and ending the original."""
    real = dead_letters_module.DeadLetterLog.write

    async def write_and_die(self: object, *arguments: object) -> None:
        await real(self, *arguments)  # type: ignore[arg-type]
        raise asyncio.CancelledError

    monkeypatch.setattr(dead_letters_module.DeadLetterLog, "write", write_and_die)
    async with EventBus([url]) as bus:
        await bus.publish_js(CHAT, {"n": 1})
        first = await bus.consume(CHAT, fail, durable="log", retry=Retry(attempts=1), ack_wait=0.3)
        await letters_of(bus, 1)
        first.abort(None)
        monkeypatch.setattr(dead_letters_module.DeadLetterLog, "write", real)
        again = await bus.consume(CHAT, fail, durable="log", retry=Retry(attempts=1), ack_wait=0.3)
        await eventually(lambda: again.stats.dead == 1)
        assert len(await letters_of(bus, 1)) == 1


async def test_a_work_queue_is_rid_of_what_the_server_gave_up(server: LocalServer) -> None:
    work = StreamSpec("WORK", ("work.>",), retention="workqueue")
    async with EventBus([server.url], streams=[work]) as bus:
        await bus.consume("work.done", lambda event: None, durable="done")
        await bus.publish_js("work.todo", {"n": 1})
        assert bus.js is not None
        await bus.js.add_consumer(
            "WORK",
            ConsumerConfig(
                durable_name="theirs",
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=0.1,
                max_deliver=1,
                filter_subject="work.todo",
            ),
        )
        worker = await bus.js.pull_subscribe_bind("theirs", "WORK")
        await worker.fetch(1, timeout=5)
        waiting = asyncio.ensure_future(worker.fetch(1, timeout=20))
        await letters_of(bus, 1)
        js = bus.js
        async with asyncio.timeout(LONGEST):
            while (await js.stream_info("WORK")).state.messages:
                await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait([waiting])
