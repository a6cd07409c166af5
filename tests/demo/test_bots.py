"""The demo's bots on a real server, and the verdict on what they did."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from waiting import eventually

from rosey import Event, EventBus, PlatformEvent
from rosey.demo.bots import CHAT, MESSAGE, SAY, ChatLog, CommandHandler, Router, catch_up
from rosey.demo.scenario import Outcome
from rosey.server import LocalServer


@pytest.fixture
async def bus(server: LocalServer) -> AsyncIterator[EventBus]:
    """On a server of its own: the bots read the whole stream."""
    async with EventBus([server.url]) as connected:
        yield connected


def chat(text: str) -> PlatformEvent:
    return PlatformEvent(CHAT, "chat", "test", {"username": "Ann", "msg": text}, platform="cytube")


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        ("!roll 1d1", "Ann: 1 = 1"),
        ("!roll", "Ann: "),
        ("!roll lots", "Ann: roll what?"),
        ("!roll 2d0", "Ann: roll what?"),
        ("!np", "Ann: now playing"),
        ("!Dance", "Ann: there is no !dance"),
        ("!  ", "Ann: !roll"),
        ("!a.*.> &amp; co", "Ann: there is no !a____"),
    ],
)
async def test_a_command_in_the_chat_is_answered_there(
    bus: EventBus, said: str, answered: str
) -> None:
    answers: list[Event] = []
    messages: list[Event] = []
    await bus.subscribe(SAY, answers.append)
    await bus.subscribe(MESSAGE, messages.append)
    router, handler = Router(bus), CommandHandler(bus)
    await router.start()
    await handler.start()
    await bus.publish_js(chat("hello &amp; good evening"))
    await bus.publish_js(chat(said))
    await eventually(lambda: answers and len(messages) == 2)
    assert answers[0].data["msg"].startswith(answered)
    assert "hello & good evening" in [message.data["text"] for message in messages]
    await eventually(lambda: router.replies_stored == 1)
    assert (router.messages, router.commands, router.answered) == (2, 1, 1)


async def test_an_event_that_comes_twice_is_routed_once(bus: EventBus) -> None:
    router = Router(bus)
    event = chat("hello")
    await router.on_chat(event)
    await router.on_chat(event)
    assert router.messages == 1


async def test_what_a_router_missed_is_read_from_the_stream(bus: EventBus) -> None:
    heard, missed = chat("heard"), chat("missed")
    last = 0
    for event in (heard, missed, PlatformEvent(SAY, "chat", "test", {}), heard):
        last = (await bus.publish_js(event)).seq
    router = Router(bus)
    await router.on_chat(heard)
    assert await catch_up(router, last) == 1
    assert router.messages == 2
    assert await catch_up(router, last) == 0


async def test_the_chat_log_has_every_line_once(bus: EventBus) -> None:
    for text in ("one", "two &amp; three"):
        await bus.publish_js(chat(text))
    log = ChatLog(bus)
    consumer = await log.start()
    await eventually(lambda: consumer.stats.handled == 2)
    assert list(log.lines.values()) == ["<Ann> one", "<Ann> two & three"]


GOOD = Outcome(
    frames=2, published=3, acknowledged=3, stored={"PLATFORM_EVENTS": 3}, messages_routed=2,
    messages_caught_up=0, chat_stored=2, chat_logged=2, chat_redelivered=0, log_tail=["<a> b"],
    dead_letters=0, commands=1, commands_answered=1, commands_repeated=0, handled_by=[1, 0],
    request_p50=0.1, request_p99=0.1, restart=0.1, recovery=0.1, duration=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (GOOD, []),
        (replace(GOOD, published=4), ["1 events were never acknowledged"]),
        (
            replace(GOOD, stored={"PLATFORM_EVENTS": 2}),
            ["3 events were acknowledged, but 2 are stored"],
        ),
        (replace(GOOD, chat_logged=1), ["2 lines of chat are stored, 1 logged"]),
        (replace(GOOD, dead_letters=1), ["1 events are dead letters"]),
        (replace(GOOD, commands_answered=0), ["1 commands were never answered"]),
    ],
)
def test_the_verdict_names_what_is_wrong(outcome: Outcome, said: list[str]) -> None:
    assert outcome.problems() == said
