"""Requests: the handler's answer comes back, or an error that says why it does not."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from waiting import eventually, server_knows

from rosey import (
    Event,
    EventBus,
    EventDecodeError,
    NoReplySubjectError,
    NoRespondersError,
    PermissionDeniedError,
    RemoteError,
    RequestTimeoutError,
)
from rosey.server import LocalServer


async def roll(event: Event) -> dict[str, Any]:
    return {"total": 7, "asked": event.data}


async def test_a_returned_dict_is_the_answer_and_carries_the_requests_id(
    bus: EventBus, other_bus: EventBus
) -> None:
    await other_bus.subscribe("dice", roll)
    answer = await bus.request("dice", {"dice": "2d6"}, source="me", correlation_id="id-1")
    assert answer.data == {"total": 7, "asked": {"dice": "2d6"}}
    assert answer.correlation_id == "id-1"
    assert (answer.subject, answer.event_type) == ("dice", "response")


async def test_a_returned_event_is_the_answer_with_all_it_has(bus: EventBus) -> None:
    async def handler(event: Event) -> Event:
        assert (event.source, event.event_type) == ("me", "request")
        return Event("anything", "rolled", "dice", {"total": 7}, metadata={"k": "v"})

    await bus.subscribe("dice", handler)
    answer = await bus.request("dice", {}, source="me")
    assert (answer.event_type, answer.source, answer.metadata) == ("rolled", "dice", {"k": "v"})
    assert answer.delivery is not None


async def test_a_sync_handler_answers_too(bus: EventBus) -> None:
    await bus.subscribe("dice", lambda event: {"total": 3})
    assert (await bus.request("dice", {})).data == {"total": 3}


@pytest.mark.parametrize("subject", ["rosey.commands.dice.execute", "rosey.platform.x.y"])
async def test_on_a_stored_subject_the_handlers_answer_counts_and_not_the_streams(
    bus: EventBus, subject: str
) -> None:
    async def late(event: Event) -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"total": 7}

    await bus.subscribe(subject, late)
    assert (await bus.request(subject, {})).data == {"total": 7}


async def test_a_stored_request_nobody_serves_says_so(bus: EventBus) -> None:
    with pytest.raises(RequestTimeoutError, match="COMMANDS stored it") as caught:
        await bus.request("rosey.commands.nobody.execute", {}, timeout=0.2)
    assert isinstance(caught.value, TimeoutError)


async def test_a_request_nobody_serves_fails_at_once(bus: EventBus) -> None:
    started = time.monotonic()
    with pytest.raises(NoRespondersError, match=r"nobody\.home"):
        await bus.request("nobody.home", {}, timeout=60)
    assert time.monotonic() - started < 10


async def test_a_silent_handler_is_a_timeout(bus: EventBus) -> None:
    await bus.subscribe("silent", lambda event: None)
    with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
        await bus.request("silent", {}, timeout=0.1)


async def test_reply_answers_from_the_handler_or_later(bus: EventBus) -> None:
    asked: list[Event] = []
    await bus.subscribe("later", asked.append)
    asking = asyncio.create_task(bus.request("later", {}, correlation_id="id-2"))
    await eventually(lambda: asked)
    await bus.reply(asked[0], {"answer": 1}, source="me")
    answer = await asking
    assert (answer.data, answer.correlation_id, answer.source) == ({"answer": 1}, "id-2", "me")


async def test_reply_takes_a_nats_message(bus: EventBus, raw: Client) -> None:
    async def on_message(msg: Msg) -> None:
        await bus.reply(msg, {"answer": 1})

    await raw.subscribe("raw", cb=on_message)
    await server_knows(raw)
    assert (await bus.request("raw", {}, correlation_id="id-3")).correlation_id == "id-3"
    other = await raw.request("raw", b"not an event", timeout=5)
    assert Event.from_json(other.data).data == {"answer": 1}


async def test_reply_where_nobody_waits_is_an_error(bus: EventBus) -> None:
    received: list[Event] = []
    await bus.subscribe("a", received.append)
    await bus.publish("a", {})
    await eventually(lambda: received)
    for event in (received[0], Event("a", "b", "c", {})):
        with pytest.raises(NoReplySubjectError, match="nobody waits"):
            await bus.reply(event, {})


async def test_a_failing_handler_fails_the_request_without_telling_secrets(
    bus: EventBus,
) -> None:
    async def handler(event: Event) -> None:
        raise ValueError("password is s3cret")

    await bus.subscribe("a", handler)
    with pytest.raises(RemoteError, match="ValueError") as caught:
        await bus.request("a", {})
    assert caught.value.code == 500
    assert "s3cret" not in str(caught.value)


async def test_a_handler_says_no_with_a_code_and_any_text(bus: EventBus) -> None:
    text = "no dice, überhaupt\nsecond line"

    async def handler(event: Event) -> None:
        raise RemoteError(404, text)

    subscription = await bus.subscribe("a", handler)
    with pytest.raises(RemoteError) as caught:
        await bus.request("a", {})
    assert (caught.value.code, caught.value.message) == (404, text)
    assert subscription.stats.failed == 0


async def test_errors_are_those_of_nats_services(bus: EventBus, raw: Client) -> None:
    async def no(event: Event) -> None:
        raise RemoteError(404, "line\nline")

    async def on_message(msg: Msg) -> None:
        headers = {"Nats-Service-Error-Code": "oops", "Nats-Service-Error": "from afar"}
        await raw.publish(msg.reply, b"whatever", headers=headers)

    await bus.subscribe("ours", no)
    answer = await raw.request("ours", Event("a", "b", "c", {}).to_json(), timeout=5)
    assert answer.headers == {
        "Nats-Service-Error-Code": "404",
        "Nats-Service-Error": "line line",
    }
    await raw.subscribe("theirs", cb=on_message)
    await server_knows(raw)
    with pytest.raises(RemoteError, match="from afar") as caught:
        await bus.request("theirs", {})
    assert caught.value.code == 500


@pytest.mark.parametrize("answer", [7, "text", [1], {"x": object()}, {"x": "y" * 2_000_000}])
async def test_an_answer_that_cannot_be_sent_is_an_error_on_both_sides(
    url: str, answer: object
) -> None:
    told: list[Exception] = []
    async with EventBus([url], on_error=lambda error, event: told.append(error)) as bus:
        subscription = await bus.subscribe("a", lambda event: answer)
        with pytest.raises(RemoteError, match="Error"):
            await bus.request("a", {})
        assert subscription.stats.failed == 1
    assert told


async def test_no_answer_goes_to_what_is_no_inbox(bus: EventBus, raw: Client) -> None:
    """A peer must not make us publish, with our permissions, where it may not."""
    asked: list[Event] = []
    reached: list[Event] = []

    async def handler(event: Event) -> dict[str, Any]:
        asked.append(event)
        if event.data:
            raise ValueError
        return {"total": 7}

    await bus.subscribe("dice", handler)
    await bus.subscribe("rosey.admin.>", reached.append)
    good, failing = Event("a", "b", "c", {}), Event("a", "b", "c", {"x": 1})
    for payload in (b"{}", good.to_json(), failing.to_json()):
        await raw.publish("dice", payload, reply="rosey.admin.kill")
    await eventually(lambda: len(asked) == 2)
    with pytest.raises(NoReplySubjectError, match="no inbox"):
        await bus.reply(asked[0], {})
    await bus.flush()
    assert reached == []


async def test_a_request_that_is_no_event_is_answered_with_an_error(
    bus: EventBus, raw: Client
) -> None:
    await bus.subscribe("a", roll)
    answer = await raw.request("a", b"hello", timeout=5)
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "400"


@pytest.mark.parametrize("payload", [b'{"ok":true}', b"hello", b"", b'{"stream":"x"', b"[1]"])
async def test_an_answer_that_is_no_event_is_a_typed_error(
    bus: EventBus, raw: Client, payload: bytes
) -> None:
    async def on_message(msg: Msg) -> None:
        await raw.publish(msg.reply, payload)

    await raw.subscribe("a", cb=on_message)
    await server_knows(raw)
    with pytest.raises(EventDecodeError):
        await bus.request("a", {}, timeout=5)


async def test_many_requests_at_once_get_their_own_answers(bus: EventBus) -> None:
    async def echo(event: Event) -> dict[str, Any]:
        await asyncio.sleep(0.001 * (event.data["n"] % 3))
        return event.data

    await bus.subscribe("echo", echo, concurrency=20)
    answers = await asyncio.gather(*(bus.request("echo", {"n": n}) for n in range(200)))
    assert [answer.data["n"] for answer in answers] == list(range(200))


async def test_a_late_or_second_answer_is_dropped_in_silence(
    url: str, raw: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async def twice(msg: Msg) -> None:
        for n in range(2):
            await raw.publish(msg.reply, Event("a", "b", "c", {"n": n}).to_json())

    await raw.subscribe("a", cb=twice)
    await server_knows(raw)
    async with EventBus([url]) as bus:
        assert (await bus.request("a", {})).data == {"n": 0}
        await server_knows(raw)
        await bus.flush()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_cancelled_request_leaves_the_bus_working(bus: EventBus) -> None:
    await bus.subscribe("silent", lambda event: None)
    await bus.subscribe("dice", roll)
    for _ in range(20):
        asking = asyncio.create_task(bus.request("silent", {}))
        await asyncio.sleep(0)
        asking.cancel()
    assert (await bus.request("dice", {})).data["total"] == 7


async def test_a_forbidden_request_fails_at_once() -> None:
    config = """authorization { users: [ { user: bot, password: pw, permissions: {
        publish: ["open.>", "_INBOX.>"], subscribe: ">" } } ] }"""
    async with (
        LocalServer(config=config) as server,
        EventBus([server.url], user="bot", password="pw", streams=()) as bus,
    ):
        started = time.monotonic()
        with pytest.raises(PermissionDeniedError, match=r"closed\.room"):
            await bus.request("Closed.Room".lower(), {}, timeout=60)
        assert time.monotonic() - started < 10


async def test_a_handler_may_request_and_publish_itself(bus: EventBus) -> None:
    async def outer(event: Event) -> dict[str, Any]:
        inner = await bus.request("inner", {"n": event.data["n"] + 1})
        return {"n": inner.data["n"] + 1}

    await bus.subscribe("inner", lambda event: {"n": event.data["n"] + 1})
    await bus.subscribe("outer", outer)
    assert (await bus.request("outer", {"n": 0})).data == {"n": 3}
