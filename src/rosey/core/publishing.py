"""Publishing into streams: each event stored once, and known to be stored."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from rosey.core import headers as nats_headers
from rosey.core.connection import Connection, is_no_responders
from rosey.core.errors import (
    EventBusError,
    InvalidOptionError,
    NoStreamError,
    NotAllowedByStreamError,
    NotConnectedError,
    PermissionDeniedError,
    PublishError,
    PublishManyError,
    PublishTimeoutError,
    StreamError,
    StreamFullError,
    WrongSequenceError,
    WrongStreamError,
)
from rosey.core.events import Event
from rosey.core.jetstream import ApiError, PubAck, api, is_ack, read_ack
from rosey.core.subjects import validate_subject

if TYPE_CHECKING:
    from nats.aio.msg import Msg

ATTEMPT_TIMEOUT = 1.0
"""Seconds after which an unacknowledged event is sent again, under the same message id; doubled
each time."""
RETRY_PAUSE = 0.25
"""Seconds between tries while a stream has no leader."""
UNAVAILABLE = 503
"""JetStream's `code` for what may pass: no leader, shutting down, storage busy."""
_FULL = 10077  # a 503 too, but one that waiting does not mend: the stream refuses what is new
_IN_PROCESS = 10158  # an earlier try with this message id is still being copied in the cluster
_REFUSALS: dict[int, type[PublishError]] = {
    10060: WrongStreamError,
    10071: WrongSequenceError,
    10164: WrongSequenceError,
    10077: StreamFullError,
    10166: NotAllowedByStreamError,
    10165: NotAllowedByStreamError,
    10174: NotAllowedByStreamError,
}


async def publish_stored(
    connection: Connection,
    subject: str,
    payload: bytes,
    *,
    deadline: float,
    headers: Mapping[str, str] | None = None,
    msg_id: str | None = None,
) -> PubAck:
    """Send a message until a stream acknowledges it, or `deadline` (loop time).

    All tries carry one message id, so within the stream's duplicate window (2 minutes unless
    configured otherwise) it is stored once. Raises `NoStreamError`, `PublishTimeoutError`, what
    `refusal` makes of JetStream's reason, and what `Connection.send` raises.
    """
    attempt = _Attempt(connection, subject, payload, deadline, headers, msg_id)
    while True:
        try:
            msg = await attempt.until_answered()
        except NotConnectedError as error:
            if connection.time() < deadline and connection.is_usable:
                continue
            if not attempt.sent:
                raise
            raise attempt.unknown() from error
        if not is_no_responders(msg):
            reply = read_ack(msg)
            if isinstance(reply, PubAck):
                return reply
            assert isinstance(reply, ApiError)
            if not _may_pass(reply):
                raise refusal(subject, reply)
        else:
            await _require_stream(connection, subject, deadline)
        if connection.time() + RETRY_PAUSE >= deadline:
            raise PublishTimeoutError(f"the stream of {subject} was not available in time")
        await asyncio.sleep(RETRY_PAUSE)


class _Attempt:
    """One event on its way, sent as often as it takes."""

    def __init__(
        self,
        connection: Connection,
        subject: str,
        payload: bytes,
        deadline: float,
        headers: Mapping[str, str] | None,
        msg_id: str | None,
    ) -> None:
        self._connection = connection
        self._subject = subject
        self._payload = payload
        self._deadline = deadline
        self._headers = {**(headers or {}), nats_headers.MSG_ID: msg_id or secrets.token_hex(16)}
        self._patience = ATTEMPT_TIMEOUT
        self.sent = False
        self._stream_seen = False

    async def until_answered(self) -> Msg:
        """Send it, and again on the same connection while nothing comes; any answer will do."""
        connection = self._connection
        with connection.expecting(self._subject, is_ack) as exchange:
            while True:
                try:
                    await connection.send(
                        self._subject,
                        self._payload,
                        deadline=self._deadline,
                        reply=exchange.reply_subject,
                        headers=self._headers,
                    )
                finally:
                    self.sent |= exchange.sent
                until = min(self._deadline, connection.time() + self._patience)
                try:
                    async with asyncio.timeout_at(until):
                        return await asyncio.shield(exchange.answer)
                except TimeoutError:
                    if connection.time() >= self._deadline:
                        raise self.unknown() from None
                self._patience *= 2
                if not self._stream_seen:
                    # Others are subscribed, or the server would have said that nobody is.
                    await _require_stream(connection, self._subject, self._deadline)
                    self._stream_seen = True

    def unknown(self) -> PublishTimeoutError:
        return PublishTimeoutError(
            f"no stream acknowledged the event on {self._subject} in time; whether it is stored "
            "is unknown"
        )


async def publish_many(
    connection: Connection, events: Iterable[Event], *, max_in_flight: int, timeout: float
) -> list[PubAck]:
    """Store events, so many at a time; raises `PublishManyError` if some failed."""
    acks: dict[int, PubAck] = {}
    failures: dict[int, EventBusError] = {}
    waiting = enumerate(events)
    count = 0

    async def publish_some() -> None:
        nonlocal count
        for number, event in waiting:
            count += 1
            try:
                acks[number] = await publish_stored(
                    connection,
                    validate_subject(event.subject),
                    event.to_json(),
                    deadline=connection.time() + timeout,
                )
            except EventBusError as error:
                failures[number] = error

    async with asyncio.TaskGroup() as group:
        for _ in range(max_in_flight):
            group.create_task(publish_some())
    if failures:
        raise PublishManyError([acks.get(number) for number in range(count)], failures)
    return [acks[number] for number in range(count)]


def conditions(
    last_sequence: int | None, last_subject_sequence: int | None, ttl: float | timedelta | None
) -> dict[str, str]:
    """Headers that tell a stream under which conditions, and for how long, to keep an event."""
    headers = {}
    if last_sequence is not None:
        headers[nats_headers.EXPECTED_LAST_SEQUENCE] = str(last_sequence)
    if last_subject_sequence is not None:
        headers[nats_headers.EXPECTED_LAST_SUBJECT_SEQUENCE] = str(last_subject_sequence)
    if ttl is not None:
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        if seconds < 1 or seconds != int(seconds):
            raise InvalidOptionError("ttl must be whole seconds, at least 1")
        headers[nats_headers.TTL] = f"{int(seconds)}s"
    return headers


def refusal(subject: str, error: ApiError) -> PublishError:
    """The error that a stream's refusal of an event is raised as."""
    kind = _REFUSALS.get(error.err_code, PublishError)
    return kind(
        f"the stream refused the event on {subject}: {error.description} "
        f"(JetStream error {error.err_code})"
    )


async def _require_stream(connection: Connection, subject: str, deadline: float) -> None:
    """Tell a stream that has no leader just now from one that does not exist."""
    # A question asked while the cluster elects is never answered: asking is not worth the deadline.
    deadline = min(deadline, connection.time() + ATTEMPT_TIMEOUT)
    try:
        found = await api(connection, "STREAM.NAMES", {"subject": subject}, deadline)
    except (StreamError, NotConnectedError, PermissionDeniedError):
        return  # JetStream may be on its way back, or this user may not ask
    if not found.get("streams"):
        raise NoStreamError(
            f"no stream stores {subject}: use publish() for events that are not kept, or add a "
            "StreamSpec for it to EventBus(streams=...)"
        )


def _may_pass(error: ApiError) -> bool:
    return error.err_code == _IN_PROCESS or (error.code == UNAVAILABLE and error.err_code != _FULL)
