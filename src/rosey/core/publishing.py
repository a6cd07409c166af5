"""Publishing into streams: each event stored once, and known to be stored."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping

from rosey.core import headers as nats_headers
from rosey.core.connection import Connection
from rosey.core.errors import (
    ConnectionLostError,
    NoRespondersError,
    NoStreamError,
    NotConnectedError,
    PermissionDeniedError,
    PublishError,
    PublishTimeoutError,
    StreamError,
)
from rosey.core.jetstream import ApiError, PubAck, api, is_ack, read_ack

ATTEMPT_TIMEOUT = 1.0
"""Seconds after which an unacknowledged event is sent again, under the same message id."""
RETRY_PAUSE = 0.25
"""Seconds between tries while a stream has no leader."""
UNAVAILABLE = 503
"""JetStream's `code` for what may pass: no leader, shutting down, storage busy."""
_FULL = 10077  # a 503 too, but one that waiting does not mend: the stream refuses what is new
_IN_PROCESS = 10158  # an earlier try with this message id is still being copied in the cluster


async def publish_stored(
    connection: Connection,
    subject: str,
    payload: bytes,
    *,
    deadline: float,
    headers: Mapping[str, str] | None = None,
) -> PubAck:
    """Send a message until a stream acknowledges it, or `deadline` (loop time).

    All tries carry one message id, so within the stream's duplicate window (2 minutes unless
    configured otherwise) it is stored once. Raises `NoStreamError`, `PublishTimeoutError`,
    `PublishError` with JetStream's reason, and what `Connection.send` raises.
    """
    loop = asyncio.get_running_loop()
    tagged = {**(headers or {}), nats_headers.MSG_ID: secrets.token_hex(16)}
    sent_before = stream_seen = False
    while True:
        try:
            msg = await connection.exchange(
                subject,
                payload,
                deadline=min(deadline, loop.time() + ATTEMPT_TIMEOUT),
                headers=tagged,
                accept=is_ack,
            )
        except (TimeoutError, NotConnectedError) as error:
            sent_before |= isinstance(error, (TimeoutError, ConnectionLostError))
            if loop.time() < deadline and connection.is_usable:
                if isinstance(error, TimeoutError) and not stream_seen:
                    # Others are subscribed, or the server would have said that nobody is.
                    await _require_stream(connection, subject, deadline)
                    stream_seen = True
                continue
            if not sent_before:
                raise
            raise PublishTimeoutError(
                f"no stream acknowledged the event on {subject} in time; whether it is stored "
                "is unknown"
            ) from error
        except NoRespondersError:
            await _require_stream(connection, subject, deadline)
        else:
            reply = read_ack(msg)
            if isinstance(reply, PubAck):
                return reply
            assert isinstance(reply, ApiError)
            if not _may_pass(reply):
                raise PublishError(f"the stream refused the event on {subject}: {_text(reply)}")
        if loop.time() + RETRY_PAUSE >= deadline:
            raise PublishTimeoutError(f"the stream of {subject} was not available in time")
        await asyncio.sleep(RETRY_PAUSE)


async def _require_stream(connection: Connection, subject: str, deadline: float) -> None:
    """Tell a stream that has no leader just now from one that does not exist."""
    # A question asked while the cluster elects is never answered: asking is not worth the deadline.
    deadline = min(deadline, asyncio.get_running_loop().time() + ATTEMPT_TIMEOUT)
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


def _text(error: ApiError) -> str:
    return f"{error.description} (JetStream error {error.err_code})"
