"""The demo's bots: a router that turns chat into commands, and handlers that answer them."""

from __future__ import annotations

import html
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nats.js.errors import NotFoundError

from rosey.core import subjects
from rosey.core.consumers import Consumer
from rosey.core.errors import NotConnectedError, RequestTimeoutError
from rosey.core.event_bus import EventBus
from rosey.core.events import Event
from rosey.core.subscriptions import Subscription
from rosey.demo.cytube import PLATFORM

CHAT = subjects.platform(PLATFORM, "chat")
SAY = subjects.send(PLATFORM, "chat")
MESSAGE = subjects.event("message")
COMMANDS = f"{subjects.COMMANDS}.*.execute"

_QUOTES = (
    "It is a good night for a film about a robot.",
    "Whoever queued this owes us an apology.",
    "I have seen worse. I have also seen better.",
)
_DICE = re.compile(r"(\d{1,2})d(\d{1,3})")


@dataclass(slots=True)
class Router:
    """Publishes chat as platform-free messages, and has what starts with `!` answered."""

    bus: EventBus
    messages: int = 0
    commands: int = 0
    answered: int = 0
    repeated: int = 0
    replies_stored: int = 0
    seconds: list[float] = field(default_factory=list)
    """How long each command took, from its first try to its answer."""
    seen: set[str] = field(default_factory=set)
    """Ids of the chat events taken: an event that was sent again is the same event."""

    async def start(self) -> Subscription:
        """Begin to listen; several commands may be under way at once."""
        return await self.bus.subscribe(CHAT, self.on_chat, concurrency=16)

    async def on_chat(self, event: Event) -> None:
        """Route one line of chat, once."""
        if event.correlation_id in self.seen:
            return
        self.seen.add(event.correlation_id)
        user, text = str(event.data.get("username")), html.unescape(str(event.data.get("msg")))
        await self.bus.publish(MESSAGE, {"user": user, "text": text, "platform": PLATFORM})
        self.messages += 1
        if text.startswith("!") and len(text) > 1:
            await self._command(user, text[1:].split())

    async def _command(self, user: str, words: list[str]) -> None:
        name = re.sub("[^0-9a-z_-]", "_", words[0].lower()) if words else "help"
        self.commands += 1
        began = time.perf_counter()
        answer = await self._ask(subjects.command(name), {"user": user, "args": words[1:]})
        self.seconds.append(time.perf_counter() - began)
        self.answered += 1
        await self.bus.publish_js(SAY, {"msg": f"{user}: {answer.data['text']}"}, timeout=30)
        self.replies_stored += 1

    async def _ask(self, subject: str, data: dict[str, object]) -> Event:
        while True:
            try:
                return await self.bus.request(subject, data)
            except (NotConnectedError, RequestTimeoutError):
                # Whether it ran is unknown. These commands may run twice, so ask again.
                self.repeated += 1


@dataclass(slots=True)
class CommandHandler:
    """One of several that share the commands through a queue group."""

    bus: EventBus
    dice: random.Random = field(default_factory=random.Random)
    handled: int = 0

    async def start(self) -> None:
        """Join the queue group."""
        await self.bus.subscribe(COMMANDS, self.on_command, queue="commands", concurrency=4)

    async def on_command(self, event: Event) -> dict[str, str]:
        """Run one command; what is returned is the answer."""
        name = event.subject.split(".")[2]
        self.handled += 1
        command = self._commands().get(name)
        if command is None:
            return {"text": f"there is no !{name}; try !help"}
        return {"text": command([str(word) for word in event.data["args"]])}

    def _commands(self) -> dict[str, Callable[[list[str]], str]]:
        return {
            "roll": self._roll,
            "quote": lambda _: self.dice.choice(_QUOTES),
            "np": lambda _: "now playing: Robot Monster (1953)",
            "8ball": lambda _: self.dice.choice(("yes", "no", "ask again later")),
            "trivia": lambda _: "in which year did the first film festival open?",
            "help": lambda _: "!roll 2d6, !quote, !np, !8ball, !trivia",
        }

    def _roll(self, words: list[str]) -> str:
        wanted = _DICE.fullmatch(words[0] if words else "1d6")
        if wanted is None or not int(wanted[2]) >= 1:
            return "roll what? try !roll 2d6"
        rolls = [self.dice.randint(1, int(wanted[2])) for _ in range(int(wanted[1]))]
        return f"{' + '.join(map(str, rolls))} = {sum(rolls)}"


@dataclass(slots=True)
class ChatLog:
    """Keeps every line of chat, whatever happens to the server: a durable consumer."""

    bus: EventBus
    lines: dict[int, str] = field(default_factory=dict)
    """By their place in the stream; a line that is delivered twice is still one line."""

    async def start(self) -> Consumer:
        """Begin at the first line that is not yet in the log."""
        return await self.bus.consume(CHAT, self.on_chat, durable="chat-log")

    async def on_chat(self, event: Event) -> None:
        """Write one line down."""
        assert event.delivery is not None
        assert event.delivery.origin is not None
        text = html.unescape(str(event.data.get("msg")))
        self.lines[event.delivery.origin.sequence] = f"<{event.data.get('username')}> {text}"


async def catch_up(router: Router, last: int) -> int:
    """Hand the router the stored chat that it missed, up to sequence `last`; return how much.

    A plain subscription is not told what was published while its connection was down.
    """
    missed, sequence = 0, 1
    while sequence <= last:
        assert router.bus.js is not None
        try:
            stored = await router.bus.js.get_msg(
                "PLATFORM_EVENTS", seq=sequence, subject=CHAT, next=True
            )
        except NotFoundError:
            break
        assert stored.data is not None
        assert stored.seq is not None
        event = Event.from_json(stored.data)
        if event.correlation_id not in router.seen:
            missed += 1
            await router.on_chat(event)
        sequence = stored.seq + 1
    return missed
