"""Subscriptions: every one gets its events, and nothing a handler does ends one."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from nats.aio.client import Client
from waiting import eventually

from rosey import (
    CommandEvent,
    Event,
    EventBus,
    EventDecodeError,
    EventPriority,
    InvalidSubjectError,
    PermissionDeniedError,
    PlatformEvent,
    SubscriptionError,
)
from rosey.core import subscriptions
from rosey.server import LocalServer


async def test_a_delivered_event_knows_where_it_came_from(bus: EventBus) -> None:
    received: list[Event] = []
    await bus.subscribe("a.*", received.append)
    await bus.publish(
        "a.b",
        {"x": 1},
        "me",
        correlation_id="42",
        priority=EventPriority.HIGH,
        metadata={"k": "v"},
        headers={"X-Room": "lobby"},
    )
    await eventually(lambda: received)
    event = received[0]
    assert (event.subject, event.event_type, event.source) == ("a.b", "b", "me")
    assert (event.correlation_id, event.priority) == ("42", EventPriority.HIGH)
    assert event.metadata == {"k": "v"}
    assert event.delivery is not None
    assert (event.delivery.pattern, event.delivery.subject) == ("a.*", "a.b")
    assert event.delivery.headers == {"X-Room": "lobby"}
    assert event.delivery.reply == ""
    assert event.delivery.size == len(event.to_json())


async def test_a_payload_cannot_lie_about_its_subject(bus: EventBus, raw: Client) -> None:
    received: list[Event] = []
    await bus.subscribe("a.>", received.append)
    await raw.publish("a.b", Event("a.admin", "t", "s", {}).to_json())
    await eventually(lambda: received)
    assert received[0].subject == "a.b"


async def test_two_subscriptions_on_one_subject_both_receive_and_end_apart(bus: EventBus) -> None:
    seen: list[str] = []
    first = await bus.subscribe("a", lambda event: seen.append("first"))
    await bus.subscribe("a", lambda event: seen.append("second"))
    await bus.publish("a", {})
    await eventually(lambda: sorted(seen) == ["first", "second"])
    await first.unsubscribe()
    assert first.ended
    assert len(bus.subscriptions) == 1
    await bus.publish("a", {})
    await eventually(lambda: seen.count("second") == 2)
    assert seen.count("first") == 1


async def test_the_server_knows_a_subscription_when_subscribe_returns(
    bus: EventBus, other_bus: EventBus
) -> None:
    for n in range(50):
        received: list[Event] = []
        subscription = await bus.subscribe(f"a.{n}", received.append)
        await other_bus.publish(f"a.{n}", {})
        await eventually(lambda found=received: found)  # type: ignore[misc]
        await subscription.unsubscribe()


async def test_a_queue_group_shares_events(bus: EventBus, other_bus: EventBus) -> None:
    seen: list[str] = []
    first = await bus.subscribe("work", lambda event: seen.append("first"), "workers")
    await other_bus.subscribe("work", lambda event: seen.append("second"), queue="workers")
    for _ in range(200):
        await bus.publish("work", {})
    await eventually(lambda: len(seen) == 200)
    assert 0 < seen.count("first") < 200
    assert first.queue == "workers"


async def test_a_whole_event_of_a_subclass_is_published_and_delivered_as_one(
    bus: EventBus,
) -> None:
    commands: list[CommandEvent] = []
    plain: list[Event] = []

    async def on_command(event: CommandEvent) -> None:
        commands.append(event)

    await bus.subscribe("a", on_command)
    await bus.subscribe("a", plain.append)
    sent = CommandEvent("a", "execute", "me", {}, command="roll", args=["2d6"])
    await bus.publish(sent)
    await eventually(lambda: commands and plain)
    assert commands == [sent]
    assert type(plain[0]) is Event
    assert plain[0].metadata == {"command": "roll"}


async def test_annotations_that_say_nothing_mean_event(bus: EventBus) -> None:
    class Handler:
        def __init__(self) -> None:
            self.received: list[Any] = []

        def __call__(self, event: PlatformEvent) -> None:
            self.received.append(event)

        def no_annotation(self, event):  # type: ignore[no-untyped-def]
            self.received.append(event)

        def unknown(self, event: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
            self.received.append(event)

    handler = Handler()
    for callable_ in (handler, handler.no_annotation, handler.unknown, handler.received.append):
        await bus.subscribe("a", callable_)
    await bus.subscribe("a", functools.partial(handler.no_annotation))
    await bus.publish("a", {})
    await eventually(lambda: len(handler.received) == 5)
    assert {type(event) for event in handler.received} <= {Event, PlatformEvent}


@pytest.mark.parametrize(
    "failure", [ValueError("no"), asyncio.CancelledError(), RecursionError(), KeyError()]
)
async def test_what_a_handler_raises_does_not_end_the_subscription(
    url: str, failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[Exception, Event | None]] = []
    handled: list[int] = []

    async def handler(event: Event) -> None:
        if event.data["n"] == 0:
            raise failure
        handled.append(event.data["n"])

    async with EventBus([url], on_error=lambda *args: told.append(args)) as bus:
        subscription = await bus.subscribe("a", handler)
        for n in range(3):
            await bus.publish("a", {"n": n})
        await eventually(lambda: handled == [1, 2])
        assert (subscription.stats.failed, subscription.stats.handled) == (1, 2)
    [(error, event)] = told
    assert event is not None
    assert event.correlation_id[:8] in caplog.text
    assert failure in (error, error.__cause__)


async def test_an_error_hook_that_fails_changes_nothing(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(error: Exception, event: Event | None) -> None:
        raise RuntimeError("the hook itself")

    handled: list[Event] = []

    def handler(event: Event) -> None:
        handled.append(event)
        raise ValueError

    async with EventBus([url], on_error=hook) as bus:
        await bus.subscribe("a", handler)
        await bus.publish("a", {})
        await bus.publish("a", {})
        await eventually(lambda: len(handled) == 2)
    assert "the error hook failed" in caplog.text


async def test_order_is_kept_unless_concurrency_is_asked_for(bus: EventBus) -> None:
    running = most = 0
    seen: list[int] = []

    async def handler(event: Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        seen.append(event.data["n"])

    await bus.subscribe("serial", handler)
    for n in range(20):
        await bus.publish("serial", {"n": n})
    await eventually(lambda: len(seen) == 20)
    assert seen == list(range(20))
    assert most == 1
    await bus.subscribe("parallel", handler, concurrency=5)
    for n in range(20):
        await bus.publish("parallel", {"n": n})
    await eventually(lambda: len(seen) == 40)
    assert most == 5


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe", b"{}", b"[" * 200_000, b'{"subject":1}'])
async def test_an_undecodable_message_is_counted_logged_and_reported(
    url: str, raw: Client, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Exception] = []
    received: list[Event] = []
    async with EventBus([url], on_error=lambda error, event: told.append(error)) as bus:
        subscription = await bus.subscribe("a", received.append)
        await raw.publish("a", payload)
        await raw.publish("a", Event("a", "t", "s", {}).to_json())
        await eventually(lambda: received)
        assert subscription.stats.undecodable == 1
    assert isinstance(told[0], EventDecodeError)
    assert "dropped" in caplog.text
    assert len(caplog.text) < 3000


async def test_a_slow_handler_drops_what_is_over_the_bound_and_says_so(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subscriptions, "PENDING_MSGS_LIMIT", 10)
    told: list[Exception] = []
    go_on = asyncio.Event()

    async def slow(event: Event) -> None:
        await go_on.wait()

    async with EventBus([url], on_error=lambda error, event: told.append(error)) as bus:
        subscription = await bus.subscribe("a", slow)
        for _ in range(50):
            await bus.publish("a", {})
        await eventually(lambda: subscription.stats.received == 50)
        # One is with the handler already, or not yet.
        assert subscription.stats.dropped in (39, 40)
        assert len(told) == 1  # and not one for each
        go_on.set()
        await eventually(lambda: subscription.pending == 0)
    assert caplog.text.count("too slow") == 1


async def test_bytes_that_wait_are_bounded_too(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "PENDING_BYTES_LIMIT", 10_000)
    go_on = asyncio.Event()

    async def slow(event: Event) -> None:
        await go_on.wait()

    subscription = await bus.subscribe("a", slow)
    for _ in range(20):
        await bus.publish("a", {"text": "x" * 2000})
    await eventually(lambda: subscription.stats.received == 20)
    assert subscription.stats.dropped > 10
    go_on.set()


async def test_a_message_that_was_never_asked_for_is_dropped(bus: EventBus) -> None:
    """A peer can make nats-py deliver to a subscription of its choice."""

    class Forged:
        subject = "admin.cmd"
        data = b"{}"

    received: list[Event] = []
    subscription = await bus.subscribe("a.*", received.append)
    subscription._receive(Forged())  # type: ignore[arg-type]
    await bus.publish("a.b", {})
    await eventually(lambda: received)
    assert subscription.stats.mismatched == 1
    assert len(received) == 1


async def test_drain_handles_what_has_arrived_and_takes_no_more(
    bus: EventBus, other_bus: EventBus
) -> None:
    seen: list[int] = []

    async def handler(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.data["n"])

    subscription = await bus.subscribe("a", handler)
    for n in range(100):
        await other_bus.publish("a", {"n": n})
    await other_bus.flush()
    await subscription.drain()
    assert seen == list(range(100))
    await other_bus.publish("a", {"n": 100})
    await other_bus.flush()
    await bus.flush()
    assert len(seen) == 100
    await subscription.drain()
    await subscription.unsubscribe()


async def test_drain_and_unsubscribe_from_the_handler_itself_end_well(bus: EventBus) -> None:
    ended: list[str] = []

    async def leave(event: Event) -> None:
        await (first.drain() if event.subject == "a" else second.unsubscribe())
        ended.append(event.subject)

    first = await bus.subscribe("a", leave)
    second = await bus.subscribe("b", leave)
    await bus.publish("a", {})
    await bus.publish("b", {})
    await eventually(lambda: sorted(ended) == ["a", "b"])
    assert bus.subscriptions == ()


async def test_a_forbidden_subscription_is_an_error_at_once() -> None:
    config = """authorization { users: [ { user: bot, password: pw, permissions: {
        publish: ">", subscribe: ["open.>", "_INBOX.>"] } } ] }"""
    async with (
        LocalServer(config=config) as server,
        EventBus([server.url], user="bot", password="pw", streams=()) as bus,
    ):
        with pytest.raises(PermissionDeniedError, match=r"closed\.room"):
            await bus.subscribe("closed.room", lambda event: None)
        assert bus.subscriptions == ()
        await bus.subscribe("open.room", lambda event: None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"subject": "a..b"}, "empty token"),
        ({"queue": "a b"}, "queue group"),
        ({"queue": print}, "handler="),
        ({"handler": "workers"}, "callable"),
        ({"concurrency": 0}, "at least 1"),
    ],
)
async def test_bad_arguments_are_refused(
    bus: EventBus, arguments: dict[str, Any], said: str
) -> None:
    good: dict[str, Any] = {"subject": "a", "handler": print}
    with pytest.raises(SubscriptionError, match=said):
        await bus.subscribe(**good | arguments)
    assert bus.subscriptions == ()


async def test_a_bad_pattern_is_a_subscription_error(bus: EventBus) -> None:
    with pytest.raises(InvalidSubjectError):
        await bus.subscribe("", print)


async def test_a_repr_says_what_it_is(bus: EventBus) -> None:
    subscription = await bus.subscribe("a", print, "q")
    assert repr(subscription).startswith("Subscription(a, queue=q, SubscriptionStats(")


class Strict(Event):
    """An event whose own checks raise what nobody expects."""

    def __post_init__(self) -> None:
        self.data["must"]


class UnprintableError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Odd(BaseException):
    """Not even an Exception."""


async def test_nothing_that_a_peer_sends_or_a_handler_raises_ends_a_subscription(
    bus: EventBus,
) -> None:
    strict: list[Event] = []
    seen: list[Event] = []

    def take(event: Strict) -> None:
        strict.append(event)

    def fail(event: Event) -> None:
        seen.append(event)
        raise (UnprintableError if len(seen) == 1 else Odd)

    first = await bus.subscribe("a", take)
    second = await bus.subscribe("a", fail)
    await bus.publish("a", {})
    await bus.publish("a", {"must": 1})
    await bus.publish("a", {"must": 1})
    await eventually(lambda: len(strict) == 2 and len(seen) == 3)
    assert first.stats.undecodable == 1
    await eventually(lambda: second.stats.failed == 3)
    assert set(bus.subscriptions) == {first, second}
