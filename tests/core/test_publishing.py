"""publish and publish_js: what is sent, what is stored, and what is refused before it is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from waiting import eventually, server_knows

from rosey import (
    Batch,
    Event,
    EventBus,
    EventEncodeError,
    InvalidHeaderError,
    InvalidOptionError,
    InvalidSubjectError,
    NoStreamError,
    NotAllowedByStreamError,
    PayloadTooLargeError,
    PublishError,
    PublishManyError,
    PublishTimeoutError,
    SeveralStreamsError,
    StreamFullError,
    StreamSpec,
    WrongSequenceError,
)
from rosey.core.events import EventPriority
from rosey.server import LocalServer
from rosey.testing import FaultProxy


async def test_publish_js_returns_where_it_is_stored(bus: EventBus) -> None:
    first = await bus.publish_js("rosey.platform.test.chat", {"n": 1}, "me")
    second = await bus.publish_js(Event("rosey.platform.test.chat", "chat", "me", {"n": 2}))
    assert first.stream == second.stream == "PLATFORM_EVENTS"
    assert second.seq > first.seq
    assert not first.duplicate
    assert bus.js is not None
    stored = await bus.js.get_msg("PLATFORM_EVENTS", second.seq)
    assert stored.data is not None
    assert Event.from_json(stored.data).data == {"n": 2}


async def test_subscribers_see_what_is_stored_and_answering_it_disturbs_nobody(
    bus: EventBus,
) -> None:
    received: list[Event] = []

    async def handler(event: Event) -> dict[str, Any]:
        received.append(event)
        return {"not": "asked for"}

    async def failing(event: Event) -> None:
        raise ValueError

    await bus.subscribe("rosey.platform.>", handler)
    await bus.subscribe("rosey.platform.>", failing)
    for n in range(50):
        await bus.publish_js("rosey.platform.x", {"n": n})
    await eventually(lambda: len(received) == 50)


async def test_a_raw_responder_on_a_stored_subject_is_not_taken_for_the_stream(
    bus: EventBus, raw: Client
) -> None:
    async def on_message(msg: Msg) -> None:
        await raw.publish(msg.reply, b'{"stream":"FORGED","seq":1,"event_type":"x"}')
        await raw.publish(msg.reply, b"hello")

    await raw.subscribe("rosey.platform.x", cb=on_message)
    await server_knows(raw)
    for _ in range(20):
        assert (await bus.publish_js("rosey.platform.x", {})).stream == "PLATFORM_EVENTS"


async def test_where_no_stream_stores_the_subject_it_says_so_at_once(bus: EventBus) -> None:
    with pytest.raises(NoStreamError, match=r"rosey\.events\.x"):
        await bus.publish_js("rosey.events.x", {}, timeout=60)


async def test_where_only_a_subscriber_listens_it_says_so_well_before_the_timeout(
    bus: EventBus,
) -> None:
    await bus.subscribe("rosey.events.x", lambda event: None)
    started = time.monotonic()
    with pytest.raises(NoStreamError):
        await bus.publish_js("rosey.events.x", {}, timeout=60)
    assert time.monotonic() - started < 20


async def test_without_jetstream_it_times_out_with_a_typed_error() -> None:
    async with (
        LocalServer(jetstream=False) as server,
        EventBus([server.url], streams=()) as bus,
    ):
        with pytest.raises(PublishTimeoutError) as caught:
            await bus.publish_js("a", {}, timeout=0.5)
        assert isinstance(caught.value, TimeoutError)


async def test_an_eaten_acknowledgement_is_asked_for_again_and_stored_once(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = EventBus([server.url])
    inbox = bus._connection._inbox
    deliver = inbox.deliver
    eaten: list[Msg] = []

    def eat_first_ack(msg: Msg) -> None:
        if msg.data.startswith(b'{"stream"') and not eaten:
            eaten.append(msg)
        else:
            deliver(msg)

    monkeypatch.setattr(inbox, "deliver", eat_first_ack)
    await bus.connect()
    ack = await bus.publish_js("rosey.platform.x", {})
    assert eaten
    assert ack.duplicate
    assert bus.js is not None
    assert (await bus.js.stream_info("PLATFORM_EVENTS")).state.last_seq == ack.seq
    await bus.disconnect()


async def test_what_the_stream_refuses_is_an_error_with_its_reason(url: str) -> None:
    async with EventBus([url], streams=[StreamSpec("SMALL", ("small.>",))]) as bus:
        assert bus.js is not None
        config = (await bus.js.stream_info("SMALL")).config
        config.max_msg_size = 10
        await bus.js.update_stream(config)
        with pytest.raises(PublishError, match="message size"):
            await bus.publish_js("small.x", {})
        await bus.js.delete_stream("SMALL")


async def test_a_full_stream_that_refuses_new_events_is_an_error_at_once(url: str) -> None:
    async with EventBus([url], streams=[StreamSpec("FULL", ("full.>",), max_bytes=100)]) as bus:
        assert bus.js is not None
        config = (await bus.js.stream_info("FULL")).config
        config.discard = "new"  # type: ignore[assignment]
        await bus.js.update_stream(config)
        with pytest.raises(PublishError, match="maximum bytes"):
            await bus.publish_js("full.x", {}, timeout=60)
        await bus.js.delete_stream("FULL")


@pytest.mark.parametrize("call", ["publish", "publish_js", "request"])
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"subject": "a.*"}, InvalidSubjectError),
        ({"subject": "a b"}, InvalidSubjectError),
        ({"subject": Event("a..b", "t", "s", {})}, InvalidSubjectError),
        ({"subject": Event("a", "t", "s", {}), "data": {}}, PublishError),
        ({"data": [1]}, EventEncodeError),
        ({"data": {"x": float("nan")}}, EventEncodeError),
        ({"source": None}, EventEncodeError),
        ({"priority": "soon"}, EventEncodeError),
        ({"headers": {"a": "b\r\nc"}}, InvalidHeaderError),
        ({"data": {"x": "y" * 5_000_000}}, PayloadTooLargeError),
        ({"headers": {"a": "b" * 1_048_570}}, PayloadTooLargeError),
    ],
)
async def test_what_cannot_be_sent_is_refused_and_the_bus_goes_on(
    bus: EventBus, call: str, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        await getattr(bus, call)(**{"subject": "rosey.platform.x"} | arguments)
    assert isinstance(caught.value, PublishError)
    assert (await bus.health()).ok


async def test_a_payload_of_just_the_limit_passes_and_one_byte_more_does_not(
    bus: EventBus,
) -> None:
    received: list[Event] = []
    await bus.subscribe("a", received.append)
    assert bus.nc is not None
    limit = bus.nc.max_payload
    event = Event("a", "t", "s", {"text": ""})
    event.data["text"] = "x" * (limit - len(event.to_json()))
    await bus.publish(event)
    await eventually(lambda: received)
    event.data["text"] += "x"
    with pytest.raises(PayloadTooLargeError) as caught:
        await bus.publish(event)
    assert (caught.value.size, caught.value.limit) == (limit + 1, limit)


async def test_none_and_plain_words_mean_what_they_say(bus: EventBus) -> None:
    received: list[Event] = []
    await bus.subscribe("a", received.append)
    await bus.publish("a", correlation_id=None, priority="high", event_type="kind")
    await eventually(lambda: received)
    assert received[0].data == {}
    assert received[0].event_type == "kind"
    assert received[0].priority is EventPriority.HIGH
    assert received[0].correlation_id


async def test_cancelled_publishes_leave_the_bus_working(bus: EventBus) -> None:
    for n in range(30):
        publishing = asyncio.create_task(bus.publish_js("rosey.platform.x", {"n": n}))
        for _ in range(n % 5):
            await asyncio.sleep(0)
        publishing.cancel()
        await asyncio.wait([publishing])
    assert (await bus.publish_js("rosey.platform.x", {})).seq >= 1


async def test_an_acknowledgement_that_comes_late_counts(server: LocalServer) -> None:
    """Later than the first try's patience: any try's acknowledgement will do."""
    async with FaultProxy(server.port) as proxy, EventBus([proxy.url]) as bus:
        proxy.delay(1.3)
        ack = await bus.publish_js("rosey.platform.x", {}, timeout=15)
        assert not ack.duplicate
        proxy.heal()
        assert bus.js is not None
        assert (await bus.js.stream_info("PLATFORM_EVENTS")).state.messages == 1


STREAMS = [
    StreamSpec("LOG", ("log.>",), allow_ttl=True, allow_atomic=True),
    StreamSpec("SMALL", ("small.>",), max_messages=1, discard="new"),
]


@pytest.fixture
async def log(server: LocalServer) -> AsyncIterator[EventBus]:
    async with EventBus([server.url], streams=STREAMS) as connected:
        yield connected


async def stored(bus: EventBus, stream: str = "LOG") -> int:
    assert bus.js is not None
    return (await bus.js.stream_info(stream)).state.messages


async def test_one_message_id_is_stored_once(log: EventBus) -> None:
    first = await log.publish_js("log.x", {}, msg_id="a")
    second = await log.publish_js("log.x", {}, msg_id="a")
    assert (first.seq, first.duplicate) == (1, False)
    assert (second.seq, second.duplicate) == (1, True)


async def test_expected_sequences(log: EventBus) -> None:
    await log.publish_js("log.x", {}, expect_last_sequence=0)
    await log.publish_js("log.y", {}, expect_last_subject_sequence=0)
    await log.publish_js("log.x", {}, expect_last_subject_sequence=1)
    with pytest.raises(WrongSequenceError, match="wrong last sequence"):
        await log.publish_js("log.x", {}, expect_last_sequence=1)
    with pytest.raises(WrongSequenceError):
        await log.publish_js("log.x", {}, expect_last_subject_sequence=1)
    assert await stored(log) == 3


async def test_an_event_with_a_time_to_live(log: EventBus) -> None:
    await log.publish_js("log.x", {}, ttl=timedelta(seconds=1))
    assert await stored(log) == 1
    deadline = time.monotonic() + 20
    while await stored(log):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    with pytest.raises(InvalidOptionError, match="whole seconds"):
        await log.publish_js("log.x", {}, ttl=0.5)
    with pytest.raises(NotAllowedByStreamError):
        await log.publish_js("small.x", {}, ttl=5)


async def test_a_full_stream_that_refuses(log: EventBus) -> None:
    await log.publish_js("small.x", {})
    with pytest.raises(StreamFullError):
        await log.publish_js("small.x", {})


async def test_publishing_many(log: EventBus) -> None:
    events = [Event("log.x", "t", "s", {"n": n}) for n in range(1000)]
    acks = await log.publish_many(events)
    assert len({ack.seq for ack in acks}) == 1000
    assert await log.publish_many([]) == []
    mixed = [events[0], Event("nobody.stores", "t", "s", {}), Event("a b", "t", "s", {}), events[1]]
    with pytest.raises(PublishManyError, match="2 of 4 events were not stored") as caught:
        await log.publish_many(mixed)
    assert {number: type(error) for number, error in caught.value.failures.items()} == {
        1: NoStreamError,
        2: InvalidSubjectError,
    }
    assert [ack is not None for ack in caught.value.acks] == [True, False, False, True]
    assert await stored(log) == 1002


async def send_batch(bus: EventBus, stream: str, *subjects: str, last: int | None = None) -> Batch:
    """A batch of events on `subjects`; the last may expect a sequence."""
    async with bus.batch(stream) as batch:
        for subject in subjects:
            expected = last if subject is subjects[-1] else None
            batch.publish(subject, {}, expect_last_subject_sequence=expected)
    return batch


async def test_a_batch_is_stored_whole_or_not_at_all(log: EventBus) -> None:
    batch = await send_batch(log, "LOG", "log.x", "log.x", "log.y")
    assert batch.ack is not None
    assert (batch.ack.stream, batch.ack.seq) == ("LOG", 3)
    with pytest.raises(InvalidSubjectError):
        await send_batch(log, "LOG", "log.x", "log x")
    with pytest.raises(WrongSequenceError):
        await send_batch(log, "LOG", "log.y", "log.x", last=1)
    with pytest.raises(SeveralStreamsError, match="does not store all"):
        await send_batch(log, "LOG", "small.x", "log.x")
    with pytest.raises(NotAllowedByStreamError):
        await send_batch(log, "SMALL", "small.x")
    assert await stored(log) == 3
    assert await stored(log, "SMALL") == 0
