"""Request and reply: a question, its one answer, and errors that reach who asked."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rosey.core import headers as nats_headers
from rosey.core.connection import Connection
from rosey.core.errors import NoReplySubjectError, RemoteError, RequestTimeoutError
from rosey.core.events import Delivery, Event, mark_delivered
from rosey.core.jetstream import PubAck, is_answer, read_ack

if TYPE_CHECKING:
    from nats.aio.msg import Msg

INTERNAL_ERROR = 500
"""Code of a `RemoteError` for a handler that failed without choosing one."""
BAD_REQUEST = 400
"""Code of a `RemoteError` for a request that is not an event."""
INBOX = "_INBOX"
"""How a reply subject begins. Answers go nowhere else, or a peer could have this program, with its
permissions, publish where the peer may not."""
REPLY_TIMEOUT = 5.0
"""Seconds that an answer waits for the connection to come back."""

_CODE = re.compile("[0-9]{1,9}")


async def request(
    connection: Connection,
    event: Event,
    *,
    timeout: float,
    headers: Mapping[str, str] | None = None,
) -> Event:
    """Publish `event` and return the first answer a handler gives.

    Raises `RequestTimeoutError`, `NoRespondersError`, `RemoteError`, `EventDecodeError`, and
    what `Connection.send` raises.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        msg = await connection.exchange(
            event.subject, event.to_json(), deadline=deadline, headers=headers, accept=is_answer
        )
    except TimeoutError as error:
        stored = read_ack(error.args[0]) if error.args[0] is not None else None
        # A stream's interest hides from the server that no handler is there.
        hint = f"; stream {stored.stream} stored it" if isinstance(stored, PubAck) else ""
        raise RequestTimeoutError(
            f"nobody answered the request on {event.subject} within {timeout:g} s{hint}"
        ) from None
    if msg.headers and nats_headers.SERVICE_ERROR_CODE in msg.headers:
        raise _remote_error(msg)
    answer = Event.from_json(msg.data)
    mark_delivered(answer, delivery_of(msg, pattern=event.subject))
    answer.subject = event.subject
    return answer


async def respond(
    connection: Connection, to: Delivery, answer: Event, *, error: RemoteError | None = None
) -> None:
    """Answer the request that came as `to`; with `error`, mark it as NATS services do.

    Raises `NoReplySubjectError` and what `Connection.send` raises.
    """
    if not to.reply:
        raise NoReplySubjectError(f"nobody waits for a reply to this event on {to.subject}")
    if not to.reply.startswith(INBOX):
        raise NoReplySubjectError(
            f"{to.reply!r} is no inbox (it does not start with {INBOX}): no answer is sent there"
        )
    headers = None
    if error is not None:
        headers = {
            nats_headers.SERVICE_ERROR_CODE: str(error.code),
            nats_headers.SERVICE_ERROR: nats_headers.one_line(error.message),
        }
    deadline = asyncio.get_running_loop().time() + REPLY_TIMEOUT
    await connection.send(to.reply, answer.to_json(), deadline=deadline, headers=headers)


async def respond_error(
    connection: Connection, to: Delivery, error: RemoteError, correlation_id: str | None
) -> None:
    """Tell whoever asked that there is no answer, and why."""
    data = {"code": error.code, "message": error.message}
    await respond(connection, to, answer_to(to.subject, data, correlation_id), error=error)


def answer_to(
    subject: str, data: dict[str, Any], correlation_id: str | None, source: str = "core"
) -> Event:
    """The event that answers a request on `subject`; it carries the request's id."""
    event = Event(subject=subject, event_type="response", source=source, data=data)
    if correlation_id is not None:
        event.correlation_id = correlation_id
    return event


def delivery_of(msg: Msg, pattern: str) -> Delivery:
    """How `msg` came here."""
    return Delivery(msg.subject, pattern, msg.reply, msg.headers or {}, len(msg.data))


def awaits_answer(delivery: Delivery) -> bool:
    """Whether somebody waits for a handler's answer, rather than for a stream's acknowledgement."""
    return delivery.reply.startswith(INBOX) and nats_headers.MSG_ID not in delivery.headers


def _remote_error(msg: Msg) -> RemoteError:
    headers = msg.headers or {}
    code = headers[nats_headers.SERVICE_ERROR_CODE]
    message = headers.get(nats_headers.SERVICE_ERROR, "")
    with contextlib.suppress(ValueError):
        # The header holds one line; our own handlers send the whole text in the event.
        message = str(Event.from_json(msg.data).data.get("message", message))
    return RemoteError(int(code) if _CODE.fullmatch(code) else INTERNAL_ERROR, message)
