"""One reply inbox for everything a bus waits for: answers, JetStream's acks, its own echoes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nats.aio.msg import Msg

Accept = Callable[["Msg"], bool]
"""Tells the message that was waited for from others on the same reply subject."""


def anything(_: Msg) -> bool:
    """Accept the first message."""
    return True


class Exchange:
    """One message out, the first accepted message back."""

    __slots__ = ("accept", "answer", "asked", "passed_over", "reply_subject", "sent")

    def __init__(
        self, asked: str, reply_subject: str, accept: Accept, answer: asyncio.Future[Msg]
    ) -> None:
        self.asked = asked
        self.reply_subject = reply_subject
        self.accept = accept
        self.answer = answer
        self.sent = False
        self.passed_over: Msg | None = None
        """The last message that came and was not the one waited for."""


class Inbox:
    """Replies are told apart by the last token of their subject, a counter.

    The part before it is random and unguessable: whoever could name it could answer for others.
    """

    def __init__(self, prefix: str) -> None:
        self._root = f"{prefix}.{secrets.token_hex(12)}."
        self.pattern = f"{self._root}*"
        self._open: dict[str, Exchange] = {}
        self.answered = 0
        """Answers that came; each proves that the connection works both ways."""
        self._count = 0

    def open(self, asked: str, accept: Accept) -> Exchange:
        """Start waiting for an answer to a message on subject `asked`."""
        self._count += 1
        reply_subject = f"{self._root}{self._count}"
        answer = asyncio.get_running_loop().create_future()
        exchange = self._open[reply_subject] = Exchange(asked, reply_subject, accept, answer)
        return exchange

    def mark_sent(self, reply_subject: str) -> None:
        """The message that asks for an answer there was handed to a connection."""
        exchange = self._open.get(reply_subject)
        if exchange is not None:
            exchange.sent = True

    def close(self, exchange: Exchange) -> None:
        """Stop waiting; answers that come later are passed over in silence."""
        self._open.pop(exchange.reply_subject, None)
        if not exchange.answer.cancel() and not exchange.answer.cancelled():
            exchange.answer.exception()  # seen, even where nobody came to await it

    def deliver(self, msg: Msg) -> None:
        """Hand a message to the exchange that waits for it."""
        exchange = self._open.get(msg.subject)
        if exchange is None or exchange.answer.done():
            return
        self.answered += 1
        if exchange.accept(msg):
            exchange.answer.set_result(msg)
        else:
            exchange.passed_over = msg

    def fail(self, make_error: Callable[[], Exception], asked: str | None = None) -> bool:
        """End open exchanges, each with an error of its own.

        All that were sent, or of these the ones that asked on subject `asked`, given in lower
        case; what still waits for a connection goes on waiting. Returns whether there was one.
        """
        failed = [
            exchange
            for exchange in self._open.values()
            if exchange.sent
            and not exchange.answer.done()
            and (asked is None or exchange.asked.lower() == asked)
        ]
        for exchange in failed:
            exchange.answer.set_exception(make_error())
        return bool(failed)
